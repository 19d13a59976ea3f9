"""Palettes of masks whose values are classes: they tell when a program has renumbered a mask.

Optimisers of PNGs drop and sort the entries of a palette, and change the values with them. A viewer shows the mask as
before, but its values name other classes. So in a data set a value has to be shown in the same colour by all masks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hdmnet.data.io.arrays import UInt8Array
from hdmnet.data.io.masks import read_mask, read_palette
from hdmnet.runtime.errors import DatasetError

_SAMPLE = 64  # masks that tell which colour a value has
_UNKNOWN = -1


@dataclass(frozen=True)
class CommonColours:
    """The colour in which most masks of a data set show each value.

    Attributes:
        codes: (256,) int64, 0xRRGGBB of each value; -1 of one that none of them holds.
        masks: One of the masks that show a value so, by value.
    """

    codes: NDArray[np.int64]
    masks: dict[int, Path]

    def other(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """The value that is shown as this palette (n,) of 0xRRGGBB shows 0..n-1, or otherwise; -1 where all is well."""
        own = self.codes[: len(codes)]
        values = np.where((own != _UNKNOWN) & (own != codes), np.arange(len(codes)), _UNKNOWN)
        for value in np.flatnonzero((own == _UNKNOWN) & np.isin(codes, self.codes)):
            values[value] = np.flatnonzero(self.codes == codes[value])[0]
        return values


def common_colours(paths: Sequence[Path]) -> CommonColours:
    """Find out in which colours masks show their values.

    Args:
        paths: All masks of a data set; of many some are looked at. What cannot be read is passed over.
    """
    shown: dict[int, Counter[int]] = {}
    masks: dict[tuple[int, int], Path] = {}
    for position in sorted({int(place) for place in np.linspace(0, len(paths) - 1, min(_SAMPLE, len(paths)))}):
        try:
            palette = read_palette(paths[position])
            used = [] if palette is None else _values_of(paths[position], len(palette))
        except (ValueError, OSError):  # whoever reads the mask says so
            continue
        for value in used:
            assert palette is not None
            code = int(_codes(palette)[value])
            shown.setdefault(value, Counter())[code] += 1
            masks.setdefault((value, code), paths[position])
    codes = np.full(256, _UNKNOWN, dtype=np.int64)
    for value, counts in shown.items():
        codes[value] = counts.most_common(1)[0][0]
    return CommonColours(codes, {value: masks[value, int(codes[value])] for value in shown})


def refuse_other_palette(path: Path, common: CommonColours) -> None:
    """Refuse a mask that shows a value in another colour than others do, or as these show another value.

    Args:
        path: The mask.
        common: From `common_colours`.

    Raises:
        FileNotFoundError: There is no such mask.
        ValueError: It does, or cannot be read; one line with both masks.
    """
    palette = read_palette(path)
    if palette is None:
        return
    other = common.other(_codes(palette))
    if (other == _UNKNOWN).all():
        return
    for value in _values_of(path, len(palette)):
        if (wrong := int(other[value])) != _UNKNOWN:
            raise DatasetError(
                f"mask {path} shows value {value} as RGB {_as_text(int(_codes(palette)[value]))}, but "
                f"{common.masks[wrong]} shows {wrong} as {_as_text(int(common.codes[wrong]))}: a program has changed a "
                "palette, and the values with it; save the masks with one palette, or as grey values"
            )


def _values_of(path: Path, number: int) -> list[int]:
    """The values that a mask holds, of those below a number."""
    found: list[int] = np.flatnonzero(np.bincount(read_mask(path).ravel(), minlength=256)[:number]).tolist()
    return found


def _codes(palette: UInt8Array) -> NDArray[np.int64]:
    """(n, 3) colours as (n,) 0xRRGGBB."""
    codes: NDArray[np.int64] = palette.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    return codes


def _as_text(code: int) -> str:
    return f"({code >> 16}, {code >> 8 & 255}, {code & 255})"
