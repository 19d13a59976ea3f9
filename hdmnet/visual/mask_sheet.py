"""A sheet of pictures with their marks or predicted masks, the name of each, and how much of which class.

Dimension letters: H0 W0 size of a picture, C colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image, ImageDraw

from hdmnet.visual.episode_grid import FAINT, INK, PAPER, font
from hdmnet.visual.overlay import draw_overlay

if TYPE_CHECKING:
    from hdmnet.data.io.arrays import UInt8Array

_COLUMNS, _WIDTH, _HEIGHT, _GAP, _TEXT = 5, 260, 200, 12, 40  # of a picture's place, and below it


def draw_cell(
    name: str,
    head: str,
    shares: Sequence[tuple[str, float]],
    picture: UInt8Array,
    mask: UInt8Array,
    colours: UInt8Array,
) -> Image.Image:
    """A picture's place on the sheet.

    Args:
        name: Of the picture.
        head: A word or figure before it.
        shares: Of each class, that of index 1 first, its name and its share of the picture.
        picture: (H0, W0, 3) uint8 RGB.
        mask: (H0, W0) uint8, indices of the classes.
        colours: (C, 3) uint8 RGB of each index.
    """
    scale = min(_HEIGHT / mask.shape[0], _WIDTH / mask.shape[1])
    size = max(1, round(mask.shape[1] * scale)), max(1, round(mask.shape[0] * scale))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    labels = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
    cell = Image.new("RGB", (_WIDTH, _HEIGHT + _TEXT), PAPER)
    overlay = draw_overlay(np.asarray(small, np.uint8), np.asarray(labels, np.uint8), colours)
    cell.paste(Image.fromarray(overlay), ((_WIDTH - size[0]) // 2, _HEIGHT - size[1]))
    draw = ImageDraw.Draw(cell)
    draw.text((0, _HEIGHT + 3), head, fill=INK, font=font(13, bold=True))
    left = font(13, bold=True).getlength(head) + 8
    draw.text((left, _HEIGHT + 3), _cut(name, 13, _WIDTH - left), fill=INK, font=font(13))
    found = [(index, label, share) for index, (label, share) in enumerate(shares, start=1) if share]
    left = 0.0
    for index, label, share in sorted(found, key=lambda one: -one[2]):
        text = f"{label} {100 * share:.0f} %"
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


def draw_sheet(cells: Sequence[Image.Image], title: str) -> Image.Image:
    """The sheet: its cells in rows, a line above."""
    across, top = min(_COLUMNS, len(cells)), 30
    rows = -(-len(cells) // across)
    size = across * (_WIDTH + _GAP) + _GAP, top + rows * (_HEIGHT + _TEXT + _GAP) + _GAP
    sheet = Image.new("RGB", size, PAPER)
    ImageDraw.Draw(sheet).text((_GAP, 9), title, fill=INK, font=font(14))
    for place, cell in enumerate(cells):
        row, column = divmod(place, across)
        sheet.paste(cell, (_GAP + column * (_WIDTH + _GAP), top + row * (_HEIGHT + _TEXT + _GAP) + _GAP))
    return sheet
