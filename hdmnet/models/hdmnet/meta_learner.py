"""The meta learner: HDMNet proper, from mid-level features and priors to logits and correlation maps (paper Fig. 3).

Dimension letters: B queries, K shots, S supports (B·K), H W input pixels, C width, C_r reduced channels, C_2 and C_3
channels of layers 2 and 3, h_1 w_1 feature size, h_l w_l size of stage l, M_l foreground positions of one support at
stage l.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdmnet.models.checks import check_choice, check_share
from hdmnet.models.hdmnet.decoder import Decoder
from hdmnet.models.hdmnet.matching import CorrelationMatching
from hdmnet.models.hdmnet.pyramid import STRIDES, Pyramid
from hdmnet.models.mid_level import Reduction, masked_average
from hdmnet.models.packed import Foreground, PackedRows, PaddedForeground, Rows, find_foreground

PRIOR_WEIGHT = 10.0  # of the prior masks where they join the query's features; the release uses it only there
_OWN = {"channels", "num_priors", "dropout"}  # of a matching: given by the meta learner
_MATCHING = [name for name in inspect.signature(CorrelationMatching).parameters if name not in _OWN]


@dataclass
class SupportMaps:
    """Supports that are yet to go through the pyramid, together with the queries: one pass for both.

    Attributes:
        merged: (S, C, h_1, w_1) float, from `MetaLearner.embed_support`.
        foregrounds: Of the stages, finest first.
    """

    merged: Tensor
    foregrounds: list[PaddedForeground]


class MetaLearner(nn.Module):
    """HDMNet proper: from mid-level features and prior masks to foreground logits and correlation maps.

    Its parts are called one after the other: `reduce_query` on the query, `reduce_support`, `embed_support` and
    `support_stages` on each support apart, `embed_query` and `match` on both.

    Args:
        mid_channels: Channels of layer 2 and layer 3 together.
        num_stages: L, matching stages (1 to 4).
        channels: Width of pyramid, matching and decoder.
        reduced_channels: Width of the reduced mid-level features.
        dropout: In pyramid and matching.
        mid_dropout: Of whole channels of the reduced mid-level features.
        matching: Keyword arguments of `CorrelationMatching` (heads, t of Eq. 4, kernel of the merge).
    """

    def __init__(
        self,
        *,
        mid_channels: int,
        num_stages: int = 3,
        channels: int = 64,
        reduced_channels: int = 256,
        dropout: float = 0.1,
        mid_dropout: float = 0.5,
        matching: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_share("model.dropout", dropout)
        check_share("model.mid_dropout", mid_dropout)
        for key in matching or {}:
            check_choice("key of model.matching", key, _MATCHING)
        num_priors = 2
        self.reduced_channels = reduced_channels
        self.down_query = Reduction(mid_channels, reduced_channels, mid_dropout)
        self.down_support = Reduction(mid_channels, reduced_channels, mid_dropout)
        self.query_merge = Reduction(2 * reduced_channels + num_priors, channels)
        self.support_merge = Reduction(2 * reduced_channels, channels)
        self.pyramid = Pyramid(channels, num_stages=num_stages, dropout=dropout)
        self.matching = nn.ModuleList(
            CorrelationMatching(channels, num_priors=num_priors, dropout=dropout, **(matching or {}))
            for _ in range(num_stages)
        )
        self.decoder = Decoder(channels, num_stages=num_stages)
        self.to(memory_format=torch.channels_last)  # as the trunk's features are: nothing is rearranged on the way

    def reduce_query(self, layer3: Tensor, layer2: Tensor) -> Tensor:
        """Reduce mid-level features (B, C_3, h_1, w_1) and (B, C_2, h_1, w_1) → (B, C_r, h_1, w_1)."""
        return self.down_query.convolve(layer3, layer2).relu_()

    def reduce_support(self, layer3: Tensor, layer2: Tensor) -> Tensor:
        """As `reduce_query`, of masked supports: (S, C_r, h_1, w_1)."""
        return self.down_support.convolve(layer3, layer2).relu_()

    def query_share(self, reduced: Tensor) -> Tensor:
        """The query's own share in its merge, before the ReLU: (B, C_r, h_1, w_1) → (B, C, h_1, w_1)."""
        return self.query_merge.convolve(self.down_query.dropout(reduced))

    def embed_support(self, reduced: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Merge each support with its prototype.

        Args:
            reduced: (S, C_r, h_1, w_1) float, from `reduce_support`.
            mask: (S, H, W) float, 1 on foreground, 0 elsewhere.

        Returns:
            Merged features (S, C, h_1, w_1) and prototypes (S, C_r).
        """
        reduced = self.down_support.dropout(reduced)
        soft_mask = F.interpolate(mask[:, None], reduced.shape[2:], mode="bilinear", align_corners=True)
        prototypes = masked_average(reduced, soft_mask)  # (S, C_r, 1, 1)
        return self.support_merge.convolve(reduced, prototypes).relu_(), prototypes.flatten(1)

    def embed_query(self, share: Tensor, prototypes: Tensor, prior: Tensor) -> Tensor:
        """Merge the query with the supports' mean prototype and the prior.

        Args:
            share: (B, C, h_1, w_1) float, from `query_share`.
            prototypes: (B, K, C_r) float.
            prior: (B, 2, h, w) float.

        Returns:
            (B, C, h_1, w_1) float.
        """
        prior = F.interpolate(prior, share.shape[2:], mode="bilinear", align_corners=True)
        prior = (PRIOR_WEIGHT * prior).contiguous(memory_format=torch.channels_last)
        prototype = prototypes.mean(1)[:, :, None, None]
        return (share + self.query_merge.convolve(prototype, prior, first=self.reduced_channels)).relu_()

    def stage_sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Sizes (h_l, w_l) of the stages, finest first, of features of a size (h_1, w_1)."""
        strides = accumulate(STRIDES[: len(self.matching)], operator.mul)
        return [(-(-size[0] // stride), -(-size[1] // stride)) for stride in strides]

    def support_stages(
        self, merged: Tensor, mask: Tensor, foregrounds: Sequence[Foreground] | None = None
    ) -> list[PackedRows]:
        """The pyramid of S supports, of which the foreground is kept.

        Args:
            merged: (S, C, h_1, w_1) float, from `embed_support`.
            mask: (S, H, W) float, 1 on foreground, 0 elsewhere.
            foregrounds: Of the stages, for who has them already.

        Returns:
            S items (M_l, C) a stage.
        """
        stages = self.pyramid(merged)
        if foregrounds is None:
            foregrounds = [find_foreground(mask, (s.shape[2], s.shape[3])) for s in stages]
        return [foreground.gather(s) for foreground, s in zip(foregrounds, stages, strict=True)]

    def match(
        self, query: Tensor, support: list[PackedRows] | SupportMaps, prior: Tensor, *, shots: int
    ) -> tuple[Tensor, list[Tensor]]:
        """Match at every stage and decode.

        Args:
            query: (B, C, h_1, w_1) float, from `embed_query`.
            support: B·K items a stage, from `support_stages`, those of query 0 first; or what they are made of.
            prior: (B, 2, h, w) float.
            shots: K.

        Returns:
            Logits (B, 2, h_1, w_1) and correlation maps, finest first, each (B, h_l, w_l).
        """
        matched, maps = [], []
        queries: list[Tensor]
        rows: Sequence[Rows]
        if isinstance(support, SupportMaps):
            stages = self.pyramid(torch.cat([query, support.merged]))
            queries = [x[: len(query)] for x in stages]
            rows = [own.gather(x[len(query) :]) for own, x in zip(support.foregrounds, stages, strict=True)]
        else:
            queries, rows = self.pyramid(query), support
        for matching, q, s in zip(self.matching, queries, rows, strict=True):
            enriched, correlation = cast("CorrelationMatching", matching).match(q, s, prior, shots=shots)
            matched.append(enriched)
            maps.append(correlation)
        return self.decoder(matched), maps
