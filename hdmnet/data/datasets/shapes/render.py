"""Draws SHAPES-5i pictures from a description of the scene, in integers only.

The same scene gives the same bytes on every machine: neither floats (whose last bit depends on the CPU) nor OpenCV
(whose results depend on the build) touch a pixel. Objects are drawn on their bounding boxes only, from tables.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hdmnet.data.datasets.shapes.tables import (
    FRAMED,
    PATTERN_SIZE,
    PATTERNS,
    SILHOUETTE_SIZE,
    UNIT,
    Ints,
    frame_table,
    noise_table,
    pattern_table,
    silhouette_table,
)

_FRAMED_ROW = list(PATTERNS).index(FRAMED)


@dataclass(frozen=True)
class Patch:
    """One thing to draw: an object or a fragment of clutter.

    Attributes:
        silhouette: Row of the silhouette tables.
        pattern: Row of the pattern tables.
        value: Label painted into the instance map: the object's number from 1, or 0 for clutter.
        centre: (y, x) in pixels.
        matrix: Image offsets (x, y) in pixels → object units, row-major (xx, xy, yx, yy).
        extent: Half height and half width in pixels of the box around the transformed unit circle.
        pattern_matrix: Image offsets (x, y) in pixels → pattern units, row-major.
        pattern_offset: (x, y) in pattern units, the phase of the pattern.
        colours: The pattern's two RGB colours, 0..255.
        shade: Linear shading: change in brightness (of 256) per radius to the right and down.
    """

    silhouette: int
    pattern: int
    value: int
    centre: tuple[float, float]
    matrix: tuple[float, float, float, float]
    extent: tuple[float, float]
    pattern_matrix: tuple[float, float, float, float]
    pattern_offset: tuple[float, float]
    colours: tuple[tuple[int, int, int], tuple[int, int, int]]
    shade: tuple[int, int]


@dataclass(frozen=True)
class Scene:
    """All that a picture depends on.

    Attributes:
        size: (H, W) of the picture in pixels.
        patches: From back to front.
        colours: The background's two RGB colours.
        noise_offsets: Six (y, x) corners of crops of the noise tables: coarse, middle, fine; sensor noise of R, G, B.
        noise_gains: Strength of the middle, fine and sensor noise (0..64).
        light: Brightness (of 256) at the picture's centre, and its change from left to right and from top to bottom.
        blur: Number of 3×3 binomial blurs.
    """

    size: tuple[int, int]
    patches: tuple[Patch, ...]
    colours: tuple[tuple[int, int, int], tuple[int, int, int]]
    noise_offsets: tuple[tuple[int, int], ...]
    noise_gains: tuple[int, int, int]
    light: tuple[int, int, int]
    blur: int


def _coordinates(
    matrix: tuple[float, float, float, float], offset: tuple[float, float], dx: Ints, dy: Ints, size: int
) -> tuple[Ints, Ints]:
    """Column and row (h, w) int32 in a table of a box's pixels, not yet limited to the table.

    `matrix` takes offsets in pixels to table units, `offset` (x, y) is in table units; `dx` (1, w) and `dy` (h, 1) are
    int32 offsets from the centre in 1/16 px.
    """
    xx, xy, yx, yy = (round(m * UNIT * 4096) for m in matrix)
    left, top = (round((o * UNIT + size / 2) * 65536) for o in offset)
    return (dx * xx + (dy * xy + left)) >> 16, (dx * yx + (dy * yy + top)) >> 16


def _shape_index(patch: Patch, dx: Ints, dy: Ints) -> Ints:
    column, row = _coordinates(patch.matrix, (0.0, 0.0), dx, dy, SILHOUETTE_SIZE)
    np.clip(column, 0, SILHOUETTE_SIZE - 1, out=column)
    np.clip(row, 0, SILHOUETTE_SIZE - 1, out=row)
    return row * SILHOUETTE_SIZE + column


def _pattern_values(patch: Patch, dx: Ints, dy: Ints, index: Ints) -> Ints:
    """Colour mix (h, w) int32 0..256 of the patch's pattern."""
    if patch.pattern == _FRAMED_ROW:
        return frame_table(patch.silhouette).take(index)
    column, row = _coordinates(patch.pattern_matrix, patch.pattern_offset, dx, dy, PATTERN_SIZE)
    wrapped = ((row & (PATTERN_SIZE - 1)) << 9) | (column & (PATTERN_SIZE - 1))
    return pattern_table(patch.pattern).take(wrapped)


