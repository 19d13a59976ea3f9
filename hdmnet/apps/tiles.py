"""Large pictures in overlapping tiles: the network sees each tile as a whole picture, and seams are blended.

What a tile says counts less towards its borders, so that the weights of all tiles add up to 1 at every pixel. A method
that stretches its maps by their extremes expects its object in every picture, and would find one in every tile: a first
pass over the picture finds the extremes of all of it, by which each tile is then stretched
(`hdmnet.models.prior.SharedRanges`).

Memory does not grow with the number of tiles: what a row of tiles says goes to disk when it is done. There it is found
again after a stop, so that no row is computed twice.

Dimension letters: H0 W0 size of a picture, h w that of a tile in its pixels, C channels: of each class the probability
and, of a method with a rule of its own, whether it is foreground.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hdmnet.apps.unfinished import Unfinished
from hdmnet.data.io.arrays import UInt8Array, bands
from hdmnet.models.method import Segmentation, foreground_probability
from hdmnet.models.prior import SharedRanges
from hdmnet.runtime.atomic import replacing
from hdmnet.runtime.errors import InputError
from hdmnet.tasks.feature_store import at_size

Float32 = NDArray[np.float32]
UInt16 = NDArray[np.uint16]
#: What the network says by class of a picture (h, w, 3) uint8, a part of something whose ranges by class are given.
Answer = Callable[[UInt8Array, Mapping[str, SharedRanges]], Mapping[str, Segmentation]]

MAX_OVERLAP = 0.5  # share of a tile's side: with more, time grows and nothing is gained
_FULL = 65535  # a probability of 1, as it is kept


# -------------------------------------------------------------------------------------------------- where the tiles lie


@dataclass(frozen=True)
class Tiling:
    """Where the tiles of a picture lie.

    Attributes:
        size: (H0, W0).
        tile: (h, w), no larger than the picture.
        tops: First rows of the rows of tiles, ascending.
        lefts: First columns of the columns of tiles.
    """

    size: tuple[int, int]
    tile: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @classmethod
    def of(cls, size: tuple[int, ...], tile: tuple[int, int], overlap: float) -> Tiling:
        """Cover a picture evenly.

        Args:
            size: (H0, W0) of the picture.
            tile: (h, w) in its pixels; where the picture is smaller, its side.
            overlap: Least share of a tile's side that the next one covers too, from 0 to `MAX_OVERLAP`.
        """
        height, width = min(tile[0], size[0]), min(tile[1], size[1])
        tops, lefts = _starts(size[0], height, overlap), _starts(size[1], width, overlap)
        return cls((size[0], size[1]), (height, width), tops, lefts)

    def __len__(self) -> int:
        """The number of tiles."""
        return len(self.tops) * len(self.lefts)

    def part(self, picture: UInt8Array, row: int, column: int) -> UInt8Array:
        """A tile (h, w, 3) of the picture (H0, W0, 3)."""
        top, left = self.tops[row], self.lefts[column]
        return picture[top : top + self.tile[0], left : left + self.tile[1]]


def _starts(whole: int, side: int, overlap: float) -> tuple[int, ...]:
    """Where parts of a side's length begin that cover a whole."""
    number = 1 + math.ceil((whole - side) / max(side * (1 - overlap), 1))
    return tuple(round(place) for place in np.linspace(0, whole - side, number).tolist())


def ramps(starts: Sequence[int], side: int) -> list[Float32]:
    """Weights (side,) of parts that begin at `starts`: they rise and fall where parts overlap, and add up to 1."""
    weights = [np.ones(side) for _ in starts]
    for (before, one), (start, other) in itertools.pairwise(zip(starts, weights, strict=True)):
        shared = before + side - start
        rising = (np.arange(shared) + 0.5) / max(shared, 1)
        other[:shared] *= rising
        one[side - shared :] *= 1 - rising
    total = np.zeros(starts[-1] + side)
    for start, ramp in zip(starts, weights, strict=True):
        total[start : start + side] += ramp  # not 1 where rounding has made three parts overlap
    return [
        np.asarray(ramp / total[start : start + side], dtype=np.float32)
        for start, ramp in zip(starts, weights, strict=True)
    ]


