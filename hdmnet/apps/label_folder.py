"""A folder of pictures that a person labels: all that the page keeps, read again when it is opened.

    images/NAME.jpg      the pictures, as they came
    masks/NAME.png       what is marked in them, a palette PNG: value 1 is the first line of classes.txt
    classes.txt
    .drafts/NAME.png     marks that were not said to be right yet
    .found/NAME.npz      what a network found; can be made again
    .removed/…           pictures that were taken off, with their masks

`support=DIR` of `predict` and `dataset=folder dataset.root=DIR` of a training read it as it is (docs/layouts.md,
index). Every file is written whole or not at all, and no name from outside leads out of it.

Dimension letters: H0 W0 size of a picture as a viewer shows it, h w size at which it is shown on the page.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import numpy as np

from hdmnet.data.datasets.files import read_ids
from hdmnet.data.datasets.folder.tree import IGNORED as IGNORED_NAMES
from hdmnet.data.io.arrays import IGNORE, MAX_LABELS
from hdmnet.data.io.colour_masks import BACKGROUND, IGNORED
from hdmnet.data.io.listing import IMAGE_SUFFIXES, is_picture
from hdmnet.data.io.masks import read_mask, write_mask
from hdmnet.data.io.upright import upright_size
from hdmnet.data.io.user_pictures import read_user_picture
from hdmnet.runtime.atomic import remove_leftovers, replacing
from hdmnet.runtime.errors import InputError, MissingFileError

if TYPE_CHECKING:
    from hdmnet.data.io.arrays import UInt8Array

T = TypeVar("T")

MAX_PIXELS = 50_000_000  # of a picture: more would take gigabytes at the picture's own size
SHOWN_SIDE = 1024  # longest side (pixels) of what is shown and painted on: more than any of the networks sees
_MAX_NAME = 60
_NO_CLASS = BACKGROUND | IGNORED | IGNORED_NAMES
_CLASS_NAME = re.compile(rf"[^\W\d_][\w ()+&'./-]{{0,{_MAX_NAME - 1}}}")
_COLOUR = re.compile(r"\d+\D+\d+\D+\d+")  # classes.txt would be read as a list of colours


@dataclass(frozen=True, eq=False)
class Found:
    """What a network found in a picture.

    Attributes:
        mask: (H0, W0) uint8: 0 background, 1..C the classes.
        probability: (h, w) uint8, 0..255: of the class that the mask has there.
        certainty: In [0, 1], see `hdmnet.apps.review.certainty`; 0: nothing was found.
        by: What it was found with: network and examples, as a fingerprint.
    """

    mask: UInt8Array
    probability: UInt8Array
    certainty: float
    by: str


class LabelFolder:
    """The folder; made if it is not there.

    Args:
        root: Where; a folder of something else is refused.

    Raises:
        ValueError: It holds other things, or its classes.txt is no list of names.
        OSError: It cannot be written to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._images, self._masks = root / "images", root / "masks"
        self._drafts, self._found, self._removed = root / ".drafts", root / ".found", root / ".removed"
        self._class_file = root / "classes.txt"
        refuse_other_things(root)
        for folder in (self._images, self._masks, self._drafts, self._found):
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)
        remove_leftovers(root)
        self._classes = self._read_classes()
        self._read_before: dict[tuple[str, str], tuple[Any, ...]] = {}

    # ------------------------------------------------------------------------------------------------------- classes

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, that of value 1 first."""
        return self._classes

    def add_class(self, name: str) -> None:
        """Add a class; raises ValueError for a name that is none, or is there."""
        if len(self._classes) >= MAX_LABELS:
            raise InputError(f"there are {MAX_LABELS} classes already, as many as a mask can hold")
        self._write_classes([*self._classes, self._checked(name, self._classes)])

    def rename_class(self, value: int, name: str) -> None:
        """Give class `value`, 1..C, another name; raises ValueError as `add_class`."""
        names = list(self._classes)
        others = [one for number, one in enumerate(names, start=1) if number != value]
        names[self._place(value)] = self._checked(name, others)
        self._write_classes(names)

    def remove_class(self, value: int) -> None:
        """Take the last class away, where nothing is marked with it; raises ValueError for any other."""
        self._place(value)
        marked = [name for name in self.names() if value in self.present(name) or value in self._draft_values(name)]
        if marked or value != len(self._classes):
            raise InputError(
                f"class {self._classes[value - 1]!r} cannot be removed: "
                + (f"{marked[0]} has marks of it" if marked else "only the last of the list can; rename it instead")
            )
        self._write_classes(self._classes[:-1])

    def _place(self, value: int) -> int:
        if not 1 <= value <= len(self._classes):
            raise InputError(f"there is no class {value}: expected 1 to {len(self._classes)}")
        return value - 1

    @staticmethod
    def _checked(name: str, others: Sequence[str]) -> str:
        name = " ".join(name.split())
        if not _CLASS_NAME.fullmatch(name) or name.lower() in _NO_CLASS or _COLOUR.search(name):
            raise InputError(
                f"{name[: 2 * _MAX_NAME]!r} is no name for a class: expected a letter, then digits, spaces or "
                f"()+&'./-_, at most {_MAX_NAME} in all, and not background, void or the like"
            )
        if name.lower() in (one.lower() for one in others):
            raise InputError(f"there is a class {name!r} already: choose another name")
        return name

    def _read_classes(self) -> tuple[str, ...]:
        if not self._class_file.is_file() or not self._class_file.stat().st_size:
            return ()
        names = read_ids(self._class_file, str)
        for number, name in enumerate(names):
            if self._checked(name, names[:number]) != name:
                raise InputError(f"{self._class_file} has {name!r}: expected names of classes, one a line")
        return tuple(names)

    def _write_classes(self, names: Sequence[str]) -> None:
        with replacing(self._class_file, durable=True) as temporary:
            temporary.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        self._classes = tuple(names)

    # ------------------------------------------------------------------------------------------------------ pictures

    def names(self) -> list[str]:
        """File names of the pictures, ascending."""
        return sorted(path.name for path in self._images.iterdir() if path.name[0] != "." and is_picture(path))

    def picture(self, name: str) -> Path:
        """The file of a picture.

        Raises:
            FileNotFoundError: There is no picture of that name.
        """
        file = self._images / name
        if file.name != name or name[0] == "." or not is_picture(file) or not file.is_file():
            raise MissingFileError(f"there is no picture {name!r}")
        return file

    def add(self, name: str, content: bytes) -> str:
        """Add a picture as it is.

        Args:
            name: What its file was called.
            content: Of its file.

        Returns:
            What it is called now: without odd characters, numbered if there is another one of that name.

        Raises:
            ValueError: It cannot be read as a picture, or has more than `MAX_PIXELS`.
        """
        given = Path(re.sub(r"[^\w .()+-]", "_", re.split(r"[/\\]", name)[-1]).lstrip(". "))
        if given.suffix.lower() not in IMAGE_SUFFIXES:
            raise InputError(f"{given} is not called as pictures are: expected .jpg, .png, …")
        stem = given.stem[:80].strip() or "picture"
        taken = {Path(one).stem.lower() for one in self.names()}
        free, number = stem, 1
        while free.lower() in taken:
            number += 1
            free = f"{stem}_{number}"
        place = self._images / f"{free}{given.suffix}"
        with replacing(place, durable=True) as temporary:
            temporary.write_bytes(content)
            try:
                read_limited(temporary)
            except ValueError as error:
                raise InputError(str(error).replace(str(temporary), str(given))) from None
        return place.name

    def remove(self, names: Sequence[str]) -> None:
        """Take pictures off, with their marks: into a folder below `.removed`, from which they can be put back."""
        away = self._removed / time.strftime("%Y-%m-%d_%H-%M-%S")
        while away.exists():
            away = away.with_name(f"{away.name}_2")
        for name in names:
            picture = self.picture(name)
            for kind in (self._masks, self._drafts):
                mask = self._mask_file(kind, name)
                if mask.is_file():
                    (away / kind.name).mkdir(parents=True, exist_ok=True)
                    os.replace(mask, away / kind.name / mask.name)
            self._found_file(name).unlink(missing_ok=True)
            (away / "images").mkdir(parents=True, exist_ok=True)
            os.replace(picture, away / "images" / name)
        if self._class_file.is_file() and away.is_dir():
            shutil.copyfile(self._class_file, away / "classes.txt")

    def clear(self) -> None:
        """Take all pictures off, see `remove`, and the classes too."""
        self.remove(self.names())
        self._write_classes([])

    def read(self, name: str) -> UInt8Array:
        """A picture, (H0, W0, 3) uint8 RGB; raises as `read_limited` and `picture`."""
        return read_limited(self.picture(name))

    def size(self, name: str) -> tuple[int, int]:
        """(H0, W0) of a picture, from its header; raises as `read`."""
        return self._remember("size", self.picture(name), upright_size)

    def shown(self, name: str) -> UInt8Array:
        """A picture as it is shown on the page, (h, w, 3) uint8 RGB; raises as `read`."""
        picture = self.read(name)
        height, width = shown_size(picture.shape[:2])
        return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)

    # ----------------------------------------------------------------------------------------------------------- marks

    def is_labelled(self, name: str) -> bool:
        """Whether a person has said that the marks of a picture are right."""
        return self._mask_file(self._masks, name).is_file()

    def has_draft(self, name: str) -> bool:
        """Whether there are marks that nobody has called right yet."""
        return self._mask_file(self._drafts, name).is_file()

    def mask(self, name: str) -> UInt8Array | None:
        """What was marked in a picture, at its own size: (H0, W0) uint8, values of classes; None: nothing yet.

        Raises:
            ValueError: The file is damaged, of another size, or has a value that is no class.
        """
        file = self._mask_file(self._masks, name)
        return self._read(file, self.size(name)) if file.is_file() else None

    def shown_mask(self, name: str) -> UInt8Array:
        """What to show over a picture, (h, w) uint8: the draft, else what was marked, else what was found, else 0."""
        size = self.size(name)
        draft = self._mask_file(self._drafts, name)
        if draft.is_file():
            return scaled(self._read(draft, None), shown_size(size))
        mask = self.mask(name)
        found = self.found(name) if mask is None else None
        mask = found.mask if found is not None else mask
        return np.zeros(shown_size(size), dtype=np.uint8) if mask is None else scaled(mask, shown_size(size))

    def write_draft(self, name: str, mask: UInt8Array) -> None:
        """Keep marks (h, w) that are being made."""
        self._check_marks(name, mask)
        write_mask(self._mask_file(self._drafts, name), mask)

    def write_label(self, name: str, mask: UInt8Array) -> None:
        """Take marks (h, w) as right.

        Where they are what was marked or found before, that is kept at the picture's own size; elsewhere they are
        scaled.

        Raises:
            ValueError: They have another size, or a value that is no class.
        """
        size = self._check_marks(name, mask)
        before = self.mask(name)
        found = self.found(name) if before is None else None
        before = found.mask if found is not None else before
        whole = scaled(mask, size)
        if before is not None:
            changed = scaled((scaled(before, shown_size(size)) != mask).astype(np.uint8), size)
            whole = np.where(changed == 1, whole, before)
        file = self._mask_file(self._masks, name)
        write_mask(file, whole)
        self.drop_draft(name)

    def drop_draft(self, name: str) -> None:
        """Forget marks that are being made."""
        self.picture(name)
        self._mask_file(self._drafts, name).unlink(missing_ok=True)

    def drop_label(self, name: str) -> None:
        """Take a picture's marks as not right yet: they become its draft."""
        mask = self.mask(name)
        if mask is not None:
            self.write_draft(name, scaled(mask, shown_size(mask.shape)))
            self._mask_file(self._masks, name).unlink()

    def present(self, name: str) -> tuple[int, ...]:
        """Values of the classes that are marked in a picture; of a file that cannot be read none."""
        file = self._mask_file(self._masks, name)
        if not file.is_file():
            return ()
        return self._remember("present", file, _present)

    def version(self, name: str) -> int:
        """A number that is another one when anything about a picture has changed."""
        files = [self._mask_file(self._masks, name), self._mask_file(self._drafts, name), self._found_file(name)]
        return sum(file.stat().st_mtime_ns for file in [self._images / name, *files] if file.is_file())

    def labelled_at(self, name: str) -> int:
        """When the marks of a labelled picture were written, ns."""
        return self._mask_file(self._masks, name).stat().st_mtime_ns

    def _remember(self, what: str, file: Path, read: Callable[[Path], T]) -> T:
        """What `read` gives of a file, read again only when the file has changed."""
        key, time_ns = (what, file.name), file.stat().st_mtime_ns
        if self._read_before.get(key, (None,))[0] != time_ns:
            self._read_before[key] = (time_ns, read(file))
        kept: T = self._read_before[key][1]
        return kept

    def _mask_file(self, kind: Path, name: str) -> Path:
        return kind / f"{Path(name).stem}.png"

    def _draft_values(self, name: str) -> tuple[int, ...]:
        file = self._mask_file(self._drafts, name)
        return tuple(np.unique(read_mask(file)).tolist()) if file.is_file() else ()

    def _read(self, file: Path, size: tuple[int, int] | None) -> UInt8Array:
        mask = read_mask(file)
        if size is not None and mask.shape != size:
            raise InputError(
                f"mask {file} is {mask.shape[0]}x{mask.shape[1]} (HxW), and its picture {size[0]}x{size[1]}"
            )
        highest = _highest(mask)
        if highest > len(self._classes):
            raise InputError(f"mask {file} has value {highest}, and classes.txt has {len(self._classes)} classes")
        return mask

    def _check_marks(self, name: str, mask: UInt8Array) -> tuple[int, int]:
        size = self.size(name)
        if mask.shape != shown_size(size) or _highest(mask) > len(self._classes):
            raise InputError(
                f"marks of {name} are {mask.shape[0]}x{mask.shape[1]} (HxW) with values up to {_highest(mask)}: "
                f"expected {'x'.join(map(str, shown_size(size)))} and at most {len(self._classes)}"
            )
        return size

    # ----------------------------------------------------------------------------------------------------------- found

    def found(self, name: str) -> Found | None:
        """What a network found in a picture, None: nothing, or of a file that does not fit any more."""
        try:
            with np.load(self._found_file(name), allow_pickle=False) as file:
                found = Found(file["mask"], file["probability"], float(file["certainty"]), str(file["by"]))
        except (
            OSError,
            ValueError,
            KeyError,
            EOFError,
            zipfile.BadZipFile,
        ):  # NumPy raises many kinds on damaged files
            return None
        fits = found.mask.shape == self.size(name) and int(found.mask.max()) <= len(self._classes)
        return found if fits else None

    def found_summary(self, name: str) -> tuple[float, str] | None:
        """Certainty and `by` of what was found, without reading the mask; None as of `found`."""
        file = self._found_file(name)
        return self._remember("found", file, _summary) if file.is_file() else None

    def write_found(self, name: str, found: Found) -> None:
        """Keep what a network found."""
        self.picture(name)
        with replacing(self._found_file(name)) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file, mask=found.mask, probability=found.probability, certainty=found.certainty, by=found.by
            )

    def _found_file(self, name: str) -> Path:
        return self._found / f"{Path(name).stem}.npz"


