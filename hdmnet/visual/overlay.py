"""A predicted mask laid over its picture.

Dimension letters: H0 W0 size of a picture, C colours.
"""

from __future__ import annotations

import cv2
import numpy as np

from hdmnet.data.io.arrays import UInt8Array, bands
from hdmnet.data.io.masks import voc_palette
from hdmnet.visual.colours import PREDICTION, class_colour

_TINT = 0.45  # opacity


def overlay_colours(num_classes: int) -> UInt8Array:
    """Colours (256, 3) uint8 of an index mask: VOC's; of a single class that of predictions."""
    colours = np.array(voc_palette(), dtype=np.uint8).reshape(-1, 3)
    if num_classes == 1:
        colours[1] = PREDICTION
    return colours


def class_colours() -> UInt8Array:
    """Colours (256, 3) uint8 of an index mask by `class_colour`: told apart with any colour vision, 255 is grey."""
    return np.array([(0, 0, 0), *(class_colour(value) for value in range(1, 255)), (128, 128, 128)], dtype=np.uint8)


def draw_overlay(picture: UInt8Array, mask: UInt8Array, colours: UInt8Array) -> UInt8Array:
    """A picture (H0, W0, 3), tinted and outlined where its mask (H0, W0) has an index, in that one's colour (C, 3)."""
    drawn, number = picture.copy(), np.zeros(len(colours), dtype=np.int64)
    for rows in bands(len(mask)):
        band, shown = drawn[rows], mask[rows]
        inside = shown > 0
        number += np.bincount(shown.ravel(), minlength=len(number))
        band[inside] = ((1 - _TINT) * band[inside] + _TINT * colours[shown[inside]]).astype(np.uint8)
    width = max(1, round(min(mask.shape) / 300))
    for index in np.flatnonzero(number[1:]) + 1:
        outlines, _ = cv2.findContours((mask == index).view(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawn, outlines, -1, tuple(int(value) for value in colours[index]), width)
    return drawn
