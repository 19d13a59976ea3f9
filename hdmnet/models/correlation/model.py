"""Segment by correlation maps alone: no trained part sees a feature.

A method of this package. With few pictures a head that sees features learns its base classes by heart; one that sees
only how a query's positions correlate with the supports, at several levels of a frozen trunk, cannot. A first head
looks at those maps; a second one also at what the query has in common with the positions that the first one is sure of
(self-support, Fan et al., ECCV 2022).

Dimension letters: B episodes, K shots, S supports (B·K), H W input pixels, h w feature size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hdmnet.models.checks import check_integer, check_share, check_switch, check_weight
from hdmnet.models.correlation.head import GROUPS, MapHead
from hdmnet.models.correlation_maps import SELF_MAPS, SUPPORT_MAPS, self_maps, support_maps
from hdmnet.models.frozen_backbone import FrozenBackbone
from hdmnet.models.method import ApartMethod, Segmentation
from hdmnet.models.similarity import (
    PROTOTYPE_THRESHOLD,
    QueryUnits,
    SupportUnits,
    blend,
    foreground_share,
    likeness,
    threshold_scores,
    unit_levels,
)


class Correlation(ApartMethod):
    """Few-shot segmenter; the same weights serve any number of supports.

    Args:
        encoder: A backbone, or a base learner that has trained one; frozen here.
        num_shots: K of the training episodes, of which nothing here depends.
        levels: Which levels of the trunk, see `FrozenBackbone`.
        width: Channels of the heads.
        map_dropout: Share of the maps that a head does not see in a training step.
        self_support: Whether there is the second head; else the first one's prediction is final.
        untrained_share: How much the probability counts with which the first head begins, beside that of the last one;
            0: nothing. In training it does not count.
        training_cache_gb: Memory, 10^9 bytes, for the trunk's features of training pictures, which are encoded once as
            long as they come again unchanged (augment=none|flip); on CPUs only.

    Raises:
        ValueError: A value is out of range, or the trunk has no such level.
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        num_shots: int = 1,
        levels: Sequence[int] | int | None = None,
        width: int = 32,
        map_dropout: float = 0.1,
        self_support: bool = True,
        untrained_share: float = 0.5,
        training_cache_gb: float = 2.0,
    ) -> None:
        super().__init__()
        check_integer("model.width", width, GROUPS, 1024)
        check_share("model.map_dropout", map_dropout)
        check_switch("model.self_support", self_support)
        check_share("model.untrained_share", untrained_share)
        check_weight("model.training_cache_gb", training_cache_gb)
        if width % GROUPS:
            raise ValueError(f"model.width={width}: expected a multiple of {GROUPS}")
        self.trunk = FrozenBackbone(encoder, levels=levels, cache_gb=training_cache_gb)
        self.widths = [info.channels for info in self.trunk.feature_info]
        self.untrained_share = untrained_share
        num_maps = SUPPORT_MAPS * len(self.widths) + 1
        self.first = MapHead(num_maps, width=width, dropout=map_dropout)
        num_more = 1 + SELF_MAPS * len(self.widths)
        self.second = MapHead(num_maps + num_more, width=width, dropout=map_dropout) if self_support else None

    def encode_query(self, images: Tensor) -> QueryUnits:
        """Encode query pictures (B, 3, H, W) float, normalised."""
        units = unit_levels(self.trunk(images, keep=self.training))
        return QueryUnits(units, (images.shape[2], images.shape[3]))

    def encode_support(self, images: Tensor, masks: Tensor) -> SupportUnits:
        """Encode supports (S, 3, H, W) with masks (S, H, W), 0/1/255; the pictures themselves are not masked."""
        units = unit_levels(self.trunk(images, keep=self.training))
        return SupportUnits(units, foreground_share(masks, (units.shape[2], units.shape[3])))

    def match(self, query: QueryUnits, support: SupportUnits, *, shots: int) -> Segmentation:
        """Segment B encoded queries by B·K encoded supports, those of query 0 first.

        Returns:
            Scores; the first head's as auxiliary prediction "first", where there is a second one; "prior", the
            contrast of the prototypes, a map a level.
        """
        with torch.no_grad():
            maps = support_maps(query.units, support, self.widths, shots=shots)
            untrained = threshold_scores(maps[:, -1], PROTOTYPE_THRESHOLD)
            likest = None if self.training else likeness(query.units, support, self.widths, shots=shots)
        scores = self.first(maps, untrained)
        priors = list(maps[:, 2 * len(self.widths) : 3 * len(self.widths)].unbind(1))
        shown = {"prior": priors}
        if self.second is None:
            return Segmentation(self._answer(scores, untrained), query.size, maps=shown, likeness=likest)
        with torch.no_grad():
            own = self_maps(query.units, scores.float().softmax(1)[:, 1], self.widths)
        second = self.second(torch.cat([maps, own], dim=1), scores.detach())
        answer = self._answer(second, untrained)
        return Segmentation(answer, query.size, auxiliary={"first": scores}, maps=shown, likeness=likest)

    def _answer(self, scores: Tensor, untrained: Tensor) -> Tensor:
        """Logits (B, 2, h, w): in training the head's, else of the mean of both probabilities (`untrained_share`)."""
        if self.training or not self.untrained_share:
            return scores
        return blend(scores, untrained, self.untrained_share)
