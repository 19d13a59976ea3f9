"""Palettes of masks whose values are classes: they tell when a program has renumbered a mask.

Optimisers of PNGs drop and sort the entries of a palette, and change the values with them. A viewer shows the mask as
before, but its values name other classes. So in a data set a value has to be shown in the same colour by all masks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hdmnet.data.io.masks import read_mask, read_palette
from hdmnet.runtime.errors import DatasetError

_SAMPLE = 64  # masks that tell which colour a value has

Colour = tuple[int, int, int]


def common_colours(paths: Sequence[Path]) -> dict[int, tuple[Colour, Path]]:
    """The colour in which most of some masks show each value that they hold, and one of these masks.

    Args:
        paths: All masks of a data set; of many some are looked at. What cannot be read is passed over.
    """
    shown: dict[int, Counter[Colour]] = {}
    first: dict[tuple[int, Colour], Path] = {}
    for position in sorted({int(place) for place in np.linspace(0, len(paths) - 1, min(_SAMPLE, len(paths)))}):
        try:
            colours = _colours(paths[position])
        except (ValueError, OSError):  # whoever reads the mask says so
            continue
        for value, colour in colours.items():
            shown.setdefault(value, Counter())[colour] += 1
            first.setdefault((value, colour), paths[position])
    most = {value: counts.most_common(1)[0][0] for value, counts in shown.items()}
    return {value: (colour, first[value, colour]) for value, colour in most.items()}


def refuse_other_palette(path: Path, common: dict[int, tuple[Colour, Path]]) -> None:
    """Refuse a mask that shows a value in another colour than others do, or as these show another value.

    Args:
        path: The mask.
        common: From `common_colours`.

    Raises:
        FileNotFoundError: There is no such mask.
        ValueError: It does, or cannot be read; one line with both masks.
    """
    owners = {colour: value for value, (colour, _) in common.items()}

    def other(value: int, colour: Colour) -> int | None:
        """The value that other masks show so, or this one if they show it otherwise; None where nothing is wrong."""
        if value not in common:
            return owners.get(colour)
        return None if common[value][0] == colour else value

    palette = read_palette(path)
    if palette is None or all(other(value, _rgb(entry)) is None for value, entry in enumerate(palette.tolist())):
        return
    for value, colour in _colours(path).items():  # of those that the mask holds
        if (wrong := other(value, colour)) is not None:
            theirs, where = common[wrong]
            raise DatasetError(
                f"mask {path} shows value {value} as RGB {colour}, but {where} shows {wrong} as {theirs}: a program "
                "has changed a palette, and the values with it; save the masks with one palette, or as grey values"
            )


def _colours(path: Path) -> dict[int, Colour]:
    """The colour of each value that a mask holds, by its palette; nothing of a mask without one."""
    palette = read_palette(path)
    if palette is None:
        return {}
    used = np.flatnonzero(np.bincount(read_mask(path).ravel(), minlength=256)).tolist()
    return {value: _rgb(palette[value].tolist()) for value in used if value < len(palette)}


def _rgb(entry: Sequence[int]) -> Colour:
    red, green, blue = entry
    return red, green, blue
