"""The feature enrichment module (paper Sec. 3.3): query, prototype and prior at several sizes, finest first.

Dimension letters: B batch, C width (256), h w size of the query's features, n_k m_k size of scale k.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdmnet.models.decoding import classifier, conv_relu, refinement
from hdmnet.models.method import upsample


def check_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """The scales as numbers; raises ValueError unless all are fractions in (0, 1] or all are whole sides above 1."""
    numbers = tuple(float(s) for s in scales if isinstance(s, int | float))
    fractions = all(0 < s <= 1 for s in numbers)
    sides = all(s > 1 and s.is_integer() for s in numbers)
    if not numbers or len(numbers) != len(scales) or not (fractions or sides):
        raise ValueError(
            f"model.ppm_scales={list(scales)}: expected sides in feature cells ([60,30,15,8]) or fractions of the "
            "feature's size ([1,0.5,0.25,0.125]), finest first, not both"
        )
    return numbers


def scale_size(scale: float, size: tuple[int, int]) -> tuple[int, int]:
    """Size (n, m) of a scale for features of a size (h, w): a side is taken as it is, a fraction is rounded down."""
    if scale > 1:
        return int(scale), int(scale)
    return max(int(size[0] * scale), 1), max(int(size[1] * scale), 1)


class Scale(nn.Module):
    """One scale: merge, take in the finer scale's features, refine, predict.

    Args:
        channels: C.
        first: The finest scale, which takes in none.
        dropout: Of the classifier.
    """

    def __init__(self, channels: int, *, first: bool, dropout: float) -> None:
        super().__init__()
        self.merge = nn.Sequential(*conv_relu(2 * channels + 1, channels))
        self.inter = None if first else nn.Sequential(*conv_relu(2 * channels, channels))
        self.refine = refinement(channels)
        self.classify = classifier(channels, dropout)

    def forward(self, query: Tensor, prototype: Tensor, prior: Tensor, finer: Tensor | None) -> tuple[Tensor, Tensor]:
        """Enrich the query at this scale.

        Args:
            query: (B, C, n, m) float.
            prototype: (B, C) float.
            prior: (B, 1, n, m) float.
            finer: (B, C, n, m) float, of the scale before.

        Returns:
            Features (B, C, n, m), and logits (B, 2, n, m) of this scale alone.
        """
        expanded = prototype[:, :, None, None].expand_as(query)
        x = self.merge(torch.cat([query, expanded, prior], dim=1))
        if self.inter is not None:
            assert finer is not None
            x = x + self.inter(torch.cat([x, finer], dim=1))
        x = x + self.refine(x)
        return x, self.classify(x)


class FeatureEnrichment(nn.Module):
    """All scales, and the reduction of what they give.

    Args:
        scales: Sides in feature cells or fractions of the feature's size, finest first.
        channels: C.
        dropout: Of the classifiers.

    Raises:
        ValueError: The scales are neither all sides nor all fractions.
    """

    def __init__(self, *, scales: Sequence[float], channels: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        self.sizes = check_scales(scales)
        self.scales = nn.ModuleList(Scale(channels, first=k == 0, dropout=dropout) for k in range(len(self.sizes)))
        self.reduce = nn.Sequential(*conv_relu(len(self.sizes) * channels, channels))
        self.refine = refinement(channels)

    def forward(self, query: Tensor, prototype: Tensor, prior: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Enrich the query's features.

        Args:
            query: (B, C, h, w) float.
            prototype: (B, C) float.
            prior: (B, 1, h, w) float.

        Returns:
            Features (B, C, h, w), and each scale's logits (B, 2, n_k, m_k).
        """
        size = (query.shape[2], query.shape[3])
        enriched: list[Tensor] = []  # (B, C, h, w) each
        logits = []
        for scale, module in zip(self.sizes, self.scales, strict=True):
            own = scale_size(scale, size)
            # As in the release, the finer scale's features come by way of the full size: resized twice.
            finer = upsample(enriched[-1], own) if enriched else None
            features, side = module(F.adaptive_avg_pool2d(query, own), prototype, upsample(prior, own), finer)
            enriched.append(upsample(features, size))
            logits.append(side)
        x = self.reduce(torch.cat(enriched, dim=1))
        return x + self.refine(x), logits
