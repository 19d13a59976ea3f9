"""Masks in colours, and the list that says which class a colour is.

A list has a class and its colour a line, in any of the usual ways:

    cat:176,112,32::       labelmap.txt of CVAT and Datumaro
    64 128 64   Animal     label_colors.txt of CamVid
    Animal,64,128,64       class_dict.csv; a first line of titles is passed over, as is a number in front
    Animal #408040

Lines that begin with # and hold no colour are comments. A class may have several colours. `background` is 0; `void`,
`ignore` and `unlabelled` are 255, as is the colour of VOC's borders. Black that is not listed is background, any other
colour that is not listed is refused.

What a viewer sees decides, in palette and grey masks too; what is transparent is background. Only where it is shades
of grey or VOC's palette, and no colour of the list, a mask holds places: value v is the list's line v, background being
line 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hdmnet.data.io.arrays import IGNORE
from hdmnet.data.io.masks import voc_palette
from hdmnet.data.io.pictures import decode
from hdmnet.runtime.errors import DatasetError, MissingFileError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from hdmnet.data.io.arrays import UInt8Array

# What annotation tools write into a list of classes for values that are no class.
BACKGROUND = frozenset({"background", "_background_", "__background__"})
IGNORED = frozenset({"__ignore__", "_ignore_", "ignore", "void", "unlabelled", "unlabeled"})

_COLOUR = r"(?P<r>\d{1,3})\s*[,;\s]\s*(?P<g>\d{1,3})\s*[,;\s]\s*(?P<b>\d{1,3})"
_LINES = (
    re.compile(rf"[\[(]?{_COLOUR}[\])]?[\s,;:]+(?P<name>\S.*)"),
    re.compile(rf"(?:\d+[,;\t]\s*)?(?P<name>.*?\S)\s*[\s,;:=]\s*[\[(]?{_COLOUR}[\])]?\s*(?::.*)?"),
    re.compile(r"(?P<name>[^#]*?[^#\s])[\s,;:=]+#(?P<hex>[0-9a-fA-F]{6})"),
    re.compile(r"#(?P<hex>[0-9a-fA-F]{6})[\s,;:=]+(?P<name>\S.*)"),
)
_BLACK, _VOC_BORDER = 0, 0xE0E0C0


@dataclass(frozen=True)
class ColourList:
    """Which class each colour is.

    Attributes:
        path: The file.
        labels: Name and colour (0xRRGGBB) of each line, in order; background and what is ignored among them.
    """

    path: Path
    labels: tuple[tuple[str, int], ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, each once, in order."""
        names = dict.fromkeys(name for name, _ in self.labels)
        return tuple(name for name in names if name.lower() not in BACKGROUND | IGNORED)


def find_colours(path: Path) -> ColourList | None:
    """The list of colours in a file; None where it holds no colour, as a list of names.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no UTF-8 text, a line among others has no colour, or a colour is named twice.
    """
    if not path.is_file():
        raise MissingFileError(f"list of colours {path} is missing: correct its path")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"list {path} is no UTF-8 text ({error.reason}): save it as UTF-8") from None
    labels: list[tuple[str, int]] = []
    without: list[str] = []
    for line in map(str.strip, text.splitlines()):
        found = next(filter(None, (pattern.fullmatch(line) for pattern in _LINES)), None)
        if found is not None:
            labels.append((found["name"].strip().strip("\"'"), _colour(found, line, path)))
        elif line and not line.startswith("#") and (labels or without or any(map(str.isdigit, line))):
            without.append(line)
    if not labels:
        return None
    if without:
        raise DatasetError(f"{path}: line {without[0]!r} has no colour, expected NAME:R,G,B in each line: mend it")
    colours = [colour for _, colour in labels]
    twice = [number for number, colour in enumerate(colours) if colour in colours[:number]]
    if twice:
        name, colour = labels[twice[0]]
        other = labels[colours.index(colour)][0]
        raise DatasetError(
            f"{path}: {other!r} and {name!r} have one colour, {_as_text(colour)}, expected each once: mend it"
        )
    return ColourList(path, tuple(labels))


def _colour(found: re.Match[str], line: str, path: Path) -> int:
    parts = found.groupdict()
    if "hex" in parts:
        return int(parts["hex"], 16)
    red, green, blue = (int(parts[channel]) for channel in "rgb")
    if max(red, green, blue) > 255:
        raise DatasetError(f"{path}: line {line!r} has no colour, expected three numbers from 0 to 255: mend it")
    return red << 16 | green << 8 | blue


