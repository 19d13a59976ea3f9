"""Backbones by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from torchvision.models.resnet import BasicBlock, Bottleneck

from hdmnet.models.backbones.base import SequentialBackbone
from hdmnet.models.backbones.mobilenet import build_mobilenet_v2
from hdmnet.models.backbones.resnet import DILATIONS, build_resnet
from hdmnet.models.backbones.vgg import build_vgg16, build_vgg16_plain
from hdmnet.models.backbones.weights import default_weights, load_weights

_RESNETS = {
    "resnet18": partial(build_resnet, BasicBlock, (2, 2, 2, 2)),
    "resnet50": partial(build_resnet, Bottleneck, (3, 4, 6, 3)),
    "resnet101": partial(build_resnet, Bottleneck, (3, 4, 23, 3)),
    "resnet50_v2": partial(build_resnet, Bottleneck, (3, 4, 6, 3), stem_channels=(64, 64, 128)),
    "resnet_narrow": partial(build_resnet, BasicBlock, (1, 1, 1, 1), widths=(32, 64, 96, 128), stem_channels=(16, 32)),
}
_BUILDERS: dict[str, Callable[..., SequentialBackbone]] = {
    **_RESNETS,
    "vgg16": lambda dilation: build_vgg16(),
    "vgg16_plain": build_vgg16_plain,
    "mobilenet_v2": build_mobilenet_v2,
}
_DILATIONS = {"vgg16": DILATIONS[:1], "vgg16_plain": ("release", None)}  # of all others: DILATIONS

BACKBONES = tuple(_BUILDERS)


def build_backbone(
    name: str,
    *,
    weights: str | Path | None = None,
    weights_dir: str | Path | None = None,
    dilation: str | None = "release",
) -> SequentialBackbone:
    """Build a backbone by name.

    Args:
        name: One of `BACKBONES`.
        weights: "default": torchvision's ImageNet weights, none where it has none; the name of other ones
            (``IMAGENET1K_V1``); the path of a state dict in torchvision's keys (or in the release's deep-stem keys for
            ``resnet50_v2``); or None for random initialisation.
        weights_dir: Folder where a relative path is looked for too, and where torchvision's weights are kept; None =
            torch's own cache.
        dilation: Of layers 3 and 4, see `DILATIONS` of `resnet.py`, and `vgg.py`.

    Returns:
        The backbone, in training mode, with layers 2, 3 and 4 as its levels; `prepare_trunk` chooses others.

    Raises:
        ValueError: The name is unknown, the weights do not fit it, or it has no such dilation.
        FileNotFoundError: The weights are neither a torchvision name nor a file.
        OSError: Weights could not be downloaded.
    """
    if name not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}; expected one of {', '.join(BACKBONES)}")
    allowed = _DILATIONS.get(name, DILATIONS)
    if dilation not in allowed:
        expected = " or ".join("null" if known is None else known for known in allowed)
        raise ValueError(f"backbone.dilation={dilation!r}: {name} has {expected}")
    backbone = _BUILDERS[name](dilation=dilation)
    if weights == "default":
        weights = default_weights(name)
    if weights is not None:
        load_weights(backbone, name, weights, weights_dir)
    return backbone
