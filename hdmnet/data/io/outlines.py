"""Outlines of objects in masks as polygons along the edges of their pixels, and back.

A pixel (row y, column x) is the square from (x, y) to (x + 1, y + 1), as COCO, LabelMe and YOLO have it. Polygons lie
`INSET` inside that outline: programs that cut coordinates down to whole pixels and fill up to and with the border
(ultralytics, LabelMe) then draw the very pixels, as do those that look at pixels' centres (pycocotools).

An object is what is joined by edges of its pixels; pixels that touch at a corner only are two. So each has one outline,
and holes, which are cut open to it: one polygon of no width between them.

Dimension letters: H W size of a picture, h w that of the part of it with an object, N corners of a polygon.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from hdmnet.data.io.annotations import decode_segmentation
from hdmnet.data.io.arrays import BoolArray

Float64 = npt.NDArray[np.float64]
_Corners = npt.NDArray[np.int64]  # (N, 5): x, y, which way in x and in y the object lies, whether it has to stay

INSET = 0.01  # px
#: What a polygon has to have in common with its mask, intersection over union: it is simplified less where it has not.
LEAST_IOU = 0.98


def find_parts(mask: BoolArray) -> list[tuple[int, int, BoolArray]]:
    """Part a mask (H, W) bool into what is joined by edges of its pixels.

    Returns:
        Of each part, from the top down, x and y of its first column and row and itself, (h, w) bool.
    """
    number, labels, boxes, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=4)
    parts = []
    for label in range(1, number):
        x, y, width, height = (int(value) for value in boxes[label, :4])
        parts.append((x, y, labels[y : y + height, x : x + width] == label))
    return parts


def has_holes(part: BoolArray) -> bool:
    """Whether a part, from `find_parts`, encloses something that is not of it."""
    return len(_trace(part)) > 1


def draw_outline(part: BoolArray, tolerance: float) -> Float64:
    """The polygon of a part, from `find_parts`, with its holes cut open to it.

    Args:
        part: (h, w) bool.
        tolerance: px that the polygon may be off the outline; less, and 0 in the end, where it would have less than
            `LEAST_IOU` in common with the part.

    Returns:
        (N, 2) float64: x, y of each corner, from the part's first column and row on.
    """
    rings = _trace(part)
    corners = _cut_open(rings, part)
    while tolerance >= 0.1:
        polygon = _simplify(corners, tolerance)
        drawn = _as_drawn(polygon, part.shape, has_cuts=len(rings) > 1)
        if min(_overlap(one, part) for one in drawn) >= LEAST_IOU:
            return polygon
        tolerance /= 2
    return _inset(corners)


def fill_polygon(polygon: npt.ArrayLike, height: int, width: int) -> BoolArray:
    """The pixels whose centres lie inside a polygon (N, 2) of x, y: (H, W) bool; raises as `decode_segmentation`."""
    flat = np.asarray(polygon, dtype=np.float64).reshape(-1)
    return decode_segmentation([flat.tolist()], height, width)


# ------------------------------------------------------------------------------------------------------------ tracing


def _trace(part: BoolArray) -> list[_Corners]:
    """The corners of a part's outline and of its holes, in order along each; the outline is the first."""
    padded = np.pad(part, 1)
    above_left, above_right = padded[:-1, :-1], padded[:-1, 1:]
    below_left, below_right = padded[1:, :-1], padded[1:, 1:]
    single = above_left ^ above_right ^ below_left ^ below_right  # one or three of the four pixels at a corner
    cross = (above_left == below_right) & (above_right == below_left) & (above_left != above_right)
    # Where pixels touch at a corner, two corners lie: one of the edge to the left and one of that to the right.
    y, x = np.nonzero(single | cross)
    count = 1 + cross[y, x].astype(np.int64)
    second = np.concatenate([[0], np.cumsum(count)[:-1]]) + count - 1  # in what follows
    y, x = np.repeat(y, count), np.repeat(x, count)
    four = [side[y, x].astype(np.int64) for side in (above_left, above_right, below_left, below_right)]
    inward_x = np.sign(four[1] + four[3] - four[0] - four[2])
    inward_y = np.sign(four[2] + four[3] - four[0] - four[1])
    crossing = cross[y, x]
    is_right = np.zeros(len(y), dtype=bool)
    is_right[second[count == 2]] = True
    falls = four[0] == 1  # of those: the object's pixels are above left and below right
    inward_x[crossing] = np.where(is_right, 1, -1)[crossing]
    inward_y[crossing] = np.where(is_right == falls, 1, -1)[crossing]
    # Along each line of the grid, edges run from the first corner to the second, from the third to the fourth …
    along_row = _pair_up(np.arange(len(y)))
    along_column = _pair_up(np.lexsort((inward_y, y, x)))
    corners = np.stack([x, y, inward_x, inward_y, np.zeros_like(x)], axis=1)
    rings, seen = [], np.zeros(len(y), dtype=bool)
    for start in range(len(y)):
        if seen[start]:
            continue
        ring, here = [], start
        while not seen[here]:
            there = int(along_row[here])
            seen[here] = seen[there] = True
            ring += [here, there]
            here = int(along_column[there])
        rings.append(corners[ring])
    return rings