class ColourMasks:
    """Reads masks in colours as class values.

    Args:
        colours: Which class each colour is.
        class_names: Names of the classes 1..C; all others are background.
        places: Name of each value of masks of places; None: those of the list, in its order.
    """

    def __init__(self, colours: ColourList, class_names: Sequence[str], *, places: Sequence[str] | None = None) -> None:
        self.colours = colours
        values = {name: value for value, name in enumerate(class_names, start=1)}

        def value_of(name: str) -> int:
            return IGNORE if name.lower() in IGNORED else values.get(name, 0)

        by_colour = {_BLACK: 0, _VOC_BORDER: IGNORE} | {colour: value_of(name) for name, colour in colours.labels}
        self._known = np.array(sorted(by_colour), dtype=np.uint32)
        self._values = np.array([by_colour[colour] for colour in sorted(by_colour)], dtype=np.uint8)
        names = [name for name, _ in colours.labels] if places is None else places
        # Without background in front nobody can tell whether the first class is 0 or 1.
        self._places = [value_of(name) for name in names] if names[0].lower() in BACKGROUND else []

    def read(self, path: Path) -> UInt8Array:
        """Read a mask.

        Returns:
            (H, W) uint8: 0 background, 1..C the class, 255 ignore.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It cannot be read, or holds a colour that is not listed; one line that names the path.
        """
        mask = decode(path, "mask")
        if mask.mode.startswith(("I", "F")):
            raise DatasetError(f"mask {path} has mode {mask.mode} (over 8 bits a channel): save it as 8-bit RGB")
        shown = np.asarray(mask.convert("RGBA" if mask.has_transparency_data else "RGB"))
        codes = _codes(shown[..., :3])
        if shown.shape[2] == 4:
            codes[shown[..., 3] == 0] = _BLACK  # what is not seen is background
        values, lost = self._look_up(codes)
        if not lost.size:
            return values
        if mask.mode in ("P", "L") and (places := self._read_places(np.asarray(mask), codes)) is not None:
            return places
        raise DatasetError(self._unknown(path, mask.format, lost, int(np.isin(codes, lost).sum())))

    def _read_places(self, stored: UInt8Array, codes: NDArray[np.uint32]) -> UInt8Array | None:
        """Values of a mask of places (H, W), shown as `codes`; None where it is none."""
        used = np.unique(stored)
        tables = (np.repeat(np.arange(256), 3), np.array(voc_palette()))
        is_shown_so = any((_codes(table.reshape(-1, 3))[stored] == codes).all() for table in tables)
        is_listed = np.isin(np.unique(codes), self._known[(self._known > 0) & (self._values != IGNORE)]).any()
        if not is_shown_so or is_listed or used[used != IGNORE].max(initial=0) >= len(self._places):
            return None
        return np.array([*self._places, *[IGNORE] * 256], dtype=np.uint8)[stored]

    def _look_up(self, codes: NDArray[np.uint32]) -> tuple[UInt8Array, NDArray[np.uint32]]:
        """Value of each colour, and the colours that are not listed, ascending."""
        places = np.minimum(np.searchsorted(self._known, codes), len(self._known) - 1)
        wrong = self._known[places] != codes
        return self._values[places], np.unique(codes[wrong])

    def _unknown(self, path: Path, file_format: str | None, lost: NDArray[np.uint32], pixels: int) -> str:
        if file_format == "JPEG":
            return f"mask {path} is a JPEG, whose compression changes colours: save it as a PNG"
        first, more = _as_text(int(lost[0])), f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        return (
            f"mask {path} holds colours that {self.colours.path} does not list ({first}{more}; {pixels:,} pixels): add "
            f"them, e.g. 'background:{first}', or 'void:{first}' for what is not to be counted"
        )


def _codes(colours: NDArray[np.generic]) -> NDArray[np.uint32]:
    """(…, 3) colours as 0xRRGGBB."""
    red, green, blue = np.moveaxis(colours.astype(np.uint32), -1, 0)
    codes: NDArray[np.uint32] = red << np.uint32(16) | green << np.uint32(8) | blue
    return codes


def _as_text(colour: int) -> str:
    return f"{colour >> 16},{colour >> 8 & 255},{colour & 255}"
