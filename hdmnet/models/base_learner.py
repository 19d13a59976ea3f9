"""The base learner: a PSPNet trained on the base classes (paper Sec. 4.1).

Dimension letters: B batch, H W input pixels, h w feature size, C channels of layer 4, C_5 of "feature 5" (512), N base
classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdmnet.models.backbones.base import LAYER3, Backbone, encode

FEATURE_CHANNELS = 512  # of "feature 5", the base learner's last feature


class PyramidPooling(nn.Module):
    """Pyramid pooling of PSPNet: means over 1, 2, 3, 6 bins a side, concatenated with the input.

    Args:
        channels: C of the input; every bin adds C // 4.
        bins: Bins a side.
    """

    def __init__(self, channels: int, bins: tuple[int, ...] = (1, 2, 3, 6)) -> None:
        super().__init__()
        self.bins = bins
        reduced = channels // len(bins)
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(size),
                nn.Conv2d(channels, reduced, 1, bias=False),
                nn.BatchNorm2d(reduced),
                nn.ReLU(inplace=True),
            )
            for size in bins
        )
        self.out_channels = channels + reduced * len(bins)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) → (B, C + 4·(C // 4), h, w)."""
        size = x.shape[-2:]
        pooled = [F.interpolate(b(x), size, mode="bilinear", align_corners=True) for b in self.branches]
        return torch.cat([x, *pooled], dim=1)


class BaseLearner(nn.Module):
    """PSPNet over the backbone's layer 4, segmenting the base classes.

    Args:
        backbone: The encoder.
        num_base: Number of base classes N; class 0 of the output is the background.
        feature_channels: Channels of feature 5.
        dropout: Of whole channels, before the classifier.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        num_base: int,
        feature_channels: int = FEATURE_CHANNELS,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_base = num_base
        self.feature_channels = feature_channels
        self.pyramid_pooling = PyramidPooling(backbone.feature_info[-1].channels)
        self.reduce = nn.Sequential(
            nn.Conv2d(self.pyramid_pooling.out_channels, feature_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(feature_channels),
        )
        self.classifier = nn.Sequential(nn.ReLU(), nn.Dropout2d(dropout), nn.Conv2d(feature_channels, 1 + num_base, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float, normalised → logits (B, 1 + N, H, W)."""
        layer4 = encode(self.backbone, images, size_of=LAYER3)[-1]
        # A CPU takes upsampling and cross entropy of a plain layout in two thirds of the time of channels-last.
        logits = self.classifier(self.reduce(self.pyramid_pooling(layer4))).contiguous()
        return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=True)
