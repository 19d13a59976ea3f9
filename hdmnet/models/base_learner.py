"""The base learner (a PSPNet trained on the base classes) and the frozen trunk made of it (reference: paper Sec. 4.1).

Dimension letters: B batch, H W input pixels, h w feature size, C channels of layer 4, C_5 of "feature 5" (512), N base
classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdmnet.models.backbone import Backbone, Level

FEATURE_CHANNELS = 512  # of "feature 5", the base learner's last feature


class PyramidPooling(nn.Module):
    """Pyramid pooling of PSPNet: means over 1, 2, 3, 6 bins a side, concatenated with the input.

    Args:
        channels: C of the input; every bin adds C // 4.
        bins: Bins a side.
    """

    def __init__(self, channels: int, bins: tuple[int, ...] = (1, 2, 3, 6)) -> None:
        super().__init__()
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
        self.pyramid_pooling = PyramidPooling(backbone.levels[2].channels)
        self.reduce = nn.Sequential(
            nn.Conv2d(self.pyramid_pooling.out_channels, feature_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(feature_channels),
        )
        self.classifier = nn.Sequential(nn.ReLU(), nn.Dropout2d(dropout), nn.Conv2d(feature_channels, 1 + num_base, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float, normalised → logits (B, 1 + N, H, W)."""
        layer4 = self.backbone(images)[2]
        logits = self.classifier(self.reduce(self.pyramid_pooling(layer4)))
        return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=True)


@dataclass
class TrunkFeatures:
    """What the frozen trunk says of B pictures; all float.

    Attributes:
        layer2: (B, C_2, h_3, w_3), at the size of layer 3 (VGG-16: resized down to it).
        layer3: (B, C_3, h_3, w_3).
        layer4: (B, C_4, h_4, w_4).
        base_feature: (B, C_5, h_4, w_4), "feature 5": before the base learner's ReLU.
    """

    layer2: Tensor
    layer3: Tensor
    layer4: Tensor
    base_feature: Tensor


class FrozenTrunk(nn.Module):
    """Backbone and base learner, frozen: no gradient, no running statistic that moves, whatever ``train()`` says.

    Args:
        base_learner: The trained base learner; its parameters are set to need no gradient.
    """

    def __init__(self, base_learner: BaseLearner) -> None:
        super().__init__()
        self.base_learner = base_learner.requires_grad_(False)
        self.train(False)

    @property
    def levels(self) -> tuple[Level, Level, Level]:
        """Channels and strides of layer2, layer3, layer4."""
        return self.base_learner.backbone.levels

    def train(self, mode: bool = True) -> FrozenTrunk:
        """Stay in evaluation mode: the trunk's batch normalisation and dropout never switch on."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> TrunkFeatures:
        """Encode pictures.

        Args:
            images: (B, 3, H, W) float, normalised.

        Returns:
            The features, none of which needs a gradient.
        """
        learner = self.base_learner
        layer2, layer3, layer4 = learner.backbone(images)
        if layer2.shape[-2:] != layer3.shape[-2:]:
            layer2 = F.interpolate(layer2, layer3.shape[-2:], mode="bilinear", align_corners=True)
        return TrunkFeatures(layer2, layer3, layer4, learner.reduce(learner.pyramid_pooling(layer4)))

    @torch.no_grad()
    def classify(self, base_feature: Tensor) -> Tensor:
        """Base-class logits (B, 1 + N, h, w) of feature 5 (B, C_5, h, w)."""
        logits: Tensor = self.base_learner.classifier(base_feature)
        return logits
