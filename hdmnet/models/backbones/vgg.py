"""VGG-16: with batch normalisation as PFENet, BAM and HDMNet have it, without as HSNet and PANet do."""

from __future__ import annotations

from itertools import pairwise

from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from hdmnet.models.backbones.base import FeatureInfo, SequentialBackbone

VGG16_BOUNDS = (0, 7, 14, 24, 34, 43)  # after each pool; the last pool is dropped
# Without batch normalisation, whose dilation is one of these. "release": PANet's, stride 8: a layer ends in its pool,
# the last pool is dropped. None: torchvision's, as HSNet has it: a layer starts with its pool, so that layers 1 to 4
# have a ResNet's strides; layer 4 is the last pool.
PLAIN_BOUNDS = {"release": (0, 5, 10, 17, 24, 30), None: (0, 9, 16, 23, 30, 31)}


def cut(features: nn.Sequential, bounds: tuple[int, ...]) -> list[nn.Module]:
    """Cut a Sequential into parts, each numbered from 0 (a slice of a Sequential would keep the old numbers)."""
    layers = list(features)
    return [nn.Sequential(*layers[low:high]) for low, high in pairwise(bounds)]


def _features(batch_norm: bool) -> nn.Sequential:
    # Not by `vgg16()`: its classifier alone would be 124 million parameters to initialise and throw away.
    features: nn.Sequential = make_layers(cfgs["D"], batch_norm=batch_norm)
    for module in features:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.constant_(module.bias, 0.0)  # type: ignore[arg-type]  # a Conv2d's bias may be None; these have one
    return features


def build_vgg16() -> SequentialBackbone:
    """VGG-16 with batch normalisation and ceil-mode pools; layers 3 and 4 at stride 16."""
    features = _features(batch_norm=True)
    for module in features:
        if isinstance(module, nn.MaxPool2d):
            module.ceil_mode = True
    levels = [FeatureInfo(128, 4), FeatureInfo(256, 8), FeatureInfo(512, 16), FeatureInfo(512, 16)]
    return SequentialBackbone(cut(features, VGG16_BOUNDS), levels)


def build_vgg16_plain(dilation: str | None = "release") -> SequentialBackbone:
    """VGG-16 without batch normalisation.

    Args:
        dilation: "release": PANet's, pools 3×3 with padding, the fourth without stride, the last three convolutions
            dilated by 2; None: torchvision's pools, which round the size down.
    """
    features = _features(batch_norm=False)
    if dilation is None:
        channels, strides = (256, 512, 512, 512), (4, 8, 16, 32)
    else:
        channels, strides = (128, 256, 512, 512), (4, 8, 8, 8)
        for i, module in enumerate(features):
            if isinstance(module, nn.MaxPool2d):
                module.kernel_size, module.stride, module.padding = 3, (1 if i == 23 else 2), 1
            elif i > 23 and isinstance(module, nn.Conv2d):
                module.dilation = module.padding = (2, 2)
    levels = [FeatureInfo(width, stride) for width, stride in zip(channels, strides, strict=True)]
    return SequentialBackbone(cut(features, PLAIN_BOUNDS[dilation]), levels)
