"""Backbones by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torchvision.models.resnet import BasicBlock, Bottleneck

from hdmnet.models.backbones.base import Backbone
from hdmnet.models.backbones.mobilenet import build_mobilenet_v2
from hdmnet.models.backbones.resnet import build_resnet
from hdmnet.models.backbones.vgg import build_vgg16
from hdmnet.models.backbones.weights import load_weights

_BUILDERS: dict[str, Callable[[], Backbone]] = {
    "resnet18": lambda: build_resnet(BasicBlock, (2, 2, 2, 2)),
    "resnet50": lambda: build_resnet(Bottleneck, (3, 4, 6, 3)),
    "resnet101": lambda: build_resnet(Bottleneck, (3, 4, 23, 3)),
    "resnet50_v2": lambda: build_resnet(Bottleneck, (3, 4, 6, 3), stem_channels=(64, 64, 128)),
    "resnet_narrow": lambda: build_resnet(BasicBlock, (1, 1, 1, 1), widths=(32, 64, 96, 128), stem_channels=(16, 32)),
    "vgg16": build_vgg16,
    "mobilenet_v2": build_mobilenet_v2,
}


BACKBONES = tuple(_BUILDERS)


def build_backbone(name: str, *, weights: str | Path | None = None, weights_dir: str | Path | None = None) -> Backbone:
    """Build a backbone by name.

    Args:
        name: One of `BACKBONES`.
        weights: The name of torchvision weights (``IMAGENET1K_V1``), the path of a state dict in torchvision's keys (or
            in the release's deep-stem keys for ``resnet50_v2``), or None for random initialisation.
        weights_dir: Folder where a relative path is looked for too, and where torchvision's weights are kept; None =
            torch's own cache.

    Returns:
        The backbone, in training mode.

    Raises:
        ValueError: The name is unknown, or the weights do not fit it.
        FileNotFoundError: The weights are neither a torchvision name nor a file.
        OSError: Weights could not be downloaded.
    """
    if name not in _BUILDERS:
        raise ValueError(f"unknown backbone {name!r}; expected one of {', '.join(BACKBONES)}")
    backbone = _BUILDERS[name]()
    if weights is not None:
        load_weights(backbone, name, weights, weights_dir)
    return backbone
