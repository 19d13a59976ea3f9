"""Instances JSONs of COCO and LVIS, read an annotation at a time.

Once parsed, such a file takes gigabytes. So it is gone through once, and what is kept is where in it each annotation
stands: tables that processes share by mapping the same files into their memory.

Legend: N images, A annotations.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import uuid
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from hdmnet.data.io.annotations import refuse_doubled
from hdmnet.runtime.errors import DatasetError, MissingFileError
from hdmnet.runtime.home import expand_home

logger = logging.getLogger(__name__)

_FORMAT = "hdmnet-instances-1"
_TABLES = ("names", "sizes", "pointers", "annotations", "categories", "category_names")
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True)
class Instances:
    """Where in an instances JSON things stand; made by `open_instances`.

    Attributes:
        path: The JSON.
        names: (N,) bytes, ascending: of each picture the bare name, or its path below the data set's folder.
        sizes: (N, 2) int32, height and width.
        pointers: (N+1,) int64: the annotations of image i are rows `pointers[i]` to `pointers[i + 1]`, in file order.
        annotations: (A, 3) int64: category id, first byte, number of bytes.
        categories: (n,) int64 ids, ascending.
        category_names: (n,) bytes, in UTF-8.
    """

    path: Path
    names: npt.NDArray[np.bytes_]
    sizes: npt.NDArray[np.int32]
    pointers: npt.NDArray[np.int64]
    annotations: npt.NDArray[np.int64]
    categories: npt.NDArray[np.int64]
    category_names: npt.NDArray[np.bytes_]

    def image_names(self) -> list[str]:
        """Names of all pictures, ascending."""
        return [name.decode() for name in self.names.tolist()]

    def has(self, name: str) -> bool:
        """Whether the file names a picture."""
        return self._row(name) is not None

    def _row(self, name: str) -> int | None:
        row = int(np.searchsorted(self.names, name.encode()))
        return row if row < len(self.names) and self.names[row] == name.encode() else None

    def read(self, name: str) -> tuple[tuple[int, int], list[dict[str, Any]]]:
        """Size (H, W) of a picture and its annotations as they stand in the file; ValueError if it names none such."""
        row = self._row(name)
        if row is None:
            raise DatasetError(f"{self.path} has no image {name!r}: take it off the list")
        found = []
        with open(self.path, "rb") as file:
            for _, start, length in self.annotations[self.pointers[row] : self.pointers[row + 1]].tolist():
                file.seek(start)
                found.append(json.loads(file.read(length)))
        height, width = self.sizes[row].tolist()
        return (height, width), found

    def images_per_category(self) -> npt.NDArray[np.int64]:
        """Number of images with an annotation of each of `categories`, (n,) int64."""
        images = np.repeat(np.arange(len(self.names)), np.diff(self.pointers))
        pairs = np.unique(np.stack([images, np.asarray(self.annotations[:, 0])]), axis=1)
        counts = np.bincount(np.searchsorted(self.categories, pairs[1]), minlength=len(self.categories))
        return counts.astype(np.int64)


def open_instances(path: str | Path, cache_dir: str | Path | None) -> Instances:
    """Open an instances JSON; its tables are made when it is opened for the first time.

    Args:
        path: The JSON.
        cache_dir: Where the tables are kept. Where nothing can be written, or for None, it is the system's folder for
            temporary files. Never is anything written beside the JSON.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no instances JSON.
    """
    path = Path(path)
    try:
        stat = path.stat()
    except OSError:
        raise MissingFileError(f"annotations {path} are missing: unpack them there") from None
    return _open(path, stat.st_size, stat.st_mtime_ns, None if cache_dir is None else expand_home(cache_dir))


@functools.lru_cache(maxsize=8)
def _open(path: Path, size: int, time: int, cache_dir: Path | None) -> Instances:
    key = hashlib.sha256(f"{_FORMAT}\n{path.resolve()}\n{size}\n{time}".encode(errors="surrogateescape")).hexdigest()
    user = getattr(os, "getuid", int)()  # Windows has no such number, and a folder for each user
    temporary = Path(tempfile.gettempdir()) / f"hdmnet-instances-{user}"
    places = [place / f"{path.stem}-{key[:16]}" for place in (cache_dir, temporary) if place is not None]
    for place in places:
        if place.is_dir():
            return _load(path, place)
    logger.info("%s: going through it, which is done once", path)
    tables = _tables(path)
    for place in places:
        try:
            _save(tables, place)
            return _load(path, place)
        except OSError as error:
            logger.warning("tables of %s cannot be written to %s (%s)", path, place.parent, error)
    return Instances(path, **tables)


def _load(path: Path, folder: Path) -> Instances:
    return Instances(path, **{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _TABLES})


def _save(tables: dict[str, Any], folder: Path) -> None:
    """Write tables to a folder, which is there whole or not at all; several processes may do so at once."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.mkdir()
        for name, table in tables.items():
            np.save(temporary / f"{name}.npy", table)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _tables(path: Path) -> dict[str, Any]:
    """The tables of `Instances`, by name."""
    images: list[dict[str, Any]] = []
    categories: list[dict[str, Any]] = []
    rows = array("q")  # image id, category id, first byte, number of bytes
    try:
        for key, value, start, end in _walk(_text(path)):
            if key == "images":
                names = {"id": value["id"], "file_name": _file_name(value)}
                images.append(names | {"size": (int(value["height"]), int(value["width"]))})
            elif key == "categories":
                categories.append(value)
            elif key == "annotations":
                rows.extend((value["image_id"], value["category_id"], start, end - start))
    except (KeyError, TypeError, IndexError, ValueError, OverflowError, RecursionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DatasetError(f"{path} is no instances JSON ({reason}): download it again") from None
    if not (images and categories and rows):
        raise DatasetError(f"{path} is no instances JSON, it lacks images, annotations or categories")
    for entries, what, name in ((images, "images", "file_name"), (categories, "categories", "name")):
        refuse_doubled(entries, f"{what} of {path}", name)
    named = sorted({int(one["id"]): _utf8(str(one["name"])).encode() for one in categories}.items())
    return {
        **_sorted_tables(path, images, np.frombuffer(rows, dtype=np.int64).reshape(-1, 4)),
        "categories": np.array([category for category, _ in named], dtype=np.int64),
        "category_names": np.array([name for _, name in named]),
    }


def _sorted_tables(path: Path, images: list[dict[str, Any]], rows: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Images by name, and the annotations (A, 4) in the images' order."""
    names = np.array([image["file_name"].encode() for image in images])
    order = np.argsort(names, kind="stable")
    names = names[order]
    if (names[1:] == names[:-1]).any():
        raise DatasetError(f"{path} names a picture twice, expected each once: download it again")
    ids = np.array([image["id"] for image in images], dtype=np.int64)[order]
    by_id = np.argsort(ids)
    places = np.searchsorted(ids, rows[:, 0], sorter=by_id).clip(max=len(ids) - 1)
    position = by_id[places]
    if (ids[position] != rows[:, 0]).any():
        raise DatasetError(f"{path} has an annotation of an image that it does not name: download it again")
    return {
        "names": names,
        "sizes": np.array([image["size"] for image in images], dtype=np.int32)[order],
        "pointers": np.concatenate(([0], np.cumsum(np.bincount(position, minlength=len(ids))))).astype(np.int64),
        "annotations": rows[np.argsort(position, kind="stable"), 1:],
    }


def _file_name(image: dict[str, Any]) -> str:
    """Name of a picture; without `file_name`, as in LVIS, the last two parts of its URL: `val2017/000000397133.jpg`."""
    if image.get("file_name"):
        return str(image["file_name"])
    return PurePosixPath(*urlsplit(str(image["coco_url"])).path.split("/")[-2:]).as_posix()


def _text(path: Path) -> str:
    """A file's bytes, each as one character: so positions in it are those of the bytes."""
    with open(path, encoding="latin-1", newline="") as file:
        return file.read()


def _utf8(text: str) -> str:
    """A text out of `_text` as it is meant."""
    try:
        return text.encode("latin-1").decode()
    except UnicodeError:  # it was written with escapes
        return text


def _walk(text: str) -> Iterator[tuple[str, Any, int, int]]:
    """Each member of the lists of a JSON's outermost object: the list's key, the member, where it begins and ends.

    Other values of the object come in the same way. Raises ValueError or IndexError where it is none.
    """
    decode = json.JSONDecoder().raw_decode

    def next_at(position: int, expected: str = "") -> int:
        """Where the next character that is no space stands, or stands after one that is expected there."""
        position = _SPACE.match(text, position).end()  # type: ignore[union-attr]  # it matches the empty text
        if not expected:
            return position
        if text[position] != expected:
            raise ValueError(f"expected {expected} at byte {position:,}")
        return next_at(position + 1)

    at = next_at(3 if text.startswith("\xef\xbb\xbf") else 0, "{")
    while text[at] != "}":
        key, at = decode(text, at)
        at = next_at(at, ":")
        several = text[at] == "["
        at = next_at(at + 1) if several else at
        while not several or text[at] != "]":
            value, end = decode(text, at)
            yield key, value, at, end
            at = next_at(end)
            if not several:
                break
            at = next_at(at, ",") if text[at] == "," else at
        at = next_at(at + 1) if several else at
        at = next_at(at, ",") if text[at] == "," else at
