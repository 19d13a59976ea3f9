"""HDMNet's meta learner on correlation maps alone: no trained part sees a feature.

A variant of this package for few pictures. There, a meta learner that sees features learns its base classes by heart
and falls below its own prior. Here the query is described by how its positions correlate with the supports, a support
by how its own do with itself; pyramid, matching, decoder and distillation are HDMNet's. It starts from the answer of
`model=prototype`, to which the decoder adds.

Dimension letters: B queries, K shots, S supports (B·K), H W input pixels, h w feature size, C width, M_l foreground
positions of a support at stage l.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from hdmnet.models.checks import check_share, check_weight
from hdmnet.models.correlation_maps import SPREAD_LEVELS, SUPPORT_MAPS, support_maps
from hdmnet.models.decoding import conv_relu
from hdmnet.models.folding import BATCH_NORMS
from hdmnet.models.frozen_backbone import FrozenBackbone
from hdmnet.models.hdmnet.decoder import Decoder
from hdmnet.models.hdmnet.matching import CorrelationMatching
from hdmnet.models.hdmnet.pyramid import Pyramid
from hdmnet.models.method import ApartMethod, Segmentation
from hdmnet.models.packed import PackedRows, find_foreground
from hdmnet.models.similarity import (
    PROTOTYPE_THRESHOLD,
    QueryUnits,
    SupportUnits,
    blend,
    foreground_share,
    threshold_scores,
    unit_levels,
)


@dataclass
class MatchedSupports(SupportUnits):
    """S supports.

    Attributes:
        stages: One a matching stage, finest first: S items (M_l, C) float, the pyramid's features of the foreground.
    """

    stages: list[PackedRows]


class HDMNetOnCorrelations(ApartMethod):
    """Few-shot segmenter; the same weights serve any number of supports.

    Args:
        encoder: A backbone, or a base learner that has trained one; frozen here.
        num_shots: K of the training episodes.
        levels: Which levels of the trunk, see `FrozenBackbone`.
        num_stages: L, matching stages (1 to 4).
        channels: C.
        dropout: In pyramid and matching.
        matching: Of `CorrelationMatching`.
        untrained_share: How much the probability counts that it starts from, beside that of the decoder; 0: nothing.
            In training it does not count.
        training_cache_gb: Memory, 10^9 bytes, for the trunk's features of training pictures, see `FrozenBackbone`.

    Raises:
        ValueError: A value is out of range, or the trunk has no such level.
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        num_shots: int = 1,
        levels: Sequence[int] | int | None = None,
        num_stages: int = 3,
        channels: int = 64,
        dropout: float = 0.1,
        matching: Mapping[str, Any] | None = None,
        untrained_share: float = 0.5,
        training_cache_gb: float = 2.0,
    ) -> None:
        super().__init__()
        check_share("model.dropout", dropout)
        check_share("model.untrained_share", untrained_share)
        check_weight("model.training_cache_gb", training_cache_gb)
        self.trunk = FrozenBackbone(encoder, levels=levels, cache_gb=training_cache_gb)
        self.widths = [info.channels for info in self.trunk.feature_info]
        self.untrained_share = untrained_share
        self.embed = nn.Sequential(*conv_relu(SUPPORT_MAPS * len(self.widths) + 1, channels))
        self.pyramid = Pyramid(channels, num_stages=num_stages, dropout=dropout)
        self.matching = nn.ModuleList(
            CorrelationMatching(channels, dropout=dropout, **{"num_shots": num_shots, **(matching or {})})
            for _ in range(num_stages)
        )
        self.decoder = Decoder(channels, num_stages=num_stages)
        # What it adds is next to nothing, before it is trained.
        last = cast("nn.Conv2d", self.decoder.head[-1])
        nn.init.normal_(last.weight, std=1e-3)
        nn.init.zeros_(cast("Tensor", last.bias))
        for module in self.modules():
            if isinstance(module, BATCH_NORMS):
                cast("Any", module).stays_in_eval = True  # as in HDMNet (`norm: fixed`)
        self.train(self.training)

    def encode_query(self, images: Tensor) -> QueryUnits:
        """Encode query pictures (B, 3, H, W) float, normalised."""
        units = unit_levels(self.trunk(images, keep=self.training))
        return QueryUnits(units, (images.shape[2], images.shape[3]))

    def encode_support(self, images: Tensor, masks: Tensor) -> MatchedSupports:
        """Encode supports (S, 3, H, W) with masks (S, H, W), 0/1/255; the pictures themselves are not masked."""
        units = unit_levels(self.trunk(images, keep=self.training))
        own = SupportUnits(units, foreground_share(masks, (units.shape[2], units.shape[3])))
        with torch.no_grad():
            maps = support_maps(units, own, self.widths, shots=1)
        mask = (masks == 1).to(images.dtype)
        stages = self.pyramid(self.embed(maps))
        rows = [find_foreground(mask, (s.shape[2], s.shape[3])).gather(s) for s in stages]
        return MatchedSupports(units, own.foreground, rows)

    def match(self, query: QueryUnits, support: MatchedSupports, *, shots: int) -> Segmentation:
        """Segment B encoded queries by B·K encoded supports, those of query 0 first.

        Returns:
            Scores; "correlation" maps by stage, and as "prior" the maps that the matching merges in: of the prototypes,
            and of the best matches.
        """
        with torch.no_grad():
            maps = support_maps(query.units, support, self.widths, shots=shots)
            best = maps[:, -1 - len(self.widths) : -1][:, -SPREAD_LEVELS:].mean(1)
            prior = torch.stack([maps[:, -1], best], dim=1)  # (B, 2, h, w)
            untrained = threshold_scores(maps[:, -1], PROTOTYPE_THRESHOLD)
        matched, correlations = [], []
        for layer, own, rows in zip(self.matching, self.pyramid(self.embed(maps)), support.stages, strict=True):
            enriched, correlation = cast("CorrelationMatching", layer).match(own, rows, prior, shots=shots)
            matched.append(enriched)
            correlations.append(correlation)
        scores = untrained + self.decoder(matched)
        if not self.training and self.untrained_share:
            scores = blend(scores, untrained, self.untrained_share)
        return Segmentation(scores, query.size, maps={"correlation": correlations, "prior": list(prior.unbind(1))})
