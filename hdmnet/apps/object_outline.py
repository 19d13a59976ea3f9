"""Finds the outline of an object in a box or at a click: GrabCut, by the colours inside and outside.

It knows no classes and no network, so that it helps before there is an example.

Dimension letters: h w size of a picture as it is shown on the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from hdmnet.runtime.errors import InputError

if TYPE_CHECKING:
    from hdmnet.data.io.arrays import UInt8Array

_SIDE = 256  # px, of the longest side: a third of the time that 400 takes, and an IoU some 0.02 lower
_STEPS = 5
_CLICK = 0.015  # radius of what a click says for sure, in the longest side
_AROUND = 0.15  # radius of where its object is looked for at first
_LEAST = 0.1  # of a box: less found is nothing found


def outline_in(picture: UInt8Array, box: Sequence[float]) -> UInt8Array:
    """The object that a box is drawn around.

    Args:
        picture: (h, w, 3) uint8 RGB.
        box: x0, y0, x1, y1 in its pixels, the second corner not included.

    Returns:
        (h, w) uint8: 1 the object, nothing outside the box; all of the box where no object can be told in it.

    Raises:
        ValueError: The box holds no pixel of the picture.
    """
    height, width = picture.shape[:2]
    x0, x1 = (int(np.clip(round(value), 0, width)) for value in (box[0], box[2]))
    y0, y1 = (int(np.clip(round(value), 0, height)) for value in (box[1], box[3]))
    if x0 >= x1 or y0 >= y1:
        raise InputError("the box holds no pixel of the picture: draw it from one corner of the object to the other")
    inside = np.zeros((height, width), dtype=np.uint8)
    inside[y0:y1, x0:x1] = 1
    trimap = np.where(_small(inside) == 1, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    found = _cut(picture, trimap) & inside
    return inside if found.sum() < _LEAST * inside.sum() else np.asarray(found, dtype=np.uint8)


def outline_at(picture: UInt8Array, clicks: Sequence[tuple[float, float, bool]]) -> UInt8Array:
    """The object that was clicked on.

    Args:
        picture: (h, w, 3) uint8 RGB.
        clicks: x, y and whether the object is there, the first of the object.

    Returns:
        (h, w) uint8: 1 the parts that hold a click on the object.

    Raises:
        ValueError: No click is on the object.
    """
    height, width = picture.shape[:2]
    on = [(int(np.clip(x, 0, width - 1)), int(np.clip(y, 0, height - 1))) for x, y, inside in clicks if inside]
    off = [(int(np.clip(x, 0, width - 1)), int(np.clip(y, 0, height - 1))) for x, y, inside in clicks if not inside]
    if not on:
        raise InputError("no click is on the object: click on it first")
    trimap = np.full((height, width), cv2.GC_PR_BGD, dtype=np.uint8)
    side = max(height, width)
    for place in on:
        cv2.circle(trimap, place, round(_AROUND * side), cv2.GC_PR_FGD, cv2.FILLED)
    for value, places in ((cv2.GC_FGD, on), (cv2.GC_BGD, off)):
        for place in places:
            cv2.circle(trimap, place, max(1, round(_CLICK * side)), value, cv2.FILLED)
    found = _cut(picture, _small(trimap))
    _, parts = cv2.connectedComponents(found, connectivity=4)
    chosen = {int(parts[y, x]) for x, y in on} - {0}
    return np.isin(parts, list(chosen)).astype(np.uint8)


def _small(mask: UInt8Array) -> UInt8Array:
    scale = min(1.0, _SIDE / max(mask.shape))
    height, width = (max(1, round(side * scale)) for side in mask.shape)
    return np.asarray(cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), dtype=np.uint8)


def _cut(picture: UInt8Array, trimap: UInt8Array) -> UInt8Array:
    """GrabCut of a small trimap, as (h, w) uint8 0/1 of the picture."""
    height, width = trimap.shape
    small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    sure = np.isin(trimap, (cv2.GC_BGD, cv2.GC_PR_BGD)).any() and np.isin(trimap, (cv2.GC_FGD, cv2.GC_PR_FGD)).any()
    if sure:  # it needs pixels of both
        cv2.setRNGSeed(0)  # the same box gives the same outline
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(small, trimap, (0, 0, 0, 0), *models, _STEPS, cv2.GC_INIT_WITH_MASK)
    found = np.isin(trimap, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    return np.asarray(cv2.resize(found, picture.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT), dtype=np.uint8)
