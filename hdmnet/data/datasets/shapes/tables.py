"""Silhouettes, surface patterns and noise of SHAPES-5i, as tables of integers.

Every table is quantised to integers once per process, so that pictures can be composed by integer arithmetic alone
(see `shapes_render`). Silhouettes and patterns live in an *object frame*: origin at the object's centre, x to the
right, y down, one unit = the radius of the object's bounding circle. Tables hold `UNIT` samples a unit, (row, column).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

UNIT = 128  # table samples per object unit
SILHOUETTE_SIZE = 288  # covers ±1.125 units: the unit disc and an empty rim, which out-of-range samples are clipped to
PATTERN_SIZE = 512  # covers ±2 units; a power of two, so that coordinates wrap with a bit mask
NOISE_SIZE = 768
MAX_IMAGE_SIDE = 512  # noise crops of this side still have room to move within NOISE_SIZE
FRAMED = "framed"  # the one pattern that follows the silhouette's outline
SHARDS = 8  # silhouettes of clutter, after those of the classes
_ALPHA_BLUR = 5  # table samples: about one pixel of an object of 25 px radius
_TINY = 1.2345e-4  # keeps sample points off the exact edges, where the last bit of a float would decide

Grid: TypeAlias = NDArray[np.floating[Any]]
Ints: TypeAlias = NDArray[np.int32]


# ---------------------------------------------------------------------------------------------------- silhouettes


def _grid(size: int) -> tuple[Grid, Grid]:
    """Return the sample points' x (1, size) and y (size, 1) in object units."""
    line = (np.arange(size) + 0.5 - size / 2) / UNIT + _TINY
    return line[None, :], line[:, None]


def _polygon(x: Grid, y: Grid, points: Sequence[tuple[float, float]]) -> NDArray[np.bool_]:
    """Even-odd inside test of every sample point against one polygon of (x, y) vertices."""
    inside = np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=bool)
    for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
        if y0 != y1:
            inside ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return inside


def _disc(x: Grid, y: Grid, cx: float, cy: float, radius: float) -> NDArray[np.bool_]:
    return (x - cx) ** 2 + (y - cy) ** 2 < radius**2


def _wheel(x: Grid, y: Grid, teeth: int) -> tuple[Grid, Grid]:
    """Return the radius and cos(teeth · angle) of every sample point."""
    return np.hypot(x, y), np.cos(teeth * np.arctan2(y, x))


def _star_points(count: int, inner: float, turn: float = 0.0) -> list[tuple[float, float]]:
    angles = [math.pi * i / count + turn for i in range(2 * count)]
    return [((1, inner)[i % 2] * math.sin(a), -(1, inner)[i % 2] * math.cos(a)) for i, a in enumerate(angles)]


def _regular(count: int) -> list[tuple[float, float]]:
    return [(math.cos(2 * math.pi * i / count), math.sin(2 * math.pi * i / count)) for i in range(count)]


