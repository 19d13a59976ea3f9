"""DCAMA whole (Shi et al., ECCV 2022): masks of the supports, aggregated by attention at every block of the trunk.

Dimension letters: B episodes, K shots, S supports (B·K), H W input pixels, C_l channels of level l, h w its size, N
positions of a level.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import cast

import torch
from torch import Tensor, nn

from hdmnet.models.batch import Batch
from hdmnet.models.dcama.attention import MaskAggregation
from hdmnet.models.dcama.decoder import MaskDecoder
from hdmnet.models.frozen_backbone import FrozenBackbone
from hdmnet.models.method import ApartMethod, Segmentation, upsample


@dataclass
class QueryFeatures(Batch):
    """B queries.

    Attributes:
        tokens: (B, N, C_l) float of each level but the finest stage's, projected.
        skips: (B, C_l, h, w) float, the last level of the first stage that is matched and of the still finer one.
        sizes: (h, w) of each stage that is matched, finest first.
        size: (H, W) of the pictures.
    """

    tokens: list[Tensor]
    skips: list[Tensor]
    sizes: tuple[tuple[int, int], ...]
    size: tuple[int, int]


@dataclass
class SupportFeatures(Batch):
    """S supports.

    Attributes:
        tokens: (S, N, C_l) float, as of the queries.
        masks: (S, N) float in [0, 1] of each stage that is matched, finest first.
        skips: (S, C_l, h, w) float, as of the queries.
    """

    tokens: list[Tensor]
    masks: list[Tensor]
    skips: list[Tensor]


class DCAMA(ApartMethod):
    """Few-shot segmenter; the same weights serve any number of supports.

    Args:
        encoder: A backbone whose levels are the blocks of its stages, or a base learner that has trained one. Where the
            blocks of a stage have several widths those as wide as its last are matched: they share a projection.
        num_shots: K of the training episodes, of which nothing here depends.
        num_heads: Of the attention.
        dropout: Of features with their position code, and of the attention.

    Raises:
        ValueError: The backbone has a single stage, or the heads do not divide its channels.
    """

    def __init__(self, *, encoder: nn.Module, num_shots: int = 1, num_heads: int = 8, dropout: float = 0.5) -> None:
        super().__init__()
        self.trunk = FrozenBackbone(encoder, one_size=False)
        first, *matched = self.trunk.stages
        if not matched:
            raise ValueError("DCAMA: the backbone's features are of one stage; expected a fine one and others to match")
        widths = [[level.channels for level in levels] for levels in matched]
        self.places = [[place for place, width in enumerate(own) if width == own[-1]] for own in widths]
        self.attention = nn.ModuleList(MaskAggregation(own[-1], num_heads=num_heads, dropout=dropout) for own in widths)
        stages = [(len(places), levels[0].stride) for places, levels in zip(self.places, matched, strict=True)]
        self.decoder = MaskDecoder(stages, (matched[0][-1].channels, first[-1].channels))

    def encode_query(self, images: Tensor) -> QueryFeatures:
        """Encode query pictures (B, 3, H, W) float, normalised."""
        tokens, skips, sizes = self._encode(images, "query")
        return QueryFeatures(tokens, skips, sizes, (images.shape[2], images.shape[3]))

    def encode_support(self, images: Tensor, masks: Tensor) -> SupportFeatures:
        """Encode supports (S, 3, H, W) with masks (S, H, W), 0/1/255; neither pictures nor features are masked."""
        tokens, skips, sizes = self._encode(images, "key")
        mask = (masks == 1).to(images.dtype)[:, None]
        return SupportFeatures(tokens, [upsample(mask, size).flatten(1) for size in sizes], skips)

    def _encode(self, images: Tensor, side: str) -> tuple[list[Tensor], list[Tensor], tuple[tuple[int, int], ...]]:
        """Tokens, skips and sizes, as `QueryFeatures` says, of pictures (B, 3, H, W) as "query" or "key"."""
        first, *matched = self.trunk.by_stage(self.trunk(images))
        tokens = [
            attention.encode(stage[place], getattr(attention, side))
            for attention, stage, places in zip(
                cast("Iterable[MaskAggregation]", self.attention), matched, self.places, strict=True
            )
            for place in places
        ]
        sizes = tuple((stage[0].shape[2], stage[0].shape[3]) for stage in matched)
        return tokens, [matched[0][-1], first[-1]], sizes

    def match(self, query: QueryFeatures, support: SupportFeatures, *, shots: int) -> Segmentation:
        """Segment B encoded queries by B·K encoded supports, those of query 0 first.

        Returns:
            Scores, and as maps the aggregated masks, the mean over a stage's levels.
        """
        pairs = iter(zip(query.tokens, support.tokens, strict=True))
        aggregated = []
        for attention, places, masks, size in zip(self.attention, self.places, support.masks, query.sizes, strict=True):
            # The positions of all supports of an episode together: one softmax over them.
            values = masks.unflatten(0, (-1, shots)).flatten(1)  # (B, K·N)
            found = [
                attention(queries, keys.unflatten(0, (-1, shots)).flatten(1, 2), values)
                for queries, keys in islice(pairs, len(places))
            ]
            aggregated.append(torch.stack(found, dim=1).unflatten(2, size))  # (B, L, h, w)
        skips = [features.unflatten(0, (-1, shots)).amax(1) for features in support.skips]
        coarse, fine = zip(query.skips, skips, strict=True)
        return Segmentation(
            self.decoder(aggregated, coarse, fine),
            query.size,
            maps={"aggregated": [stage.detach().mean(1) for stage in aggregated]},
        )
