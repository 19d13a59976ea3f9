"""Which pictures to look at first: a score of certainty a picture, a list and a contact sheet, least certain first.

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

import cv2
import numpy as np
from PIL import Image, ImageDraw

from hdmnet.runtime.atomic import replacing
from hdmnet.runtime.errors import InputError
from hdmnet.visual.episode_grid import FAINT, INK, PAPER, font
from hdmnet.visual.overlay import draw_overlay, overlay_colours

if TYPE_CHECKING:
    from hdmnet.apps.segmenter import Float32, Prediction
    from hdmnet.data.io.arrays import BoolArray, UInt8Array

LIST, SHEET = "review.csv", "review.png"
MOST_SHOWN = 40  # pictures on the sheet
_BAND = 256  # rows of a picture that are looked at at once
_COLUMNS, _WIDTH, _HEIGHT, _GAP, _TEXT = 5, 260, 200, 12, 40  # of a picture's place, and below it


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
    for start in range(0, len(region), _BAND):  # that of a picture in tiles lies on disk
        band, shown = probability[start : start + _BAND], region[start : start + _BAND]
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
        cell = _draw_cell(path.name, sure, classes, picture, prediction.mask)
        heapq.heappush(self._shown, (-sure, -place, cell))
        if len(self._shown) > MOST_SHOWN:
            heapq.heappop(self._shown)

    def close(self) -> list[str]:
        """Write; returns a line that says what there is."""
        if len(self._rows) < 2:
            return []
        self._write_list()
        cells = [cell for *_, cell in sorted(self._shown, key=lambda one: (-one[0], -one[1]))]
        with replacing(self.output / SHEET) as temporary:
            _draw_sheet(cells, len(self._rows)).save(temporary, format="PNG")
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


def _draw_cell(
    name: str, sure: float, classes: Sequence[Reviewed], picture: UInt8Array, mask: UInt8Array
) -> Image.Image:
    """A picture's place on the sheet: what was found laid over it, and below its name and what is said of it."""
    scale = min(_HEIGHT / mask.shape[0], _WIDTH / mask.shape[1])
    size = max(1, round(mask.shape[1] * scale)), max(1, round(mask.shape[0] * scale))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    labels = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
    colours = overlay_colours(len(classes))
    cell = Image.new("RGB", (_WIDTH, _HEIGHT + _TEXT), PAPER)
    overlay = draw_overlay(np.asarray(small, np.uint8), np.asarray(labels, np.uint8), colours)
    cell.paste(Image.fromarray(overlay), ((_WIDTH - size[0]) // 2, _HEIGHT - size[1]))
    draw = ImageDraw.Draw(cell)
    head = f"{sure:.2f}"
    draw.text((0, _HEIGHT + 3), head, fill=INK, font=font(13, bold=True))
    left = font(13, bold=True).getlength(head) + 8
    draw.text((left, _HEIGHT + 3), _cut(name, 13, _WIDTH - left), fill=INK, font=font(13))
    found = [(index, one) for index, one in enumerate(classes, start=1) if one.share]
    left = 0.0
    for index, one in sorted(found, key=lambda pair: -pair[1].share):
        text = f"{one.label} {100 * one.share:.0f} %"
        if left and left + 14 + font(12).getlength(text) > _WIDTH:
            break
        draw.rectangle((left, _HEIGHT + 24, left + 9, _HEIGHT + 33), fill=tuple(map(int, colours[index])), outline=INK)
        draw.text((left + 14, _HEIGHT + 21), _cut(text, 12, _WIDTH - left - 14), fill=FAINT, font=font(12))
        left += 24 + font(12).getlength(text)
    if not found:
        draw.text((0, _HEIGHT + 21), "nothing found", fill=FAINT, font=font(12))
    return cell


def _cut(text: str, size: int, width: float) -> str:
    """A text, in the middle of which what does not fit a width in pixels is left out: names differ at their ends."""
    shown, kept = text, len(text)
    while font(size).getlength(shown) > width and kept > 2:
        kept -= 1
        shown = f"{text[: kept // 2]}…{text[len(text) - (kept - kept // 2) :]}"
    return shown


def _draw_sheet(cells: Sequence[Image.Image], total: int) -> Image.Image:
    """The sheet: its cells in rows, a line above."""
    across, top = min(_COLUMNS, len(cells)), 30
    rows = -(-len(cells) // across)
    size = across * (_WIDTH + _GAP) + _GAP, top + rows * (_HEIGHT + _TEXT + _GAP) + _GAP
    sheet = Image.new("RGB", size, PAPER)
    shown = f"{len(cells):,} of {total:,}" if len(cells) < total else f"{total:,}"
    title = f"Least certain first: {shown} pictures; certainty, name, what was found"
    ImageDraw.Draw(sheet).text((_GAP, 9), title, fill=INK, font=font(14))
    for place, cell in enumerate(cells):
        row, column = divmod(place, across)
        sheet.paste(cell, (_GAP + column * (_WIDTH + _GAP), top + row * (_HEIGHT + _TEXT + _GAP) + _GAP))
    return sheet


def refuse_review(output: Path, inputs: Sequence[Path]) -> None:
    """Refuse an output folder in which an input is called as the list or the sheet; raises ValueError."""
    for path in inputs:
        if path.parent.resolve() == output.resolve() and path.name in (LIST, SHEET):
            raise InputError(
                f"output={output} holds {path.name}, which is read and might be replaced: choose another folder"
            )