def _pair_up(order: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The partner of each corner, where every two that follow each other in the order belong together."""
    partner = np.empty_like(order)
    partner[order[::2]], partner[order[1::2]] = order[1::2], order[::2]
    return partner


def _cut_open(rings: Sequence[_Corners], part: BoolArray) -> _Corners:
    """Make one ring of an outline and its holes: from the top of each a cut runs straight up to what is above it.

    A cut lies in the middle of a column of pixels, all of which are the part's; its ends have to stay.

    Returns:
        (N, 5) int64, x and y in half pixels.
    """
    whole, *holes = (ring * (2, 2, 1, 1, 1) for ring in rings)  # half pixels from here on
    for hole in sorted(holes, key=lambda ring: int(ring[:, 1].min())):
        top = int(hole[:, 1].min())
        at = int(np.flatnonzero((hole[:, 1] == top) & (np.roll(hole[:, 1], -1) == top))[0])
        column = min(int(hole[at, 0]), int(hole[(at + 1) % len(hole), 0])) // 2
        above = np.flatnonzero(~part[: top // 2, column])
        hit = 2 * (int(above[-1]) + 1 if len(above) else 0)
        middle = 2 * column + 1
        lower, upper = np.array([[middle, top, 0, -1, 1]]), np.array([[middle, hit, 0, 1, 1]])
        after = np.roll(whole, -1, axis=0)
        on_edge = (whole[:, 1] == hit) & (after[:, 1] == hit) & ((whole[:, 0] < middle) != (after[:, 0] < middle))
        edge = int(np.flatnonzero(on_edge)[0]) + 1
        loop = np.roll(hole, -(at + 1), axis=0)
        whole = np.concatenate([whole[:edge], upper, lower, loop, lower, upper, whole[edge:]])
    return whole


# -------------------------------------------------------------------------------------------------------- simplifying


def _inset(corners: _Corners) -> Float64:
    """Corners in half pixels as (N, 2) float64 in pixels, inside the outline by `INSET`."""
    return corners[:, :2] / 2 + INSET * corners[:, 2:4]


def _simplify(corners: _Corners, tolerance: float) -> Float64:
    """Leave out corners of a ring, as Douglas and Peucker do, between those that have to stay."""
    points = _inset(corners)
    places = np.flatnonzero(corners[:, 4])
    turned = np.roll(points, -places[0] if len(places) else 0, axis=0)
    stops = [*(places - places[0]).tolist(), len(points)] if len(places) else [0, len(points)]
    turned = np.concatenate([turned, turned[:1]])
    kept: list[Float64] = []
    for start, end in itertools.pairwise(stops):
        arc = turned[start : end + 1]
        around = [0, len(arc) - 1]
        if (arc[0] == arc[-1]).all():  # nothing is far off a line of no length: stop at the farthest corner
            around.insert(1, int(np.argmax(np.square(arc - arc[0]).sum(axis=1))))
        for one, other in itertools.pairwise(around):
            thinned = cv2.approxPolyDP(arc[one : other + 1].astype(np.float32), tolerance, closed=False)
            kept.append(np.asarray(thinned, dtype=np.float64).reshape(-1, 2)[:-1])
    return np.concatenate(kept)


def _as_drawn(polygon: Float64, size: tuple[int, int], *, has_cuts: bool) -> list[BoolArray]:
    """What programs draw of a polygon, (h, w) bool: by pixels' centres, and with the border's whole pixels."""
    blank = np.zeros(size, dtype=np.uint8)
    drawn = [fill_polygon(polygon, *size), cv2.fillPoly(blank.copy(), [polygon.astype(np.int32)], 1).astype(bool)]
    if not has_cuts:  # LabelMe, whose holes are masks, draws by Pillow
        picture = Image.fromarray(blank)
        ImageDraw.Draw(picture).polygon([(x, y) for x, y in polygon.tolist()], outline=1, fill=1)
        drawn.append(np.asarray(picture).astype(bool))
    return drawn


def _overlap(one: BoolArray, other: BoolArray) -> float:
    """Intersection over union of two masks of one size."""
    return float((one & other).sum() / max(int((one | other).sum()), 1))