@dataclass(frozen=True)
class Tiles:
    """How large pictures are cut up.

    Attributes:
        side: (h, w) px of the picture, of which each tile becomes the network's size.
        overlap: Share of the side that the next tile covers too.
    """

    side: tuple[int, int]
    overlap: float

    @classmethod
    def read(cls, tile: Any, overlap: float) -> Tiles:
        """Of the keys `tile`, px, a side or [h, w], and `tile_overlap`.

        Raises:
            ValueError: They are not such.
        """
        sides = [tile, tile] if type(tile) is int else tile
        fits = isinstance(sides, Sequence) and len(sides) == 2
        if not fits or not all(type(side) is int and side > 0 for side in sides):
            raise InputError(f"tile={tile}: expected a side in pixels of the picture, or two of them: [H,W]")
        if not 0 <= overlap <= MAX_OVERLAP:
            raise InputError(f"tile_overlap={overlap}: expected a share of a tile's side, from 0 to {MAX_OVERLAP}")
        return cls((sides[0], sides[1]), float(overlap))

    def cover(self, size: tuple[int, ...]) -> Tiling:
        """The tiles of a picture (H0, W0)."""
        return Tiling.of(size, self.side, self.overlap)

    def cover_once(self, size: tuple[int, ...]) -> Tiling:
        """As few tiles of the same size as cover a picture (H0, W0)."""
        return Tiling.of(size, self.side, 0)


# ------------------------------------------------------------------------------------------------------- what is found


class StoredProbability:
    """A probability (H0, W0) float32 in [0, 1] that lies on disk as 16 bits: only what is asked for is read.

    Args:
        file: uint16, nothing else.
        shape: (H0, W0).
    """

    def __init__(self, file: Path, shape: tuple[int, int]) -> None:
        self.file, self.shape = file, shape

    def stored(self) -> UInt16:
        """(H0, W0) uint16, 65535 for 1; read as far as it is looked at."""
        return np.memmap(self.file, dtype=np.uint16, mode="r", shape=self.shape)

    def __getitem__(self, region: Any) -> Float32:
        """A region, as of an array."""
        return np.asarray(self.stored()[region] / np.float32(_FULL), dtype=np.float32)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """All of it."""
        return self[:].astype(dtype or np.float32, copy=False)


def as_16_bits(probability: Float32 | StoredProbability) -> UInt16:
    """(H0, W0) uint16 of a probability, 65535 for 1."""
    if isinstance(probability, StoredProbability):
        return probability.stored()
    return np.rint(probability * _FULL).astype(np.uint16)


def segment_tiles(
    answer: Answer,
    picture: UInt8Array,
    classes: Sequence[str],
    tiles: Tiles,
    work: Unfinished,
    step: Callable[[int], object] = lambda number: None,
) -> tuple[UInt8Array, dict[str, StoredProbability]]:
    """Segment a picture tile by tile, in two passes: see the module's docstring.

    Args:
        answer: The network.
        picture: (H0, W0, 3) uint8.
        classes: Their names.
        tiles: How to cut the picture up.
        work: Keeps what is found; what is there already is not computed again.
        step: Is told how many tiles have been done, of `num_steps` in all.

    Returns:
        (H0, W0) uint8, 0 background, 1..C the classes; their probabilities, which lie in the folder of `work`.
    """
    ranges = _find_ranges(answer, picture, classes, tiles.cover_once(picture.shape), work, step)
    tiling = tiles.cover(picture.shape)
    weights = ramps(tiling.lefts, tiling.tile[1])
    for row in range(len(tiling.tops)):
        if _strip(work, row).is_file():
            step(len(weights))
            continue
        strip = np.zeros((0, tiling.tile[0], tiling.size[1]), dtype=np.float32)
        for column, weight in enumerate(weights):
            found = _channels(answer(tiling.part(picture, row, column), ranges), tiling.tile)
            if not len(strip):
                strip = np.zeros((len(found), *strip.shape[1:]), dtype=np.float32)
            left = tiling.lefts[column]
            strip[:, :, left : left + len(weight)] += found * weight
            step(1)
        with replacing(_strip(work, row)) as temporary, temporary.open("wb") as file:
            np.save(file, np.rint(strip * _FULL).astype(np.uint16))
    return _join(work, tiling, classes)