def _draw_patch(canvas: Ints, instances: NDArray[np.uint8], patch: Patch) -> int:
    """Blend one patch into `canvas` (3, H, W) and `instances` (H, W); return its unoccluded area in px."""
    height, width = instances.shape
    (cy, cx), (half_h, half_w) = patch.centre, patch.extent
    top, left = math.floor(cy - half_h) - 1, math.floor(cx - half_w) - 1
    bottom, right = math.ceil(cy + half_h) + 2, math.ceil(cx + half_w) + 2
    dx = np.arange(left, right, dtype=np.int32)[None, :] * 16 - round(cx * 16)
    dy = np.arange(top, bottom, dtype=np.int32)[:, None] * 16 - round(cy * 16)
    area = 0
    index = _shape_index(patch, dx, dy)
    alpha = silhouette_table(patch.silhouette).take(index)
    if patch.value:  # parts outside the picture count as not visible
        area = int(np.count_nonzero(alpha >= 128))
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(bottom, height), min(right, width)
    if y0 >= y1 or x0 >= x1:
        return area
    inner = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    alpha, dx, dy = alpha[inner], dx[:, inner[1]], dy[inner[0]]
    mix = _pattern_values(patch, dx, dy, index[inner])
    # Brightness (of 256), linear over the patch.
    shade = 256 + (dx * patch.shade[0] // round(16 * half_w) + dy * patch.shade[1] // round(16 * half_h))
    box = canvas[:, y0:y1, x0:x1]
    for channel, (first, second) in enumerate(zip(*patch.colours, strict=True)):
        paint = (((mix * (second - first) >> 8) + first) * shade) >> 8
        paint -= box[channel]
        paint *= alpha
        paint >>= 8
        box[channel] += paint
    instances[y0:y1, x0:x1][alpha >= 128] = patch.value
    return area


def _background(scene: Scene) -> Ints:
    """Two colours mixed by coarse noise, with finer noise on their brightness: (3, H, W) int32."""
    height, width = scene.size
    coarse, middle, fine = (
        noise_table(scale)[y : y + height, x : x + width] for scale, (y, x) in enumerate(scene.noise_offsets[:3])
    )
    grain = (middle * scene.noise_gains[0] + fine * scene.noise_gains[1]) >> 6
    mix = coarse + 128
    return np.stack([((mix * (b - a)) >> 8) + (grain + a) for a, b in zip(*scene.colours, strict=True)])


def _finish(canvas: Ints, scene: Scene) -> NDArray[np.uint8]:
    """Light, blur and sensor noise; (3, H, W) int32 → (H, W, 3) uint8."""
    height, width = scene.size
    level, across, down = scene.light
    columns = (np.arange(width, dtype=np.int32) * 2 - width) * across // width
    rows = (np.arange(height, dtype=np.int32) * 2 - height) * down // height
    np.clip(canvas, 0, 255, out=canvas)
    canvas *= (columns[None, :] + (rows[:, None] + level))[None]
    canvas >>= 8
    for _ in range(scene.blur):
        for axis in (1, 2):
            canvas = _binomial(canvas, axis)
    image = np.empty((height, width, 3), dtype=np.uint8)
    for channel, (y, x) in enumerate(scene.noise_offsets[3:6]):
        sensor = noise_table(3)[y : y + height, x : x + width] * scene.noise_gains[2]
        sensor >>= 6
        sensor += canvas[channel]
        image[..., channel] = np.clip(sensor, 0, 255, out=sensor)
    return image


def _binomial(canvas: Ints, axis: int) -> Ints:
    """(1, 2, 1)/4 along one axis; the border repeats."""
    size = canvas.shape[axis]
    low, mid, high = (
        [slice(None)] * axis + [part] for part in (slice(0, size - 2), slice(1, size - 1), slice(2, size))
    )
    out = canvas.copy()
    out[tuple(mid)] = (canvas[tuple(low)] + 2 * canvas[tuple(mid)] + canvas[tuple(high)]) >> 2
    return out


def render(scene: Scene) -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[int]]:
    """Draw a scene.

    Returns:
        The picture (H, W, 3) uint8 RGB; the instance map (H, W) uint8, 0 = background or clutter, otherwise the
        `value` of the object seen there; and the full area in px of each object in the order of `scene.patches`.
    """
    canvas = _background(scene)
    instances = np.zeros(scene.size, dtype=np.uint8)
    areas = [_draw_patch(canvas, instances, patch) for patch in scene.patches]
    return _finish(canvas, scene), instances, [a for a, p in zip(areas, scene.patches, strict=True) if p.value]