def refuse_other_things(root: Path) -> None:
    """Refuse a folder that holds something, and no pictures of a `LabelFolder`; ValueError."""
    if root.is_dir() and not (root / "images").is_dir() and any(one.name[0] != "." for one in root.iterdir()):
        raise InputError(f"folder={root} holds other things and no images/: expected a new folder, or one of this page")
    if root.exists() and not root.is_dir():
        raise InputError(f"folder={root} is a file: expected a folder")


def _present(file: Path) -> tuple[int, ...]:
    """Classes in a mask's file; none in one that cannot be read."""
    try:
        values = np.flatnonzero(np.bincount(read_mask(file).ravel(), minlength=256)[1:IGNORE]) + 1
    except ValueError:
        return ()
    return tuple(int(value) for value in values)


def _summary(file: Path) -> tuple[float, str] | None:
    """Certainty and `by` of a file with what was found; None of a damaged one."""
    try:
        with np.load(file, allow_pickle=False) as content:
            return float(content["certainty"]), str(content["by"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def read_limited(path: Path) -> UInt8Array:
    """A picture of any kind, of a size that is no attack: (H0, W0, 3) uint8 RGB as a viewer shows it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read, or has more than `MAX_PIXELS`.
    """
    height, width = upright_size(path)  # from the header: a bomb is never unpacked
    if height * width > MAX_PIXELS:
        raise InputError(
            f"picture {path} has {height}x{width} (HxW) pixels: expected at most {MAX_PIXELS // 10**6} million, make "
            "it smaller"
        )
    return read_user_picture(path)[0]


def shown_size(size: tuple[int, ...]) -> tuple[int, int]:
    """(h, w) at which a picture of (H0, W0) is shown: its own, or the longest side `SHOWN_SIDE`."""
    scale = min(1.0, SHOWN_SIDE / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _highest(mask: UInt8Array) -> int:
    """The highest class value of a mask, 0 where there is none; 255 is ignored."""
    return int(np.where(mask == IGNORE, 0, mask).max())


def scaled(mask: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    """A mask at another size, each pixel the nearest one of the mask."""
    return np.asarray(cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT), dtype=np.uint8)
