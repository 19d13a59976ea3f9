"""The single objects in a predicted mask.

Dimension letters: H0 W0 size of a picture, h w that of the part of it with an object.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from hdmnet.data.io.arrays import bands
from hdmnet.data.io.outlines import draw_outline, find_parts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hdmnet.apps.segmenter import Prediction
    from hdmnet.data.io.arrays import BoolArray, UInt8Array


@dataclass(frozen=True)
class FoundObject:
    """An object of a picture.

    Attributes:
        index: Of its class, 1..C.
        label: The class's name.
        parts: First column x, first row y, and (h, w) bool, of each part; from `find_parts`.
        score: Mean probability of its class over its pixels, in [0, 1].
        tolerance: px that its polygons may be off the outline.
    """

    index: int
    label: str
    parts: list[tuple[int, int, BoolArray]]
    score: float
    tolerance: float

    @property
    def area(self) -> int:
        """Its pixels."""
        return sum(int(part.sum()) for _, _, part in self.parts)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """First column x, first row y, width and height of the box around it."""
        left, top = min(x for x, _, _ in self.parts), min(y for _, y, _ in self.parts)
        right = max(x + part.shape[1] for x, _, part in self.parts)
        return left, top, right - left, max(y + part.shape[0] for _, y, part in self.parts) - top

    @cached_property
    def outlines(self) -> list[list[list[float]]]:
        """Of each part the x, y of its polygon, in pixels of the picture."""
        several = (draw_outline(part, self.tolerance) + np.array([x, y]) for x, y, part in self.parts)
        return [np.round(polygon, 2).tolist() for polygon in several]

    def paint(self, canvas: UInt8Array, value: int, left: int = 0) -> None:
        """Paint it on a picture's columns from `left` on, (H0, w) uint8."""
        for x, y, part in self.parts:
            canvas[y : y + part.shape[0], x - left : x - left + part.shape[1]][part] = value


def find_objects(prediction: Prediction, *, instances: bool = True, tolerance: float = 1.0) -> list[FoundObject]:
    """The objects of a picture, class by class.

    Args:
        prediction: What was found.
        instances: Whether pixels that are not joined are several objects; else all of a class are one.
        tolerance: px that polygons may be off the outline.
    """
    found = []
    for index, (label, probability) in enumerate(prediction.probabilities.items(), start=1):
        parts = find_parts(prediction.mask == index)
        for several in [[part] for part in parts] if instances else [parts] if parts else []:
            found.append(FoundObject(index, label, several, _mean_inside(probability, several), tolerance))
    return found


def _mean_inside(probability: NDArray[np.float32], parts: list[tuple[int, int, BoolArray]]) -> float:
    """Mean of a probability (H0, W0) over the pixels of an object; of a large one some rows at a time are looked at."""
    total, number = 0.0, 0
    for x, y, part in parts:
        for rows in bands(len(part)):
            values = probability[y + rows.start : y + rows.stop, x : x + part.shape[1]][part[rows]]
            total += float(values.sum(dtype=np.float64))
            number += len(values)
    return total / number
