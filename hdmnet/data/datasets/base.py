"""What every data set offers to the rest: lists of ids, pictures, masks and a fingerprint.

A `SegmentationDataset` is the only thing that knows where a data set's files lie. The catalog, the episodes and the
DataModules work on any of them. The functions below it read lists of ids and hash folders; `masks` reads pictures.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from hdmnet.data.datasets.skipped_files import SkippedFiles
from hdmnet.data.io.arrays import UInt8Array

Split = Literal["train", "val"]


SplitRule = Literal["contiguous", "interleaved"]


class SegmentationDataset(ABC):
    """One data set's pictures and masks; must be picklable, as it travels to worker processes.

    Attributes:
        name: Short name of the data set; part of the keys of catalogs and episodes.
        class_names: Names of the C classes; class value c in 1..C is `class_names[c - 1]`.
        num_folds: Number of folds that the classes are split into.
        split_rule: How the classes are dealt out to the folds (see `folds.make_fold`).
        folds: Novel class values of each fold, where they are not dealt out by the rule.
        min_area: Fewest pixels, at original size, for a class to count in an image.
        skips: Lists what cannot be read, which is then left out; None: it is an error (`dataset.on_error`).
    """

    name: str
    class_names: tuple[str, ...]
    num_folds: int = 4
    split_rule: SplitRule = "contiguous"
    folds: tuple[tuple[int, ...], ...] | None = None
    min_area: int = 2 * 32 * 32
    skips: SkippedFiles | None = None

    @abstractmethod
    def ids(self, split: Split) -> list[str]:
        """Image ids of a split, in list order, without duplicates."""

    @abstractmethod
    def read_image(self, image_id: str) -> UInt8Array:
        """Picture as (H, W, 3) uint8 RGB at original size."""

    @abstractmethod
    def read_mask(self, image_id: str) -> UInt8Array:
        """Mask as (H, W) uint8 at original size: 0 background, 1..C class value, 255 ignore."""

    def read_mask_of(self, image_id: str, class_value: int) -> UInt8Array:
        """Mask as from `read_mask`; where classes may overlap, with all pixels of the class asked for on top."""
        return self.read_mask(image_id)

    def covered_areas(self, image_id: str) -> dict[int, int]:
        """Pixels of each class that `read_mask` gives to another one; none where classes cannot overlap."""
        return {}

    @abstractmethod
    def fingerprint(self, split: Split) -> str:
        """Hex sha256 over all that the split's masks depend on (see `fingerprint_files`)."""

    @abstractmethod
    def check(self) -> None:
        """Raise one clear line when a folder, list or file is missing; called before any training.

        Raises:
            FileNotFoundError: Something is missing; the message says what and where it is to be had.
        """

    def image_size(self, image_id: str) -> tuple[int, int] | None:
        """Size (H, W) of the picture where it can be told without decoding; None skips the check against the mask.

        Raises:
            FileNotFoundError: There is no such picture.
            ValueError: It is no picture or not whole.
        """
        return None

    def mask_location(self, image_id: str) -> str:
        """Where the mask comes from, for error messages; sources with files return the path."""
        return f"{self.name} mask {image_id!r}"


def read_id_list(path: str | Path) -> list[str]:
    """Read a list of ids, one a line; empty lines are skipped, order is kept.

    Args:
        path: Text file.

    Returns:
        The ids.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file holds no id or one id twice, or is no UTF-8.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"list of image ids {path} is missing")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"list {path} is no UTF-8 text ({error.reason}): save it as UTF-8") from None
    ids = [line.strip() for line in text.splitlines() if line.strip()]
    if not ids:
        raise ValueError(f"list of image ids {path} is empty, expected one id a line")
    check_unique(ids, str(path))
    return ids


def check_unique(ids: list[str], origin: str) -> None:
    """Refuse a list that holds an id twice.

    Args:
        ids: Image ids.
        origin: Where they come from, for the message.

    Raises:
        ValueError: An id occurs more than once.
    """
    seen: set[str] = set()
    for image_id in ids:
        if image_id in seen:
            raise ValueError(f"{origin} holds id {image_id!r} more than once, expected each once: remove duplicates")
        seen.add(image_id)


def _facts(entry: os.DirEntry[str]) -> list[str]:
    """A file's name, size and time; the name alone of one that cannot be looked at, which reading it will tell."""
    try:
        if not entry.is_file():
            return []
        stat = entry.stat()
    except OSError:  # e.g. a circle of links
        return [entry.name]
    return [f"{entry.name}\0{stat.st_size}\0{stat.st_mtime_ns}"]


def fingerprint_files(folder: str | Path, *, names: Iterable[str] | None = None, extra: Iterable[str] = ()) -> str:
    """Hash names, sizes and modification times of a folder's files, without opening them.

    Args:
        folder: Folder to scan (not its subfolders).
        names: Only these file names count; None = all files. Names without a file are left out, so that a file that
            appears later changes the fingerprint.
        extra: More texts that the masks depend on, e.g. a crowd rule or a format version.

    Returns:
        Hex sha256.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    wanted = None if names is None else set(names)
    try:
        with os.scandir(folder) as entries:  # one pass; os.listdir + os.stat per file is several times slower
            rows = []
            for entry in entries:
                if wanted is None or entry.name in wanted:
                    rows += _facts(entry)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"folder of masks {folder} is missing") from None
    rows.sort()
    return hashlib.sha256("\n".join([*extra, "", *rows]).encode()).hexdigest()
