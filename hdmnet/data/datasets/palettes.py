"""Palettes of masks whose values are classes: they show when a program has renumbered a mask.

Optimisers of PNGs drop and sort the entries of a palette, and change the values with them. A viewer shows the mask as
before, but its values name other classes. So in a data set a value has to be shown in the same colour by all masks.
They also give grey masks a palette of the greys in use, and make grey masks of palettes of greys. So a palette must not
show a value as the grey of another one that grey masks hold, nor a grey mask 255 where palettes show an object white.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hdmnet.data.io.arrays import IGNORE, UInt8Array
from hdmnet.data.io.masks import read_mask, read_palette
from hdmnet.runtime.errors import DatasetError

_SAMPLE = 64  # masks that tell which colour a value has
_UNKNOWN = -1
_GREY = 0x010101  # times a value: its grey
_WHITE = IGNORE * _GREY


@dataclass(frozen=True)
class CommonColours:
    """The colour in which most masks of a data set show each value.

    Attributes:
        codes: (256,) int64, 0xRRGGBB of each value; -1 of one that none of them holds.
        masks: One of the masks that show a value so, by value.
        grey: One of the masks without palette that hold a value, by value; of values between 0 and 255.
    """

    codes: NDArray[np.int64]
    masks: dict[int, Path]
    grey: dict[int, Path]

    def other(self, codes: NDArray[np.int64]) -> dict[int, tuple[int, Path]]:
        """Which value of 0..n-1, shown by a palette (n,) of 0xRRGGBB, a mask shows otherwise, or another one so.

        Returns:
            By value, the one that is shown otherwise, or in its colour, and the mask that shows it.
        """
        found: dict[int, tuple[int, Path]] = {}
        is_grey = bool((codes % _GREY == 0).all())
        for value, (code, own) in enumerate(zip(codes.tolist(), self.codes[: len(codes)].tolist(), strict=True)):
            grey = code // _GREY if is_grey else value
            if own not in (_UNKNOWN, code):
                found[value] = value, self.masks[value]
            elif grey != value and grey in self.grey:
                found[value] = grey, self.grey[grey]
            elif own == _UNKNOWN:
                # A palette that shows both so, as black what it has no colour for, tells nothing.
                others = [one for one in np.flatnonzero(self.codes == code) if code not in codes[one : one + 1]]
                if others:
                    found[value] = int(others[0]), self.masks[int(others[0])]
        return found


def common_colours(paths: Sequence[Path]) -> CommonColours:
    """Find out in which colours masks show their values.

    Args:
        paths: All masks of a data set; of many some are looked at. What cannot be read is passed over.
    """
    shown: dict[int, Counter[int]] = {}
    masks: dict[tuple[int, int], Path] = {}
    grey: dict[int, Path] = {}
    for position in sorted({int(place) for place in np.linspace(0, len(paths) - 1, min(_SAMPLE, len(paths)))}):
        try:
            palette = read_palette(paths[position])
            used = _values_of(paths[position], IGNORE if palette is None else len(palette))
        except (ValueError, OSError):  # whoever reads the mask says so
            continue
        for value in used:
            if palette is None:
                grey.setdefault(value, paths[position])
                continue
            code = int(_codes(palette)[value])
            shown.setdefault(value, Counter())[code] += 1
            masks.setdefault((value, code), paths[position])
    codes = np.full(256, _UNKNOWN, dtype=np.int64)
    for value, counts in shown.items():
        codes[value] = counts.most_common(1)[0][0]
    grey.pop(0, None)
    return CommonColours(codes, {value: masks[value, int(codes[value])] for value in shown}, grey)


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
        codes, other = np.arange(256) * _GREY, {}
        white = [value for value in common.masks if common.codes[value] == _WHITE and value != IGNORE]
        if white and set(_values_of(path, 256)) <= {0, IGNORE}:
            other = {IGNORE: (white[0], common.masks[white[0]])}
    else:
        codes = _codes(palette)
        other = common.other(codes)
    for value in _values_of(path, len(codes)) if other else ():
        if value in other:
            wrong, mask = other[value]
            shown = common.codes[wrong] if mask == common.masks.get(wrong) else wrong * _GREY
            raise DatasetError(
                f"mask {path} shows value {value} as RGB {_as_text(int(codes[value]))}, but {mask} shows {wrong} as "
                f"{_as_text(int(shown))}: a program has changed a palette, and the values with it; save the masks with "
                "one palette, or as grey values"
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
