"""What a method and its controls get right on the very same episodes, and whether one is better by more than chance.

Dimension letters: B episodes of a batch, E of a manifest that they stand for, C classes, G query pictures of a class, R
resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from hdmnet.data.types import Episode, EvaluationBatch

RESAMPLES = 2000
CONFIDENCE = 0.95


class PairedCounts:
    """Pixels of the episodes of a manifest's first seed, by prediction.

    Attributes:
        by_name: Of each prediction, by the episode's place in the manifest: place of its class, foreground pixels that
            truth and prediction share, and those of either.
    """

    def __init__(self) -> None:
        self.by_name: dict[str, dict[int, tuple[int, int, int]]] = {}

    def add(
        self,
        name: str,
        pixels: Tensor,
        batch: Episode | EvaluationBatch,
        item: Sequence[int],
        chosen: Sequence[int] | None = None,
    ) -> None:
        """Add the episodes of a batch.

        Args:
            name: Of the prediction.
            pixels: (B, 2, 2) int64 as `hdmnet.metrics.count_pixels` gives them, of the chosen items only.
            batch: Tells class, place and seed of the E episodes.
            item: Which of the B each of the E equals.
            chosen: Which of the B the counts are of; None: all.
        """
        place = {one: i for i, one in enumerate(range(len(pixels)) if chosen is None else chosen)}
        counts, rows = pixels.tolist(), self.by_name.setdefault(name, {})
        told = zip(item, batch.index.tolist(), batch.seed_index.tolist(), strict=True)
        classes = batch.class_index.tolist()
        for one, index, seed in told:
            if seed == 0 and one in place:
                (_, false), (missed, hit) = counts[place[one]]
                rows[index] = classes[one], hit, hit + false + missed

    def miou(self, name: str) -> float:
        """The mIoU of a prediction, as `hdmnet.metrics.FewShotIoU` pools it, a fraction; NaN where nothing counts."""
        sums: dict[int, NDArray[np.int64]] = {}
        for value, *pixels in self.by_name.get(name, {}).values():
            sums[value] = sums.get(value, 0) + np.array(pixels)
        ious = [hit / either if either else math.nan for hit, either in (sums[value] for value in sorted(sums))]
        return float(torch.tensor(ious, dtype=torch.float64).nanmean())

    def gather(self) -> None:
        """Bring together what several processes have counted."""
        if not torch.distributed.is_available() or not torch.distributed.is_initialized():
            return
        gathered: list[dict[str, dict[int, tuple[int, int, int]]]] = [{}] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, self.by_name)
        self.by_name = {}
        for one in gathered:
            for name, rows in one.items():
                self.by_name.setdefault(name, {}).update(rows)


@dataclass(frozen=True)
class Difference:
    """How much better the first of two predictions is, in mIoU as a fraction.

    Attributes:
        first: mIoU of the first.
        second: mIoU of the second.
        low: Lower end of the interval of their difference.
        high: Upper end.
        num_episodes: Episodes that both were run on.
    """

    first: float
    second: float
    low: float
    high: float
    num_episodes: int

    @property
    def is_above(self) -> bool:
        """Whether the first is better by more than chance; not where nothing tells."""
        return self.low > 0


def compare_pairs(counts: PairedCounts, first: str, second: str, queries: Sequence[str]) -> Difference | None:
    """Compare two predictions on the episodes that both have.

    A paired bootstrap: of each class its query pictures are drawn anew, as many as there are and with replacement, each
    with all its episodes; both predictions get the same draw, pool their pixels and average over the classes as the
    metric does. The interval holds 95 % of the differences. Pairing takes away what makes episodes hard for both;
    pictures and not episodes are drawn, as a test asks a few pictures over and over, whose episodes rise and fall
    together. Classes are not drawn: the novel ones are few, and given.

    Args:
        counts: Of both.
        first: Name of the one.
        second: Name of the other.
        queries: Id of each episode's query, by its place in the manifest.

    Returns:
        None where the two have no episode in common, or no class has a pixel to count.
    """
    own, other = counts.by_name.get(first, {}), counts.by_name.get(second, {})
    places = sorted(own.keys() & other.keys())
    by_class: dict[int, dict[str, NDArray[np.float64]]] = {}
    for place in places:
        pictures = by_class.setdefault(own[place][0], {})
        row = np.array([*own[place][1:], *other[place][1:]], dtype=float)
        pictures[queries[place]] = pictures.get(queries[place], 0.0) + row
    if not places:
        return None
    random = np.random.default_rng(0)
    pooled, drawn = [], []
    for value in sorted(by_class):
        rows = np.stack(list(by_class[value].values()))  # (G, 4)
        number = len(rows)
        weights = random.multinomial(number, [1 / number] * number, size=RESAMPLES)  # (R, G)
        pooled.append(_ious(rows.sum(0)))
        drawn.append(_ious(weights @ rows))
    means, draws = _mean(np.stack(pooled)), _mean(np.stack(drawn))  # (2,), (R, 2)
    if not np.isfinite(means).all():
        return None
    differences = draws[..., 0] - draws[..., 1]
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.nanpercentile(differences, [tail, 100 - tail])
    if all(len(pictures) == 1 for pictures in by_class.values()):  # nothing to draw: the noise is not known
        low, high = -math.inf, math.inf
    return Difference(float(means[0]), float(means[1]), float(low), float(high), len(places))


def _ious(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersections and unions of both (…, 4) → IoUs (…, 2); NaN where a union is 0."""
    shared, either = rows[..., 0::2], rows[..., 1::2]
    ious: NDArray[np.float64] = np.divide(shared, either, out=np.full(shared.shape, math.nan), where=either > 0)
    return ious


def _mean(ious: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the classes (C, …) that have an IoU in both; NaN where none has."""
    known = np.isfinite(ious).all(axis=-1, keepdims=True)
    number = known.sum(axis=0)
    total = np.where(known, ious, 0.0).sum(axis=0)
    mean: NDArray[np.float64] = np.divide(total, number, out=np.full(total.shape, math.nan), where=number > 0)
    return mean