def _mirrored(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Close a polygon's right half by its mirror image on the left."""
    return points + [(-px, py) for px, py in reversed(points)]


def _gear(x: Grid, y: Grid) -> NDArray[np.bool_]:
    radius, wave = _wheel(x, y, 8)
    return (radius < np.where(wave > 0, 0.98, 0.74)) & (radius > 0.24)


def _heart(x: Grid, y: Grid) -> NDArray[np.bool_]:
    x, y = x * 1.28, 0.12 - y * 1.22
    return np.asarray((x * x + y * y - 1) ** 3 - x * x * y**3 < 0)


def _flower(x: Grid, y: Grid) -> NDArray[np.bool_]:
    radius, wave = _wheel(x, y, 5)
    return np.asarray(radius < 0.72 + 0.27 * wave)


def _drop(x: Grid, y: Grid) -> NDArray[np.bool_]:
    cone = _polygon(x, y, [(0.0, -1.0), (0.58, 0.15), (-0.58, 0.15)])
    return _disc(x, y, 0, 0.34, 0.64) | cone


def _fish(x: Grid, y: Grid) -> NDArray[np.bool_]:
    body = ((x + 0.22) / 0.76) ** 2 + (y / 0.56) ** 2 < 1
    return body | _polygon(x, y, [(0.25, 0.0), (0.92, -0.58), (0.78, 0.0), (0.92, 0.58)])


def _cloud(x: Grid, y: Grid) -> NDArray[np.bool_]:
    lobes = ((-0.52, 0.12, 0.42), (0.0, -0.24, 0.55), (0.54, 0.1, 0.42), (0.0, 0.25, 0.34))
    inside = np.zeros((y.shape[0], x.shape[1]), dtype=bool)
    for cx, cy, radius in lobes:
        inside |= _disc(x, y, cx, cy, radius)
    return inside | ((np.abs(x) < 0.55) & (y > 0) & (y < 0.54))


def _mushroom(x: Grid, y: Grid) -> NDArray[np.bool_]:
    cap = ((x / 0.95) ** 2 + ((y - 0.05) / 0.92) ** 2 < 1) & (y < 0.12)
    return cap | ((np.abs(x) < 0.36) & (y >= 0.1) & (y < 0.88))


def _bone(x: Grid, y: Grid) -> NDArray[np.bool_]:
    inside = (np.abs(x) < 0.6) & (np.abs(y) < 0.28)
    for cx in (-0.6, 0.6):
        for cy in (-0.3, 0.3):
            inside = inside | _disc(x, y, cx, cy, 0.33)
    return inside


def _shield(x: Grid, y: Grid) -> NDArray[np.bool_]:
    lower = _disc(x, y, -0.5, -0.2, 1.22) & _disc(x, y, 0.5, -0.2, 1.22)
    return lower & (y > -0.68) & (np.abs(x) < 0.72)


# Chunky on purpose: a limb narrower than a period would hide the pattern.
SILHOUETTES: dict[str, Callable[[Grid, Grid], NDArray[np.bool_]]] = {
    "star": lambda x, y: _polygon(x, y, _star_points(5, 0.52)),
    "gear": _gear,
    "heart": _heart,
    "leaf": lambda x, y: _disc(x, y, 0, 0.5, 1.11) & _disc(x, y, 0, -0.5, 1.11),
    "house": lambda x, y: _polygon(
        x, y, [(0, -0.98), (0.9, -0.2), (0.66, -0.2), (0.66, 0.74), (-0.66, 0.74), (-0.66, -0.2), (-0.9, -0.2)]
    ),
    "crescent": lambda x, y: _disc(x, y, 0, 0, 1) & ~_disc(x, y, 0.55, 0, 0.66),
    "cross": lambda x, y: ((np.abs(x) < 0.36) & (np.abs(y) < 0.92)) | ((np.abs(x) < 0.92) & (np.abs(y) < 0.36)),
    "drop": _drop,
    "fish": _fish,
    "hexagon": lambda x, y: _polygon(x, y, _regular(6)),
    "cloud": _cloud,
    "mushroom": _mushroom,
    "shield": _shield,
    "disc": lambda x, y: _disc(x, y, 0, 0, 0.88),
    "arrow": lambda x, y: _polygon(
        x, y, [(1, 0), (0.1, 0.9), (0.1, 0.42), (-0.88, 0.42), (-0.88, -0.42), (0.1, -0.42), (0.1, -0.9)]
    ),
    "bowl": lambda x, y: _disc(x, y, 0, -0.3, 0.95) & (y > -0.3),
    "flower": _flower,
    "bone": _bone,
    "bolt": lambda x, y: _polygon(
        x, y, [(-0.1, -1), (0.62, -0.78), (0.3, -0.24), (0.72, -0.18), (-0.3, 0.98), (-0.12, 0.2), (-0.68, 0.12)]
    ),
    "shirt": lambda x, y: _polygon(
        x, y, _mirrored([(0.2, -0.62), (0.45, -0.78), (0.98, -0.2), (0.7, 0.16), (0.5, -0.02), (0.5, 0.84)])
    ),
}


# ------------------------------------------------------------------------------------------------------- patterns


def _frac(value: Grid) -> Grid:
    return value - np.floor(value)


def _lattice(x: Grid, y: Grid, pitch: float, stagger: float = 0.0) -> tuple[Grid, Grid]:
    """Offsets from the nearest point of a lattice whose odd rows are shifted by `stagger` pitches."""
    row = np.floor(y / pitch)
    shifted = x / pitch + stagger * (row % 2)
    return (_frac(shifted) - 0.5) * pitch, (_frac(y / pitch) - 0.5) * pitch + 0 * x


def _dotted(x: Grid, y: Grid) -> Grid:
    dx, dy = _lattice(x, y, 0.36, 0.5)
    return 1.0 * (np.hypot(dx, dy) < 0.125)


def _bricked(x: Grid, y: Grid) -> Grid:
    row = np.floor(y / 0.26)
    return 1.0 * ((_frac(y / 0.26) < 0.27) | (_frac(x / 0.52 + 0.5 * (row % 2)) < 0.14))


def _triangled(x: Grid, y: Grid) -> Grid:
    slant = y / (0.46 * math.sqrt(3))
    return 1.0 * (_frac(x / 0.46 - slant) + _frac(2 * slant) < 1)


def _scaled(x: Grid, y: Grid) -> Grid:
    """Overlapping round scales; each row covers the lower half of the one before it."""
    radius, out = 0.25, np.zeros((y.shape[0], x.shape[1]))
    row = np.floor(y / radius)
    for back in (1.0, 0.0, -1.0):  # the rows whose scales can reach this point, the front one last
        level = row - back
        dx = (_frac(x / (2 * radius) + 0.5 * (level % 2)) - 0.5) * 2 * radius
        distance = np.hypot(dx, y - (level + 0.5) * radius - 0.5 * radius + radius)
        out = np.where(distance < radius, 1.0 * (distance > 0.66 * radius), out)
    return out


def _speckled(x: Grid, y: Grid) -> Grid:
    words = np.random.Philox(key=[20, 0]).random_raw(64 * 64).reshape(64, 64)
    cells = 1.0 * ((words >> np.uint64(60)) < np.uint64(6))
    rows, columns = np.floor(y / 0.105).astype(int) & 63, np.floor(x / 0.105).astype(int) & 63
    return np.asarray(cells[rows, columns])


def _crossed(x: Grid, y: Grid) -> Grid:
    dx, dy = (np.abs(d) for d in _lattice(x, y, 0.46))
    return 1.0 * (((dx < 0.055) & (dy < 0.165)) | ((dx < 0.165) & (dy < 0.055)))


def _zigzag(x: Grid, y: Grid) -> Grid:
    return 1.0 * (_frac((y + np.abs(_frac(x / 0.56) - 0.5) * 0.62) / 0.34) < 0.5)


def _woven(x: Grid, y: Grid) -> Grid:
    upright = (np.floor(x / 0.6) + np.floor(y / 0.6)) % 2 == 0
    return 1.0 * np.where(upright, _frac(x / 0.2) < 0.45, _frac(y / 0.2) < 0.45)


def _looped(x: Grid, y: Grid) -> Grid:
    dx, dy = _lattice(x, y, 0.48)
    return 1.0 * (np.abs(np.hypot(dx, dy) - 0.145) < 0.05)


def _dashed(x: Grid, y: Grid) -> Grid:
    row = np.floor(y / 0.2)
    return 1.0 * ((_frac(y / 0.2) < 0.48) & (_frac(x / 0.56 + 0.5 * (row % 2)) < 0.56))


# Value 0 is the first colour, 1 the second.
PATTERNS: dict[str, Callable[[Grid, Grid], Grid]] = {
    "striped": lambda x, y: 1.0 * (_frac(x / 0.36) < 0.5) + 0 * y,
    "checkered": lambda x, y: (np.floor(x / 0.25) + np.floor(y / 0.25)) % 2,
    "dotted": _dotted,
    "quartered": lambda x, y: 1.0 * (x * y > 0),
    "bricked": _bricked,
    "ringed": lambda x, y: 1.0 * (_frac(np.hypot(x, y) / 0.34) < 0.5),
    "gridded": lambda x, y: 1.0 * ((_frac(x / 0.33) < 0.24) | (_frac(y / 0.33) < 0.24)),
    "triangled": _triangled,
    "scaled": _scaled,
    FRAMED: lambda x, y: 0 * x * y,  # drawn from the silhouette, see frame_table
    "faded": lambda x, y: np.clip(0.5 + 0.62 * x, 0, 1) + 0 * y,
    "speckled": _speckled,
    "crossed": _crossed,
    "rayed": lambda x, y: 1.0 * (_frac(np.arctan2(y, x) * 9 / (2 * math.pi)) < 0.5),
    "zigzag": _zigzag,
    "woven": _woven,
    "looped": _looped,
    "pleated": lambda x, y: _frac(x / 0.5) + 0 * y,
    "dashed": _dashed,
    "plaid": lambda x, y: 0.5 * (_frac(x / 0.5) < 0.5) + 0.5 * (_frac(y / 0.5) < 0.5),
}
CENTRED = frozenset({"ringed", "rayed", "quartered", "faded", FRAMED})  # moved only a little: they have a middle
PLAIN, BLOTCHED, CLOUDED = (len(PATTERNS) + i for i in range(3))  # fills of clutter, no class has them


# --------------------------------------------------------------------------------------------------------- tables


def _box_blur(table: NDArray[np.int64], width: int, passes: int = 2) -> NDArray[np.int64]:
    """Wrapping box filter over both axes in integers; `width` is odd."""
    for _ in range(passes):
        for axis in (0, 1):
            shifts = range(-(width // 2), width // 2 + 1)
            table = np.asarray(sum(np.roll(table, shift, axis) for shift in shifts)) // width
    return table


@cache
def silhouette_table(row: int) -> Ints:
    """Coverage (SILHOUETTE_SIZE²) int32 0..256 of one silhouette (classes first, then shards), flattened."""
    x, y = _grid(SILHOUETTE_SIZE)
    if row < len(SILHOUETTES):
        inside = list(SILHOUETTES.values())[row](x, y)
    else:
        words = np.random.Philox(key=[30, row]).random_raw(12).tolist()
        count = 3 + (words[0] >> 32) % 4
        turns = sorted((i + 0.7 * (words[i + 1] >> 11) / 2**53) / count * 2 * math.pi for i in range(count))
        inside = _polygon(x, y, [(math.cos(a), math.sin(a)) for a in turns])
    coverage = _box_blur(256 * inside.astype(np.int64), _ALPHA_BLUR)
    return coverage.astype(np.int32).ravel()


@cache
def frame_table(row: int) -> Ints:
    """The "framed" pattern of one silhouette: 256 within 0.2 units of its outline, 0 inside; flattened int32."""
    inside = silhouette_table(row).reshape(SILHOUETTE_SIZE, SILHOUETTE_SIZE) >= 128
    inner = inside
    for step in range(22):  # a cross and a square in turn erode by an octagon
        sides = [np.roll(inner, shift, axis) for shift in (-1, 1) for axis in (0, 1)]
        if step % 2:
            sides += [np.roll(inner, shift, (0, 1)) for shift in ((1, 1), (1, -1), (-1, 1), (-1, -1))]
        inner = np.logical_and.reduce([inner, *sides])
    return _box_blur(256 * (~inner).astype(np.int64), _ALPHA_BLUR).astype(np.int32).ravel()


@cache
def pattern_table(row: int) -> Ints:
    """Mix of the two colours (PATTERN_SIZE²) int32 0..256 of one pattern (classes first, then clutter), flattened."""
    if row == PLAIN:
        return np.zeros(PATTERN_SIZE**2, dtype=np.int32)
    if row in (BLOTCHED, CLOUDED):
        clouds = noise_table(0)[:PATTERN_SIZE, :PATTERN_SIZE].astype(np.int64)
        table = np.where(clouds > 0, 256, 0) if row == BLOTCHED else clouds + 128
    else:
        x, y = _grid(PATTERN_SIZE)
        table = np.floor(np.round(list(PATTERNS.values())[row](x, y), 9) * 256 + 0.5).astype(np.int64)
    return np.ascontiguousarray(_box_blur(table, _ALPHA_BLUR), dtype=np.int32).ravel()


@cache
def noise_table(scale: int) -> Ints:
    """Noise (NOISE_SIZE²) int32 in -128..127, smoothed: 0 coarse (about 30 px), 1 middle (10), 2 fine (3), 3 none."""
    words = np.random.Philox(key=[10, scale]).random_raw(NOISE_SIZE**2 // 8)
    noise = words.astype("<u8").view(np.uint8).astype(np.int64).reshape(NOISE_SIZE, NOISE_SIZE) * 1024 - 127 * 1024
    width = (25, 9, 3, 1)[scale]
    noise = _box_blur(noise, width) if width > 1 else noise
    spread = max(int(np.sqrt(np.mean(noise.astype(np.float64) ** 2))), 1)
    return np.clip(noise * 52 // spread, -128, 127).astype(np.int32)
