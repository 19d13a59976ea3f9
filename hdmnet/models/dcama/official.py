"""Checkpoints of DCAMA's official release, which hold the whole trunk, its position codes and what Swin computes.

Every key has exactly one place in our model: `official_key` gives it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from hdmnet.models.backbones.base import Backbone
from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.backbones.prepare import prepare_trunk
from hdmnet.models.backbones.timm import TimmBackbone
from hdmnet.models.dcama.model import DCAMA
from hdmnet.models.official import TORCHVISION_RESNET, check_variant, load_release, translate

IMAGE_SIZES = {"pascal": 384, "coco": 384}  # side of the square, in pixels
BACKBONES = ("resnet50", "resnet101", "swin_b_384")

# Our key → the official one. The release merges patches at the end of a layer, timm at the beginning of the next.
_SWIN = (
    *((rf"model\.net\.layers\.{k + 1}\.downsample\.(.*)", rf"layers.{k}.downsample.\1") for k in range(3)),
    (r"model\.net\.(.*)", r"\1"),
)
_BLOCKS = {"squeeze.0": "conv3", "squeeze.1": "conv2", "squeeze.2": "conv1", "mix.1": "conv4", "mix.0": "conv5"}
_BLOCKS |= {"decode_coarse": "mixer1", "decode_middle": "mixer2", "decode_fine": "mixer3"}
_PARTS = (
    (r"attention\.(\d)\.query\.(.*)", r"DCAMA_blocks.\1.linears.0.\2"),
    (r"attention\.(\d)\.key\.(.*)", r"DCAMA_blocks.\1.linears.1.\2"),
    *((rf"decoder\.{ours}\.(.*)", rf"{theirs}.\1") for ours, theirs in _BLOCKS.items()),
)
# The trunk's unused end, and what is computed of the sizes.
_UNUSED = r"feature_extractor\.(fc|head|norm)\..*|model\.pe\.\d\.pe|.*\.(attn_mask|relative_position_index)"


def official_key(key: str, *, backbone: str = "resnet50") -> str:
    """The official name of a parameter or buffer of `DCAMA`; KeyError if the release has none."""
    if key.startswith("trunk.backbone."):
        rules = _SWIN if backbone.startswith("swin") else TORCHVISION_RESNET
        return f"feature_extractor.{translate(key.removeprefix('trunk.backbone.'), rules)}"
    return f"model.{translate(key, _PARTS)}"


def build_official(dataset: str, backbone: str, shot: int = 1, *, image_size: int = 384) -> DCAMA:
    """An untrained DCAMA as the release's, in eval mode; as `load_official_checkpoint`."""
    check_variant(dataset, backbone, shot, backbones=BACKBONES)
    trunk: Backbone
    if backbone.startswith("swin"):
        trunk = TimmBackbone("swin_base_patch4_window12_384", img_size=image_size)
        prepare_trunk(trunk, layers=[1, 2, 3, 4], every_block=True, trainable=[])
    else:
        trunk = build_backbone(backbone, dilation=None)
        prepare_trunk(trunk, layers=[1, 2, 3, 4], every_block=True, before_relu=True, trainable=[])
    return DCAMA(encoder=trunk, num_shots=shot).eval()


def load_official_checkpoint(
    path: str | Path, dataset: str, backbone: str, shot: int, *, image_size: int = 384
) -> DCAMA:
    """Read an official DCAMA checkpoint, as `load_release` says.

    The network is the same for every data set; `shot` may be any, as the release tests its 1-shot weights with five
    supports; `backbone` is "resnet50", "resnet101" (torchvision's form) or "swin_b_384", which is built for pictures of
    `image_size` pixels a side: 384, or 192 (then the last layer's window is 6 and its table of positions smaller).
    """
    asked = {"dataset": dataset, "backbone": backbone, "shot": shot}
    if backbone.startswith("swin"):
        asked["image_size"] = image_size
    own_key = partial(official_key, backbone=backbone)
    return load_release(path, build_official, own_key, _UNUSED, kind="DCAMA", **asked)
