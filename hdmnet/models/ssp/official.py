"""Checkpoints of SSP's official release.

Every key has exactly one place in our model: `official_key` gives it.
"""

from __future__ import annotations

from pathlib import Path

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.backbones.prepare import prepare_trunk
from hdmnet.models.official import check_variant, load_release, translate
from hdmnet.models.ssp.model import SSP

IMAGE_SIZES = {"pascal": 473, "coco": 473}  # of the training crops; the release tests pictures at their own size
BACKBONES = ("resnet50_v2",)

_RULES = (
    (r"backbone\.parts\.0\.7\.(.*)", r"layer0.1.\1"),
    (r"backbone\.parts\.0\.(\d)\.(.*)", r"layer0.0.\1.\2"),
    (r"backbone\.parts\.(\d)\.(.*)", r"layer\1.\2"),
)


def official_key(key: str) -> str:
    """The official name of a parameter or buffer of `SSP`; KeyError if the release has none."""
    return translate(key, _RULES)


def build_official(dataset: str, backbone: str, shot: int = 1, *, refine: bool = True) -> SSP:
    """An untrained SSP with exactly the release's switches, in eval mode; as `load_official_checkpoint`."""
    check_variant(dataset, backbone, shot, backbones=BACKBONES)
    trunk = build_backbone(backbone, dilation="torchvision")
    prepare_trunk(trunk, layers=[3], before_relu=True, trainable=[2, 3])
    return SSP(encoder=trunk, num_shots=shot, refine=refine).eval()


def load_official_checkpoint(path: str | Path, dataset: str, backbone: str, shot: int, *, refine: bool = True) -> SSP:
    """Read an official SSP checkpoint, as `load_release` says.

    The weights depend neither on the data set nor on `shot` nor on `refine`, which is on for all published figures but
    those of the HSNet protocol; `backbone` is "resnet50_v2" (deep stem).
    """
    asked = {"dataset": dataset, "backbone": backbone, "shot": shot, "refine": refine}
    return load_release(path, build_official, official_key, kind="SSP", **asked)
