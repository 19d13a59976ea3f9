"""How sure an mIoU is, and a difference of two on the same episodes: intervals over the query pictures.

Of each class one query picture at a time is left out, with all its episodes of all seeds: a jackknife. What the mIoU
moves by is its standard error, and Student's t makes it an interval of 95 %; the degrees of freedom are Welch's and
Satterthwaite's, as the classes have unequal errors. Pictures and not episodes are left out, as a test asks a few
pictures over and over, whose episodes rise and fall together. Classes are given: the novel ones are few, and no sample.
Why no bootstrap: a class's IoU is a ratio of sums in which few large objects weigh most, and there resampling tells too
little noise: docs/reliability.md has the coverage of each, measured.

Dimension letters: E episodes, S seeds, C classes, G pairs of class and query picture, P predictions (1 or 2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from hdmnet.tasks.episode_table import EpisodeTable, intersection_and_union

CONFIDENCE = 0.95

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """An mIoU, or how much better the first of two predictions is: fractions.

    Attributes:
        values: mIoU of each prediction.
        low: Lower end of the interval of the one, or of the first minus the second; minus infinity where nothing tells.
        high: Upper end.
        num_episodes: Episodes that it was made from.
    """

    values: tuple[float, ...]
    low: float
    high: float
    num_episodes: int

    @property
    def difference(self) -> float:
        """By how much the first is better than the second."""
        return self.values[0] - self.values[1]

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends; None where nothing tells."""
        return (self.low, self.high) if math.isfinite(self.low) else None

    @property
    def is_above(self) -> bool:
        """Whether the first is better by more than chance; not where nothing tells."""
        return self.low > 0


def estimate(table: EpisodeTable, *names: str, absent_is_zero: bool = False) -> Estimate | None:
    """The mIoU of one prediction, or that of two and their difference, on the episodes that were run by all.

    Args:
        table: Their counts.
        names: One prediction or two.
        absent_is_zero: As of `hdmnet.metrics.FewShotIoU`.

    Returns:
        None where no episode has a pixel to count.
    """
    ran = table.has(*names)
    table = table if ran.all() else table.choose(ran)
    if not len(table):
        return None
    num_classes = len(table.class_names)
    numbers = {query: number for number, query in enumerate(dict.fromkeys(table.queries))}
    pictures = np.array([numbers[query] for query in table.queries]) * num_classes + table.class_index  # (E,)
    pairs, picture_of = np.unique(pictures, return_inverse=True)  # (G,), (E,)
    class_of = pairs % num_classes
    seeds, seed_of = np.unique(table.seed, return_inverse=True)  # (S,), (E,)
    shape = (len(pairs), len(seeds), len(names))
    found, either = np.zeros(shape), np.zeros(shape)
    for place, name in enumerate(names):
        for total, part in zip((found, either), intersection_and_union(table.pixels[name]), strict=True):
            np.add.at(total[..., place], (picture_of, seed_of), part)
    sums = [_sum_by_class(part, class_of, num_classes) for part in (found, either)]  # (C, S, P) each
    ious = _ratio(*sums, otherwise=0.0 if absent_is_zero else math.nan)
    known: NDArray[np.bool_] = np.asarray(np.isfinite(ious).all(axis=2))  # (C, S)
    if not known.any():
        return None
    weights = known / np.maximum(known.sum(axis=0), 1) / known.any(axis=0).sum()  # (C, S): of each IoU in the mean
    values = (weights[..., None] * np.where(known[..., None], ious, 0.0)).sum(axis=(0, 1))  # (P,)
    # Without one picture at a time; a class and seed that has no other says nothing.
    without = _ratio(sums[0][class_of] - found, sums[1][class_of] - either, otherwise=math.nan)
    moves = np.where(np.isfinite(without), without - ious[class_of], 0.0)  # (G, S, P)
    moves = moves[..., 0] - (moves[..., 1] if len(names) > 1 else 0.0)
    half = _half_width((weights[class_of] * moves).sum(axis=1), class_of)
    middle = values[0] - (values[1] if len(names) > 1 else 0.0)
    return Estimate(tuple(values.tolist()), float(middle - half), float(middle + half), len(table))


def _sum_by_class(rows: Floats, class_of: NDArray[np.int64], num_classes: int) -> Floats:
    """Rows (G, …) of classes (G,) → sums (C, …)."""
    sums = np.zeros((num_classes, *rows.shape[1:]))
    np.add.at(sums, class_of, rows)
    return sums


def _ratio(found: Floats, either: Floats, *, otherwise: float) -> Floats:
    ious: Floats = np.divide(found, either, out=np.full(found.shape, otherwise), where=either > 0)
    return ious


def _half_width(moves: Floats, class_of: NDArray[np.int64]) -> float:
    """Half an interval, of what leaving each picture (G,) of classes (G,) out moves; infinite where nothing tells.

    A class of a single picture tells nothing of its noise: it is taken for as noisy as the others on average.
    """
    _, place = np.unique(class_of, return_inverse=True)
    count = np.bincount(place)
    spread = moves - (np.bincount(place, moves) / count)[place]
    several = count > 1
    if not several.any():
        return math.inf
    variances = (np.bincount(place, spread**2) * (count - 1) / count)[several]
    total = float(variances.sum())
    if total <= 0.0:
        return 0.0
    freedom = total**2 / float((variances**2 / (count[several] - 1)).sum())
    quantile = float(stdtrit(freedom, (1 + CONFIDENCE) / 2))
    return quantile * math.sqrt(total * len(count) / len(variances))
