"""SSP whole (Fan et al., ECCV 2022): prototypes of the supports, then of the query itself; only the trunk learns.

Dimension letters: B episodes, K shots, S supports (B·K), H W input pixels, C channels, h w feature size, N = h·w.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hdmnet.models.checks import check_switch
from hdmnet.models.class_prototypes import ClassPrototypes, PrototypeMethod, QueryMap, cosines, to_rows, unit
from hdmnet.models.method import Segmentation
from hdmnet.models.ssp.self_support import SCALE, pool, score, self_support


@dataclass
class SSPSegmentation(Segmentation):
    """An answer, with what the loss needs beside it in training (else None).

    Attributes:
        query_features: (B, C, h, w) float.
        support_scores: (B·K, 2, h, w) float, logits of each support by its own prototypes.
        support_masks: (B·K, H, W), 0/1/255.
    """

    query_features: Tensor | None = None
    support_scores: Tensor | None = None
    support_masks: Tensor | None = None


class SSP(PrototypeMethod):
    """Few-shot segmenter whose trunk is all that learns; any number of supports.

    Args:
        encoder: As of `PrototypeMethod`.
        num_shots: K of the training episodes, of which nothing here depends.
        refine: Support the query by itself a second time, as all published models do.

    Raises:
        ValueError: `refine` is neither true nor false.
    """

    def __init__(self, *, encoder: nn.Module, num_shots: int = 1, refine: bool = True) -> None:
        super().__init__(encoder)
        check_switch("model.refine", refine)
        self.refine = refine

    def forward(
        self, query_image: Tensor, support_images: Tensor, support_masks: Tensor, class_index: Tensor | None = None
    ) -> SSPSegmentation:
        """Segment query pictures (B, 3, H, W), as `FewShotMethod.forward` says; `class_index` is not used."""
        query, masks = self.encode_query(query_image), support_masks.flatten(0, 1)
        features = self.encode(support_images.flatten(0, 1))
        support = ClassPrototypes(self.pool(features, masks))
        output = self.match(query, support, shots=support_images.shape[1])
        if self.training:
            output.query_features, output.support_masks = query.features, masks
            output.support_scores = SCALE * cosines(features, support.vectors)
        return output

    def pool(self, features: Tensor, masks: Tensor) -> Tensor:
        """As of `PrototypeMethod`; 255 is in neither."""
        return pool(features, masks)

    def match(self, query: QueryMap, support: ClassPrototypes, *, shots: int) -> SSPSegmentation:
        """Segment B encoded queries by B·K encoded supports, those of query 0 first.

        Returns:
            Scores; where they are refined, the first ones as the auxiliary prediction "first"; the map "similarity":
            the probability of foreground by the supports' prototypes alone.
        """
        rows = to_rows(query.features)  # (B, N, C)
        units = unit(rows)
        background, foreground = support.average(shots).split(1, dim=1)  # BP and FP, (B, 1, C)
        alone = score(units, background, foreground)
        # The supports' background has no part in the first round.
        background_1, own = self_support(rows, units, alone)
        foreground_1 = 0.5 * foreground + 0.5 * own
        final = first = score(units, background_1, foreground_1)
        if self.refine:
            background_2, own = self_support(rows, units, first)
            background_2 = 0.5 * background + 0.2 * background_1 + 0.3 * background_2
            foreground_2 = 0.5 * foreground + 0.2 * foreground_1 + 0.3 * (0.5 * foreground + 0.5 * own)
            final = 0.7 * score(units, background_2, foreground_2) + 0.3 * first
        cells = query.features.shape[2:]

        def to_map(values: Tensor) -> Tensor:  # (B, N, 2) → (B, 2, h, w)
            return torch.unflatten(values.transpose(1, 2), 2, cells)

        return SSPSegmentation(
            to_map(final),
            query.size,
            auxiliary={"first": to_map(first)} if self.refine else {},
            maps={"similarity": [to_map(alone.softmax(2))[:, 1]]},
        )