def num_steps(tiles: Tiles, size: tuple[int, ...]) -> int:
    """Tiles of both passes over a picture (H0, W0)."""
    return len(tiles.cover(size)) + len(tiles.cover_once(size))


def _find_ranges(
    answer: Answer,
    picture: UInt8Array,
    classes: Sequence[str],
    tiling: Tiling,
    work: Unfinished,
    step: Callable[[int], object],
) -> dict[str, SharedRanges]:
    """The first pass: the ranges of the whole picture, by class."""
    rows, ranges = work.read_ranges(classes)
    step(rows * len(tiling.lefts))
    for row in range(rows, len(tiling.tops)):
        for column in range(len(tiling.lefts)):
            answer(tiling.part(picture, row, column), ranges)
            step(1)
            if all(one.is_empty for one in ranges.values()):  # of this method no map is stretched
                step(len(tiling) - 1)
                return ranges
        work.write_ranges(row + 1, ranges)
    for one in ranges.values():
        one.fix()
    return ranges


def _channels(outputs: Mapping[str, Segmentation], size: tuple[int, int]) -> Float32:
    """What the network says of a tile, (C, h, w) float32 in [0, 1]."""
    channels = []
    for output in outputs.values():
        scores, foreground = at_size(output, 0, torch.Size(size))
        channels.append(foreground_probability(scores, is_probability=output.is_probability))
        if output.decided is not None:
            channels.append(foreground.to(scores.dtype))
    return np.asarray(torch.stack(channels).cpu().numpy(), dtype=np.float32)


def _strip(work: Unfinished, row: int) -> Path:
    """Of a row of tiles: (C, h, W0) uint16."""
    return work.folder / f"row_{row:05}.npy"


def _join(work: Unfinished, tiling: Tiling, classes: Sequence[str]) -> tuple[UInt8Array, dict[str, StoredProbability]]:
    """Blend the rows of tiles, and decide; see `segment_tiles`."""
    mask = np.zeros(tiling.size, dtype=np.uint8)
    files = [work.folder / f"probability_{number}.uint16" for number in range(len(classes))]
    for file in files:
        file.unlink(missing_ok=True)
    weights = ramps(tiling.tops, tiling.tile[0])
    for rows in bands(tiling.size[0]):
        start, end = rows.start, rows.stop
        band = np.zeros((1, end - start, tiling.size[1]), dtype=np.float32)
        for row, (top, weight) in enumerate(zip(tiling.tops, weights, strict=True)):
            first, last = max(top, start), min(top + len(weight), end)
            if first < last:
                strip = np.load(_strip(work, row), mmap_mode="r")[:, first - top : last - top]
                if len(band) < len(strip):
                    band = np.repeat(band, len(strip), axis=0)
                band[:, first - start : last - start] += strip * weight[first - top : last - top, None]
        mask[start:end], probabilities = _decide(np.rint(band).astype(np.uint16), len(classes))
        for file, values in zip(files, probabilities, strict=True):
            with file.open("ab") as opened:
                values.tofile(opened)
    return mask, {name: StoredProbability(file, tiling.size) for name, file in zip(classes, files, strict=True)}


def _decide(channels: UInt16, number: int) -> tuple[UInt8Array, UInt16]:
    """Labels (h, w) of channels (C, h, w), as `hdmnet.models.several_classes` decides; the probability of each class.

    The likeliest of the classes that are foreground by their rule, or with a probability above a half.
    """
    step = len(channels) // number
    probabilities, foreground = channels[::step], channels[step - 1 :: step] > _FULL // 2
    likeliest = np.where(foreground, probabilities.astype(np.int32), -1).argmax(0)
    return np.where(foreground.any(0), likeliest + 1, 0).astype(np.uint8), probabilities
