"""Cosine similarities of a query's positions to its supports, level by level.

Of a frozen trunk's features only directions count here: a method that sees nothing but similarities cannot learn its
base classes by heart.

Dimension letters: B queries, K shots, S supports (B·K), L levels, C_l channels of level l, C of all levels together,
h w feature size, N = h·w positions, M rows of a support.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hdmnet.models.batch import Batch
from hdmnet.models.prior import stretch

EPS = 1e-6
NUM_BEST = 3  # positions of a support over whose similarities the dense maps average
SLOPE = 10.0  # of logits: a map 0.1 above its threshold is foreground with a probability of 0.88
PROTOTYPE_THRESHOLD = 0.75  # of the map of `model=prototype`, and of what starts from it
LIKENESS_LEVELS = 3  # the last ones
MOST_CELLS = 1600  # of a picture that are compared with one another
MOST_ROWS = 128  # of a support's positions that a query is compared with: what it costs does not grow with the object


@dataclass
class QueryUnits(Batch):
    """B queries.

    Attributes:
        units: (B, C, h, w) float, see `unit_levels`.
        size: (H, W) of the pictures.
    """

    units: Tensor
    size: tuple[int, int]


@dataclass
class SupportUnits(Batch):
    """S supports.

    Attributes:
        units: (S, C, h, w) float, see `unit_levels`.
        foreground: (S, h, w) float in [0, 1], share of each position that is foreground; all else is background.
    """

    units: Tensor
    foreground: Tensor


def unit_levels(levels: Sequence[Tensor]) -> Tensor:
    """Levels (B, C_l, h, w), each position's vector brought to length 1, one after the other: (B, C, h, w) float32."""
    return torch.cat([F.normalize(level.float(), dim=1) for level in levels], dim=1)


