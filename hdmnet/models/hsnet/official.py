"""Checkpoints of HSNet's official release, which hold the whole trunk with its classifier.

Every key has exactly one place in our model: `official_key` gives it.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.backbones.prepare import prepare_trunk
from hdmnet.models.backbones.vgg import PLAIN_BOUNDS
from hdmnet.models.hsnet.model import HSNet
from hdmnet.models.official import TORCHVISION_RESNET, check_variant, load_release, translate

IMAGE_SIZES = {"pascal": 400, "coco": 400}  # side of the square, in pixels
BACKBONES = ("resnet50", "resnet101", "vgg16_plain")

# Our key → the official one. torchvision numbers all layers of VGG-16 in a row.
_VGG = tuple(
    (rf"parts\.{part}\.{index - low}\.(.*)", rf"features.{index}.\1")
    for part, (low, high) in enumerate(pairwise(PLAIN_BOUNDS[None]))
    for index in range(low, high)
)
_BLOCKS = {"squeeze.0": "2", "squeeze.1": "3", "squeeze.2": "4", "mix.1": "4to3", "mix.0": "3to2"}
_LEARNER = (
    *((rf"{ours}\.(\d)\.query\.(.*)", rf"encoder_layer{theirs}.\1.conv1.\2") for ours, theirs in _BLOCKS.items()),
    *((rf"{ours}\.(\d)\.support\.(.*)", rf"encoder_layer{theirs}.\1.conv2.\2") for ours, theirs in _BLOCKS.items()),
    *((rf"{ours}\.(.*)", rf"encoder_layer{theirs}.\1") for ours, theirs in _BLOCKS.items()),
    (r"decode_coarse\.(.*)", r"decoder1.\1"),
    (r"decode_fine\.(.*)", r"decoder2.\1"),
)


def official_key(key: str, *, backbone: str = "resnet50") -> str:
    """The official name of a parameter or buffer of `HSNet`; KeyError if the release has none."""
    part, _, own = key.partition(".")
    if part == "learner":
        return f"hpn_learner.{translate(own, _LEARNER)}"
    rules = _VGG if backbone.startswith("vgg") else TORCHVISION_RESNET
    return f"backbone.{translate(own.removeprefix('backbone.'), rules)}"


def build_official(dataset: str, backbone: str, shot: int = 1) -> HSNet:
    """An untrained HSNet as the release's, in eval mode; as `load_official_checkpoint`."""
    check_variant(dataset, backbone, shot, backbones=BACKBONES)
    trunk = prepare_trunk(
        build_backbone(backbone, dilation=None), layers=[2, 3, 4], every_block=True, before_relu=True, trainable=[]
    )
    return HSNet(encoder=trunk, num_shots=shot).eval()


def load_official_checkpoint(path: str | Path, dataset: str, backbone: str, shot: int) -> HSNet:
    """Read an official HSNet checkpoint, as `load_release` says.

    The network is the same for every data set; `shot` may be any, as the release tests its 1-shot weights with five
    supports; `backbone` is "resnet50", "resnet101" (torchvision's form) or "vgg16_plain" (without BN).
    """
    asked = {"dataset": dataset, "backbone": backbone, "shot": shot}
    own_key = partial(official_key, backbone=backbone)
    unused = r"backbone\.(fc|classifier)\..*"  # the trunk's classifier
    return load_release(path, build_official, own_key, unused, kind="HSNet", **asked)
