"""Maps of how a query correlates with its supports and with itself: the input of networks that see no feature.

Dimension letters: B queries, K shots, S supports (B·K), L levels, C_l channels of level l, C of all levels together,
h w feature size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hdmnet.models.similarity import (
    SupportUnits,
    best_matches,
    choose_rows,
    level_cosines,
    masked_means,
    prototypes,
    spread_among_alike,
    stretch_maps,
)

SUPPORT_MAPS, SELF_MAPS = 6, 3  # of a level
SPREAD_LEVELS, SPREAD_SCALE = 3, 10.0  # last levels, see `spread_among_alike`
CONTRAST = 4.0  # brings a difference of two cosines to about the range of a stretched map
CELL = 2  # side, in positions, of the cells of background that are compared: there is much of it
SURE_FOREGROUND, OF_LARGEST, SURE_BACKGROUND = 0.6, 0.8, 0.3  # see `self_maps`


def support_maps(units: Tensor, support: SupportUnits, widths: Sequence[int], *, shots: int) -> Tensor:
    """What each position of a query has in common with the supports, of which there is nothing else.

    By level, similarities to the mean foreground and background (means over the shots), and to those positions of the
    foreground and of the background that match best (the best of all shots); of both pairs see `_contrast`. Then what
    `model=prototype` goes by: the stretched contrast of the means, the mean of the last levels, averaged over positions
    of the query that are alike.

    Args:
        units: (B, C, h, w) float, of the queries.
        support: B·K supports, those of query 0 first.
        widths: C_l of each level.
        shots: K.

    Returns:
        (B, 6·L + 1, h, w) float.
    """
    means = (mean.unflatten(0, (-1, shots)).mean(1) for mean in prototypes(support))
    near_foreground, near_background = (level_cosines(units, mean, widths) for mean in means)
    cells = F.avg_pool2d(support.units, CELL, ceil_mode=True)
    shares = F.avg_pool2d(1 - support.foreground[:, None], CELL, ceil_mode=True)[:, 0]
    best_foreground, best_background = (
        torch.stack([
            best_matches(units[i // shots], choose_rows(rows[i], share[i]), widths) for i in range(len(rows))
        ]).unflatten(0, (-1, shots)).amax(1)
        for rows, share in ((support.units, support.foreground), (cells, shares))
    )  # (B, L, h, w) each  # fmt: skip
    by_means = _contrast(near_foreground, near_background)
    contrast = by_means[2][:, -SPREAD_LEVELS:].mean(1)
    last = list(widths[-SPREAD_LEVELS:])
    spread = spread_among_alike(contrast, units[:, -sum(last) :], last, steps=1, scale=SPREAD_SCALE)
    maps = [*by_means, *_contrast(best_foreground, best_background), stretch_maps(spread)[:, None]]
    return torch.cat(maps, dim=1)


def self_maps(units: Tensor, probability: Tensor, widths: Sequence[int]) -> Tensor:
    """What each position of a query has in common with those that a first prediction is sure of.

    By level, similarity to the mean of the certain foreground and background, weighted with the prediction. Foreground
    is certain at `SURE_FOREGROUND` and near the largest probability, background below `SURE_BACKGROUND`.

    Args:
        units: (B, C, h, w) float, of the queries.
        probability: (B, h, w) float in [0, 1], of foreground.
        widths: C_l of each level.

    Returns:
        (B, 1 + 3·L, h, w) float: the probability first.
    """
    largest = probability.amax((1, 2), keepdim=True)
    foreground = probability * (probability >= (OF_LARGEST * largest).clamp(min=SURE_FOREGROUND))
    background = (1 - probability) * (probability < SURE_BACKGROUND)
    near = (level_cosines(units, masked_means(units, weights), widths) for weights in (foreground, background))
    return torch.cat([probability[:, None], *_contrast(*near)], dim=1)


def _contrast(foreground: Tensor, background: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of similarities (B, L, h, w): to the foreground, stretched; what that is more than the other; that, stretched."""
    more = foreground - background
    return stretch_maps(foreground), CONTRAST * more, stretch_maps(more)