def foreground_share(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (S, H, W), 1 foreground and all else background → (S, h, w) float, the share of each position."""
    share: Tensor = F.interpolate((masks == 1).float()[:, None], size, mode="area")[:, 0]
    return share


def masked_means(units: Tensor, weights: Tensor) -> Tensor:
    """Mean vectors (S, C) of units (S, C, h, w) with weights (S, h, w); 0 where these are."""
    sums = torch.einsum("schw,shw->sc", units, weights)
    return sums / (weights.sum((1, 2))[:, None] + EPS)


def prototypes(support: SupportUnits) -> tuple[Tensor, Tensor]:
    """Mean foreground and mean background (S, C) of each support."""
    return masked_means(support.units, support.foreground), masked_means(support.units, 1 - support.foreground)


def level_cosines(units: Tensor, vectors: Tensor, widths: Sequence[int]) -> Tensor:
    """Cosine of each position to a vector, by level.

    Args:
        units: (B, C, h, w) float, see `unit_levels`.
        vectors: (B, C) float.
        widths: C_l of each level.

    Returns:
        (B, L, h, w) float in [-1, 1].
    """
    levels = zip(units.split(list(widths), 1), vectors.split(list(widths), 1), strict=True)
    return torch.stack([torch.einsum("bchw,bc->bhw", u, F.normalize(v, dim=1)) for u, v in levels], dim=1).float()


def likeness(units: Tensor, support: SupportUnits, widths: Sequence[int], *, shots: int) -> Tensor:
    """How like the supports' mean foreground a query's likest position is: `Segmentation.likeness`.

    Args:
        units: (B, C, h, w) float, of the queries.
        support: B·K supports, those of query 0 first.
        widths: C_l of each level; the last `LIKENESS_LEVELS` count.
        shots: K.

    Returns:
        (B,) float in [-1, 1], mean cosine over these levels.
    """
    foreground = masked_means(support.units, support.foreground).unflatten(0, (-1, shots)).mean(1)
    found: Tensor = level_cosines(units, foreground, widths)[:, -LIKENESS_LEVELS:].mean(1).amax((1, 2))
    return found


def stretch_maps(maps: Tensor) -> Tensor:
    """Each map of (…, h, w) to [0, 1] by its own minimum and maximum."""
    return stretch(maps.flatten(-2)).view_as(maps)


def best_matches(query: Tensor, rows: Tensor, widths: Sequence[int]) -> Tensor:
    """Mean of the largest cosines of each position to a support's rows, by level.

    Args:
        query: (C, h, w) float, units of one query.
        rows: (M, C) float, units of one support.
        widths: C_l of each level.

    Returns:
        (L, h, w) float in [-1, 1]; 0 where there are no rows.
    """
    if not len(rows):
        return query.new_zeros(len(widths), *query.shape[1:])
    levels = zip(query.flatten(1).split(list(widths)), rows.split(list(widths), 1), strict=True)
    found = [(r @ q).float().topk(min(NUM_BEST, len(rows)), dim=0).values.mean(0) for q, r in levels]
    maps: Tensor = torch.stack(found).unflatten(1, query.shape[1:])
    return maps


def choose_rows(units: Tensor, share: Tensor) -> Tensor:
    """Positions of one support that count as what `share` is the share of.

    Args:
        units: (C, h, w) float.
        share: (h, w) float in [0, 1].

    Returns:
        Rows (M, C): where the share is more than a half, else where it is largest, none where it is 0; of more than
        `MOST_ROWS` so many, evenly spread.
    """
    flat = share.flatten()
    index = (flat > min(0.5, float(flat.max()) - EPS)).nonzero()[:, 0] if flat.max() > 0 else flat.nonzero()[:, 0]
    if len(index) > MOST_ROWS:
        index = index[torch.linspace(0, len(index) - 1, MOST_ROWS, device=index.device).long()]
    rows: Tensor = units.flatten(1)[:, index].T
    return rows


def cell_side(size: tuple[int, int]) -> int:
    """Side, in positions, of the square cells that stand for the positions of a map (h, w) of many."""
    return math.ceil(math.sqrt(size[0] * size[1] / MOST_CELLS))


def cells_of(units: Tensor, widths: Sequence[int], side: int) -> Tensor:
    """Mean units (B, C, ⌈h/side⌉, ⌈w/side⌉) of square cells of units (B, C, h, w), brought to length 1 again."""
    if side == 1:
        return units
    return unit_levels(F.avg_pool2d(units, side, ceil_mode=True).split(list(widths), 1))


def spread_among_alike(maps: Tensor, units: Tensor, widths: Sequence[int], *, steps: int, scale: float) -> Tensor:
    """Average a map over the positions of its picture that are alike, some times.

    A position is the mean of all others, each with the weight exp(scale · cosine), the mean over the levels. Of large
    pictures means over square cells stand for the positions, at most `MOST_CELLS` of them.

    Args:
        maps: (B, h, w) float.
        units: (B, C, h, w) float, see `unit_levels`.
        widths: C_l of each level.
        steps: How many times.
        scale: See above.

    Returns:
        (B, h, w) float.
    """
    side = cell_side((maps.shape[1], maps.shape[2]))
    cells = cells_of(units, widths, side)
    # Of all levels at once, whose cosines add up.
    alike = torch.bmm(units.flatten(2).transpose(1, 2), cells.flatten(2)) / len(widths)  # (B, N, cells)
    weights = (scale * alike.float()).softmax(2)
    for _ in range(steps):
        values = F.avg_pool2d(maps[:, None], side, ceil_mode=True) if side > 1 else maps
        maps = torch.bmm(weights, values.flatten(1)[..., None]).view_as(maps)
    return maps


def threshold_scores(maps: Tensor, threshold: Tensor | float) -> Tensor:
    """Logits (B, 2, h, w) of maps (B, h, w) in [0, 1] that are foreground above a threshold, (B, 1, 1) or for all."""
    above = SLOPE * (maps - threshold)
    return torch.stack([-above, above], dim=1)


def blend(scores: Tensor, untrained: Tensor, share: float) -> Tensor:
    """Logits (B, 2, h, w) of the mean probability of two answers given as logits; `share` is that of the second."""
    return ((1 - share) * scores.float().softmax(1) + share * untrained.float().softmax(1)).log()
