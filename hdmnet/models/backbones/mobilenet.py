"""MobileNetV2, dilated to stride 8."""

from __future__ import annotations

import torchvision

from hdmnet.models.backbones.base import Backbone, Level
from hdmnet.models.backbones.resnet import dilate
from hdmnet.models.backbones.vgg import cut

# Strides of the groups: 0-1 /2, 2-3 /4, 4-6 /8, 7-13 /16, 14-17 /32 (the 1280-channel head, 18, is left out).
MOBILENET_BOUNDS = (0, 2, 4, 7, 14, 18)


def build_mobilenet_v2() -> Backbone:
    """MobileNetV2 without its head, dilated to stride 8."""
    features = torchvision.models.mobilenet_v2(weights=None).features
    parts = cut(features, MOBILENET_BOUNDS)
    dilate(parts[3], 2)
    dilate(parts[4], 4)
    return Backbone(parts=parts, levels=(Level(32, 8), Level(96, 8), Level(320, 8)))
