"""Checkpoints of PFENet's official release.

Every key has exactly one place in our model: `official_key` gives it.
"""

from __future__ import annotations

from pathlib import Path

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.official import check_variant, load_release, translate
from hdmnet.models.pfenet.model import PFENet

IMAGE_SIZES = {"pascal": 473, "coco": 641}  # side of the square, in pixels
PPM_SCALES = {"pascal": (60, 30, 15, 8), "coco": (1.0, 0.5, 0.25, 0.125)}  # of the release's configs

# Our key → the official one. The finest scale has no `inter`, so that the release counts them from the second scale.
_RULES = (
    (r"trunk\.encoder\.parts\.(\d+)\.(.*)", r"layer\1.\2"),
    (r"down_query\.(.*)", r"down_query.\1"),
    (r"down_support\.(.*)", r"down_supp.\1"),
    (r"enrichment\.scales\.(\d+)\.merge\.(.*)", r"init_merge.\1.\2"),
    *((rf"enrichment\.scales\.{k + 1}\.inter\.(.*)", rf"alpha_conv.{k}.\1") for k in range(3)),
    (r"enrichment\.scales\.(\d+)\.refine\.(.*)", r"beta_conv.\1.\2"),
    (r"enrichment\.scales\.(\d+)\.classify\.(.*)", r"inner_cls.\1.\2"),
    (r"enrichment\.reduce\.(.*)", r"res1.\1"),
    (r"enrichment\.refine\.(.*)", r"res2.\1"),
    (r"classify\.(.*)", r"cls.\1"),
)


def official_key(key: str) -> str:
    """The official name of a parameter or buffer of `PFENet`; KeyError if the release has none."""
    return translate(key, _RULES)


def build_official(dataset: str, backbone: str, shot: int = 1) -> PFENet:
    """An untrained PFENet with exactly the release's switches, in eval mode; as `load_official_checkpoint`."""
    check_variant(dataset, backbone, shot)
    return PFENet(encoder=build_backbone(backbone), num_shots=shot, ppm_scales=PPM_SCALES[dataset]).eval()


def load_official_checkpoint(path: str | Path, dataset: str, backbone: str, shot: int) -> PFENet:
    """Read an official PFENet checkpoint, as `load_release` says.

    The data set decides the scales, which the file does not tell; `shot` may be any, as the release tests its 1-shot
    weights with five supports; `backbone` is "resnet50_v2" (deep stem) or "vgg16" (BN).
    """
    asked = {"dataset": dataset, "backbone": backbone, "shot": shot}
    return load_release(path, build_official, official_key, kind="PFENet", **asked)
