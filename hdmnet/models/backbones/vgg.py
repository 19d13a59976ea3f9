"""VGG-16 with batch normalisation, its last pool dropped."""

from __future__ import annotations

from itertools import pairwise

from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from hdmnet.models.backbones.base import FeatureInfo, SequentialBackbone

VGG16_BOUNDS = (0, 7, 14, 24, 34, 43)  # after each pool; the last pool is dropped


def cut(features: nn.Sequential, bounds: tuple[int, ...]) -> list[nn.Module]:
    """Cut a Sequential into parts, each numbered from 0 (a slice of a Sequential would keep the old numbers)."""
    layers = list(features)
    return [nn.Sequential(*layers[low:high]) for low, high in pairwise(bounds)]


def build_vgg16() -> SequentialBackbone:
    """VGG-16 with batch normalisation and ceil-mode pools; layers 3 and 4 at stride 16."""
    # Not by `vgg16_bn()`: its classifier alone would be 124 million parameters to initialise and throw away.
    features = make_layers(cfgs["D"], batch_norm=True)
    for module in features:
        if isinstance(module, nn.MaxPool2d):
            module.ceil_mode = True
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.constant_(module.bias, 0.0)  # type: ignore[arg-type]  # a Conv2d's bias may be None; these have one
    levels = [FeatureInfo(256, 8), FeatureInfo(512, 16), FeatureInfo(512, 16)]
    return SequentialBackbone(cut(features, VGG16_BOUNDS), levels)
