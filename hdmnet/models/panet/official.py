"""Checkpoints of PANet's official release.

Every key has exactly one place in our model: `official_key` gives it.
"""

from __future__ import annotations

from pathlib import Path

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.backbones.prepare import ALL, prepare_trunk
from hdmnet.models.official import check_variant, load_release, translate
from hdmnet.models.panet.model import PANet

IMAGE_SIZES = {"pascal": 417, "coco": 417}  # side of the square, in pixels
BACKBONES = ("vgg16_plain",)

# The release counts pools as parts of their own.
_RULES = tuple((rf"backbone\.parts\.{k}\.(.*)", rf"encoder.backbone.features.{2 * k}.\1") for k in range(5))


def official_key(key: str) -> str:
    """The official name of a parameter of `PANet`; KeyError if the release has none."""
    return translate(key, _RULES)


def build_official(dataset: str, backbone: str, shot: int = 1) -> PANet:
    """An untrained PANet with exactly the release's switches, in eval mode; as `load_official_checkpoint`."""
    check_variant(dataset, backbone, shot, backbones=BACKBONES)
    trunk = prepare_trunk(build_backbone(backbone), layers=[4], before_relu=True, trainable=ALL)
    return PANet(encoder=trunk, num_shots=shot).eval()


def load_official_checkpoint(path: str | Path, dataset: str, backbone: str, shot: int) -> PANet:
    """Read an official PANet checkpoint, as `load_release` says.

    The weights depend neither on the data set nor on `shot`; `backbone` is "vgg16_plain" (without batch normalisation).
    """
    asked = {"dataset": dataset, "backbone": backbone, "shot": shot}
    return load_release(path, build_official, official_key, kind="PANet", **asked)
