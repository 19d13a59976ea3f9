"""MobileNetV2, by default dilated to stride 8."""

from __future__ import annotations

import torchvision

from hdmnet.models.backbones.base import FeatureInfo, SequentialBackbone
from hdmnet.models.backbones.resnet import dilate_layers
from hdmnet.models.backbones.vgg import cut

# Strides of the groups: 0-1 /2, 2-3 /4, 4-6 /8, 7-13 /16, 14-17 /32 (the 1280-channel head, 18, is left out).
MOBILENET_BOUNDS = (0, 2, 4, 7, 14, 18)


def build_mobilenet_v2(dilation: str | None = "release") -> SequentialBackbone:
    """MobileNetV2 without its head; `dilation` is one of a ResNet's `DILATIONS`."""
    features = torchvision.models.mobilenet_v2(weights=None).features
    parts = cut(features, MOBILENET_BOUNDS)
    strides = (4, 8, *dilate_layers(parts[3], parts[4], dilation))
    levels = [FeatureInfo(width, stride) for width, stride in zip((24, 32, 96, 320), strides, strict=True)]
    return SequentialBackbone(parts, levels)
