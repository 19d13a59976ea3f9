"""MobileNetV2, dilated to stride 8."""

from __future__ import annotations

import torchvision

from hdmnet.models.backbones.base import FeatureInfo, SequentialBackbone
from hdmnet.models.backbones.resnet import dilate
from hdmnet.models.backbones.vgg import cut

# Strides of the groups: 0-1 /2, 2-3 /4, 4-6 /8, 7-13 /16, 14-17 /32 (the 1280-channel head, 18, is left out).
MOBILENET_BOUNDS = (0, 2, 4, 7, 14, 18)


def build_mobilenet_v2() -> SequentialBackbone:
    """MobileNetV2 without its head, dilated to stride 8."""
    features = torchvision.models.mobilenet_v2(weights=None).features
    parts = cut(features, MOBILENET_BOUNDS)
    dilate(parts[3], 2)
    dilate(parts[4], 4)
    return SequentialBackbone(parts, [FeatureInfo(32, 8), FeatureInfo(96, 8), FeatureInfo(320, 8)])
