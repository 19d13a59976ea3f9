"""Which pictures to look at first: a certainty for each picture, a list and a contact sheet, least certain first.

How well the score ranks, and what was measured beside it: docs/own_pictures.md.

Dimension letters: H0 W0 size of a picture.
"""

from __future__ import annotations

import csv
import heapq
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hdmnet.data.io.arrays import bands
from hdmnet.runtime.atomic import replacing
from hdmnet.runtime.errors import InputError
from hdmnet.visual.mask_sheet import draw_cell, draw_sheet
from hdmnet.visual.overlay import overlay_colours

if TYPE_CHECKING:
    from PIL import Image

    from hdmnet.apps.segmenter import Float32, Prediction
    from hdmnet.data.io.arrays import BoolArray, UInt8Array

LIST, SHEET = "review.csv", "review.png"
MOST_SHOWN = 40  # pictures on the sheet


@dataclass(frozen=True)
class Reviewed:
    """One class in one picture.

    Attributes:
        label: The class.
        certainty: In [0, 1], see `class_certainty`; 0 where it was not found.
        share: Of the picture's pixels that it covers.
    """

    label: str
    certainty: float
    share: float


def class_certainty(probability: Float32, region: BoolArray) -> float:
    """How sure a method is of a region: the IoU with the truth that its own probabilities lead one to expect.

    Args:
        probability: (H0, W0) float32 in [0, 1], of the class.
        region: (H0, W0) bool, where it was found.

    Returns:
        In [0, 1]: the probability inside, over the region's pixels and the probability outside; 0 of an empty region.
    """
    inside = whole = 0.0
    for rows in bands(len(region)):  # that of a picture in tiles lies on disk
        band, shown = probability[rows], region[rows]
        whole += float(band.sum(dtype=np.float64))
        inside += float(band[shown].sum(dtype=np.float64))
    return inside / (int(region.sum()) + whole - inside) if region.any() else 0.0


def review(prediction: Prediction) -> list[Reviewed]:
    """Each class of a picture, in the order of its labels."""
    found = []
    for index, (label, probability) in enumerate(prediction.probabilities.items(), start=1):
        region = prediction.mask == index
        found.append(Reviewed(label, class_certainty(probability, region), float(region.mean())))
    return found


def certainty(prediction: Prediction) -> float:
    """How sure the method is of a picture, in [0, 1]: of the class found in it that it is least sure of; 0 of none."""
    return min((one.certainty for one in review(prediction) if one.share), default=0.0)


class ReviewWriter:
    """Collects what was found in pictures; the list and the sheet are there when it is closed, whatever happened.

    Of a single picture neither is written. Of many only the `MOST_SHOWN` least certain are kept, for the sheet.

    Args:
        output: Where to.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self._rows: list[tuple[float, int, Path, list[Reviewed]]] = []  # certainty, place among the queries, …
        self._shown: list[tuple[float, int, Image.Image]] = []  # a heap: minus the certainty, minus the place, …

    def add(self, path: Path, picture: UInt8Array, prediction: Prediction) -> None:
        """Take a picture (H0, W0, 3) uint8 RGB and what was found in it."""
        classes, sure, place = review(prediction), certainty(prediction), len(self._rows)
        self._rows.append((sure, place, path, classes))
        shares = [(one.label, one.share) for one in classes]
        cell = draw_cell(path.name, f"{sure:.2f}", shares, picture, prediction.mask, overlay_colours(len(classes)))
        heapq.heappush(self._shown, (-sure, -place, cell))
        if len(self._shown) > MOST_SHOWN:
            heapq.heappop(self._shown)

    def close(self) -> list[str]:
        """Write; returns a line that says what there is."""
        if len(self._rows) < 2:
            return []
        self._write_list()
        cells = [cell for *_, cell in sorted(self._shown, key=lambda one: (-one[0], -one[1]))]
        shown = f"{len(cells):,} of {len(self._rows):,}" if len(cells) < len(self._rows) else f"{len(cells):,}"
        title = f"Least certain first: {shown} pictures; certainty, name, what was found"
        with replacing(self.output / SHEET) as temporary:
            draw_sheet(cells, title).save(temporary, format="PNG")
        return [f"review: least certain first, {self.output / LIST} and {self.output / SHEET}"]

    def _write_list(self) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("rank", "picture", "class", "certainty", "share"))
        for rank, (_, _, path, classes) in enumerate(sorted(self._rows), start=1):
            found = sorted((one for one in classes if one.share), key=lambda one: one.certainty)
            for one in found or [Reviewed(classes[0].label if len(classes) == 1 else "", 0.0, 0.0)]:
                writer.writerow((rank, path, one.label, f"{one.certainty:.4f}", f"{one.share:.4f}"))
        with replacing(self.output / LIST) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")


def refuse_review(output: Path, inputs: Sequence[Path]) -> None:
    """Refuse an output folder in which an input is called as the list or the sheet; raises ValueError."""
    for path in inputs:
        if path.parent.resolve() == output.resolve() and path.name in (LIST, SHEET):
            raise InputError(
                f"output={output} holds {path.name}, which is read and might be replaced: choose another folder"
            )
