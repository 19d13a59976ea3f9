"""The baseline of the paper's Table 4: self- and cross-attention by turns in place of the decoupled pyramid (Fig. 4).

Sec. 4.3: "The baseline stacks the self-attention and cross-attention modules three times and applies the
cross-attention module for feature matching." Everything else is HDMNet's: trunk, reductions, prototypes and prior, the
merge of the prior after the matching, a block and the head of the decoder, the ensemble where it is asked for. The last
of the cross-attentions is the matching, with plain attention (Eq. 2); its correlation map is the only one.

Dimension letters: B queries, K shots, C channels, h_1 w_1 feature size, N = h_1·w_1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from hdmnet.models.attention import to_map, to_tokens
from hdmnet.models.base_learner import BaseLearner
from hdmnet.models.checks import check_integer
from hdmnet.models.hdmnet.alternating import AlternatingTransformer
from hdmnet.models.hdmnet.matching import CorrelationMatching
from hdmnet.models.hdmnet.meta_learner import MetaLearner, SupportMaps
from hdmnet.models.hdmnet.model import HDMNet, build_ensemble, mid_channels
from hdmnet.models.packed import Foreground, PackedRows, PaddedForeground, find_foreground


class AlternatingMetaLearner(MetaLearner):
    """HDMNet's meta learner with the interleaved transformer where the pyramid was.

    Args:
        num_rounds: Self-attention, then cross-attention, this many times.
        channels: Width of the transformer and decoder.
        dropout: In the transformer.
        matching: Of the keyword arguments of `CorrelationMatching`, `num_heads` and `merge_kernel`.
        **options: As of `MetaLearner`: `mid_channels`, `mid_dropout`.

    Raises:
        ValueError: The number of rounds is below 1.
    """

    def __init__(
        self,
        *,
        num_rounds: int = 3,
        channels: int = 64,
        dropout: float = 0.1,
        matching: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        check_integer("model.num_rounds", num_rounds, 1, 100)
        plain = {"num_heads": 2, **(matching or {}), "score": "dot", "normalise": "support"}
        super().__init__(num_stages=1, channels=channels, dropout=dropout, matching=plain, **options)
        transformer = AlternatingTransformer(
            channels, num_rounds=num_rounds, num_heads=plain["num_heads"], dropout=dropout
        )
        # Under the pyramid's name: the same group of the optimiser.
        self.pyramid = transformer.to(memory_format=torch.channels_last)  # type: ignore[assignment]

    def support_stages(
        self, merged: Tensor, mask: Tensor, foregrounds: Sequence[Foreground] | None = None
    ) -> list[PackedRows]:
        """Keep the supports whole, as the query will go through them: rows (N, C) and whether foreground, (N, 1)."""
        size = (merged.shape[2], merged.shape[3])
        foreground = F.interpolate(mask[:, None], size, mode="nearest")
        counts = (size[0] * size[1],) * merged.shape[0]
        return [PackedRows(to_tokens(x).flatten(0, 1), counts) for x in (merged, foreground)]

    def match(
        self, query: Tensor, support: list[PackedRows] | SupportMaps, prior: Tensor, *, shots: int
    ) -> tuple[Tensor, list[Tensor]]:
        """Mix, match and decode; as `MetaLearner.match`, with one correlation map (B, h_1, w_1).

        Raises:
            ValueError: Query and supports differ in size.
        """
        size = (query.shape[2], query.shape[3])
        foreground: Foreground | PaddedForeground
        if isinstance(support, SupportMaps):
            maps, foreground = support.merged, support.foregrounds[0]
        else:
            if any(count != size[0] * size[1] for count in support[0].counts):
                wanted = f"{size[0]}x{size[1]} as features"
                raise ValueError(f"model=baseline: supports must have the query's size, {wanted}")
            maps, mask = (to_map(rows.values.unflatten(0, (len(rows.counts), -1)), size) for rows in support)
            foreground = find_foreground(mask[:, 0], size)
        mixed_query, mixed = self.pyramid(query, maps, foreground, shots=shots)
        matching = cast("CorrelationMatching", self.matching[0])
        enriched, correlation = matching.match(mixed_query, foreground.gather(mixed), prior, shots=shots)
        return self.decoder([enriched]), [correlation]


def build_baseline(
    encoder: BaseLearner,
    *,
    num_shots: int = 1,
    num_rounds: int = 3,
    ensemble: bool = False,
    norm: str = "fixed",
    prior_norm: bool = False,
    shot_weighting: str = "intended",
    dropout: float = 0.1,
    mid_dropout: float = 0.5,
    matching: Mapping[str, Any] | None = None,
) -> HDMNet:
    """Put the baseline together on a base learner (the `model=baseline` config); raises ValueError for a wrong value.

    Args:
        encoder: The base learner, trained on the fold's base classes.
        num_shots: K of the training episodes.
        num_rounds: See `AlternatingMetaLearner`.
        ensemble: Fuse with the base learner (second row of Table 4).
        norm: See `HDMNet`.
        prior_norm: See `HDMNet`.
        shot_weighting: See `Ensemble`.
        dropout: In the transformer.
        mid_dropout: Of the reduced mid-level features.
        matching: Heads of the cross-attention, kernel of the merge.
    """
    meta_learner = AlternatingMetaLearner(
        mid_channels=mid_channels(encoder),
        num_rounds=num_rounds,
        dropout=dropout,
        mid_dropout=mid_dropout,
        matching=matching,
    )
    fusion = build_ensemble(ensemble, num_shots, shot_weighting)
    return HDMNet(base_learner=encoder, meta_learner=meta_learner, ensemble=fusion, norm=norm, prior_norm=prior_norm)
