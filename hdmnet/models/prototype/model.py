"""Segment by prototypes of a frozen trunk: nothing is trained.

Each position of a query is compared with the supports' mean foreground and mean background, at several levels. The
difference, stretched to [0, 1] in each picture and averaged over the levels, spreads among positions of the query that
are like each other. Where it is above a threshold, there is foreground; the supports themselves have a say in it.

Dimension letters: B episodes, K shots, S supports (B·K), C channels of all levels, H W input pixels, h w feature size,
N = h·w positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hdmnet.models.checks import check_integer, check_positive, check_share
from hdmnet.models.frozen_backbone import FrozenBackbone
from hdmnet.models.method import ApartMethod, Segmentation
from hdmnet.models.similarity import (
    QueryUnits,
    SupportUnits,
    foreground_share,
    level_cosines,
    likeness,
    prototypes,
    spread_among_alike,
    stretch_maps,
    threshold_scores,
    unit_levels,
)
from hdmnet.models.thresholds import choose_thresholds


class Prototype(ApartMethod):
    """Few-shot segmenter without parameters that learn, for any number of supports.

    Args:
        encoder: A backbone with weights, or a base learner that has trained one; frozen here. Of a
            `FrozenBackbone` the weights in the precision of the call are shared.
        num_shots: K of training episodes, which there are none of.
        levels: Which levels of the trunk, see `FrozenBackbone`.
        spread_steps: How often the map is averaged over positions that are alike; 0: never.
        spread_scale: How much more those count that are more alike, see `spread_among_alike`.
        threshold: Of the map, in [0, 1), as far as the supports do not say otherwise.
        threshold_weight: How many supports `threshold` counts as, beside the one that suits the K supports best.

    Raises:
        ValueError: A value is out of range, or the trunk has no such level.
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        num_shots: int = 1,
        levels: Sequence[int] | int | None = 3,
        spread_steps: int = 1,
        spread_scale: float = 10.0,
        threshold: float = 0.75,
        threshold_weight: float = 3.0,
    ) -> None:
        super().__init__()
        check_integer("model.spread_steps", spread_steps, 0, 100)
        check_positive("model.spread_scale", spread_scale)
        check_share("model.threshold", threshold)
        check_positive("model.threshold_weight", threshold_weight)
        self.trunk = FrozenBackbone(encoder, levels=levels)
        self.widths = [info.channels for info in self.trunk.feature_info]
        self.spread_steps, self.spread_scale = spread_steps, spread_scale
        self.threshold, self.threshold_weight = threshold, threshold_weight

    def encode_query(self, images: Tensor) -> QueryUnits:
        """Encode query pictures (B, 3, H, W) float, normalised."""
        return QueryUnits(unit_levels(self.trunk(images)), (images.shape[2], images.shape[3]))

    def encode_support(self, images: Tensor, masks: Tensor) -> SupportUnits:
        """Encode supports (S, 3, H, W) with masks (S, H, W), 0/1/255; the pictures themselves are not masked."""
        units = unit_levels(self.trunk(images))
        return SupportUnits(units, foreground_share(masks, (units.shape[2], units.shape[3])))

    @torch.no_grad()
    def match(self, query: QueryUnits, support: SupportUnits, *, shots: int) -> Segmentation:
        """Segment B encoded queries by B·K encoded supports, those of query 0 first.

        Returns:
            Scores, and the map that the threshold is of, as "prior".
        """
        foreground, background = (mean.unflatten(0, (-1, shots)) for mean in prototypes(support))  # (B, K, C)
        found = self._map(query.units, foreground.mean(1), background.mean(1))  # (B, h, w)
        thresholds = self._thresholds(support, foreground, background)[:, None, None]
        likest = likeness(query.units, support, self.widths, shots=shots)
        scores = threshold_scores(found, thresholds)
        return Segmentation(scores, query.size, maps={"prior": [found]}, likeness=likest)

    def _map(self, units: Tensor, foreground: Tensor, background: Tensor) -> Tensor:
        """Contrast (B, h, w) in [0, 1] of positions (B, C, h, w) with prototypes (B, C) of fore- and background."""
        near, other = (level_cosines(units, vectors, self.widths) for vectors in (foreground, background))
        found = stretch_maps(near - other).mean(1)
        found = spread_among_alike(found, units, self.widths, steps=self.spread_steps, scale=self.spread_scale)
        return stretch_maps(found)

    def _thresholds(self, support: SupportUnits, foreground: Tensor, background: Tensor) -> Tensor:
        """The threshold (B,) of each episode, from its supports' prototypes (B, K, C), see `choose_thresholds`.

        Each support is segmented by the others, a single one by itself.
        """
        shots = foreground.shape[1]
        if shots > 1:
            foreground, background = ((v.sum(1, keepdim=True) - v) / (shots - 1) for v in (foreground, background))
        found = self._map(support.units, foreground.flatten(0, 1), background.flatten(0, 1))
        return choose_thresholds(
            found,
            support.foreground,
            shots=shots,
            default=self.threshold,
            default_weight=self.threshold_weight,
        )
