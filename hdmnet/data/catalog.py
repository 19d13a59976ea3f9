"""Which images hold which classes, and how much of them: scanned once from the masks, then cached on disk.

Everything is kept in flat arrays (no Python lists per image), so that COCO's 82,000 images load in a blink and a view
can be sent to worker processes cheaply. Legend: N images, P (image, class) pairs, M images of a view, C classes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from hdmnet.data.datasets.base import SegmentationDataset, Split, check_unique
from hdmnet.data.datasets.skipped_files import tell_skipped
from hdmnet.data.io.arrays import IGNORE
from hdmnet.runtime.atomic import replacing
from hdmnet.runtime.provenance import available_cpus

logger = logging.getLogger(__name__)

IntArray = npt.NDArray[np.int64]
StrArray = npt.NDArray[np.str_]

_FORMAT = "hdmnet-catalog-1"
_CHUNK = 64  # images a task: small enough for an even load and a moving bar, large enough to hide the pipe
_MIN_PARALLEL = 512  # fewer images than this are scanned sooner than worker processes start

# One row a pair: position of the image in the list, class value, area in pixels at original size.
_Rows = npt.NDArray[np.int64]
# Position of an image that could not be read, and why.
_Skipped = list[tuple[int, str]]


@dataclass(frozen=True)
class CatalogView:
    """Images of a catalog that can serve as query or support for some classes, in list order.

    Images are meant by their position 0..M-1 in `ids`. Both directions are CSR: row i is `indices[ptr[i]:ptr[i + 1]]`.

    Attributes:
        ids: (M,) image ids.
        classes: The class values asked for, ascending; n of them.
        class_names: Name of each of `classes`.
        image_ptr: (M+1,) int64.
        image_classes: (P',) int64 class values that qualify in each image, ascending; at least one each.
        class_ptr: (n+1,) int64.
        class_images: (P',) int64 positions of the images in which each class qualifies, ascending; may be none.
    """

    ids: StrArray
    classes: tuple[int, ...]
    class_names: tuple[str, ...]
    image_ptr: IntArray
    image_classes: IntArray
    class_ptr: IntArray
    class_images: IntArray

    def __len__(self) -> int:
        """Number of images M."""
        return len(self.ids)

    @property
    def num_pairs(self) -> int:
        """Number of (image, class) pairs P'."""
        return len(self.image_classes)

    def classes_of(self, position: int) -> IntArray:
        """Class values that qualify in the image at a position, ascending."""
        return self.image_classes[self.image_ptr[position] : self.image_ptr[position + 1]]

    def images_of(self, class_value: int) -> IntArray:
        """Positions of the images in which a class of `classes` qualifies, in list order."""
        row = self.classes.index(class_value)
        return self.class_images[self.class_ptr[row] : self.class_ptr[row + 1]]


@dataclass(frozen=True)
class Catalog:
    """Areas of every class in every image of a list.

    Attributes:
        ids: (N,) image ids in list order, also of images without any class.
        image_index: (P,) int64 position of the image in `ids`; pairs are sorted by image, then by class value.
        class_value: (P,) int64 class value 1..C.
        area: (P,) int64 pixels at original size, at least 1.
        class_names: Names of the C classes.
        skipped: Images of the list that could not be read and are not among `ids`, each with one line that says why.
    """

    ids: StrArray
    image_index: IntArray
    class_value: IntArray
    area: IntArray
    class_names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes C, without background."""
        return len(self.class_names)

    def __len__(self) -> int:
        """Number of images N."""
        return len(self.ids)

    def view(self, classes: Sequence[int], *, min_area: int, exclude: Sequence[int] = ()) -> CatalogView:
        """Choose the images that hold at least one of some classes with enough area.

        Args:
            classes: Class values, e.g. `fold.base` in training or `fold.novel` in evaluation.
            min_area: Fewest pixels at original size for a class to qualify in an image.
            exclude: Class values of which an image must not hold a single pixel, whatever their area (the novel-class
                filter of BAM and HDMNet in training).

        Returns:
            The view; it may be empty.

        Raises:
            ValueError: A class value is out of range, or none is given.
        """
        wanted = self._check_classes(classes, "classes")
        unwanted = self._check_classes(exclude, "exclude")
        if not wanted:
            raise ValueError("view of a catalog got no classes, expected at least one class value")
        dropped = np.zeros(len(self.ids), dtype=bool)
        dropped[self.image_index[np.isin(self.class_value, unwanted)]] = True
        keep = np.isin(self.class_value, wanted) & (self.area >= min_area) & ~dropped[self.image_index]
        images, image_of_pair = np.unique(self.image_index[keep], return_inverse=True)
        values = self.class_value[keep]
        by_class = np.lexsort((image_of_pair, values))
        per_image = np.bincount(image_of_pair, minlength=len(images))
        per_class = np.bincount(values, minlength=self.num_classes + 1)[wanted]
        return CatalogView(
            ids=self.ids[images],
            classes=tuple(wanted),
            class_names=tuple(self.class_names[value - 1] for value in wanted),
            image_ptr=_pointers(per_image),
            image_classes=values,
            class_ptr=_pointers(per_class),
            class_images=image_of_pair[by_class].astype(np.int64),
        )

    def _check_classes(self, classes: Sequence[int], what: str) -> list[int]:
        wrong = [value for value in classes if not 1 <= value <= self.num_classes]
        if wrong:
            raise ValueError(f"{what} holds class value {wrong[0]}, expected 1..{self.num_classes}")
        return sorted({int(value) for value in classes})


def load_catalog(
    source: SegmentationDataset,
    split: Split,
    cache_dir: str | Path | None,
    *,
    num_workers: int | None = None,
    progress: bool = True,
) -> Catalog:
    """Load a split's catalog from the cache, or scan the masks and cache the result.

    The cache file is keyed by the data set's name, the split, the source's fingerprint and the list of ids; a file that
    is missing or damaged is built anew and replaced in one step, so several processes may do this at once.

    Args:
        source: The data set.
        split: "train" or "val".
        cache_dir: Folder for cache files; made when missing. None = neither read nor write a cache.
        num_workers: Processes that scan the masks; None = one per available core. 0 and 1, and short lists, scan in
            this process.
        progress: Show a progress bar while scanning.

    Returns:
        The catalog. Where the source's files may be skipped, every picture was decoded too, and what cannot be read is
        in `skipped`.

    Raises:
        FileNotFoundError: An id of the list has no file; the message names it.
        ValueError: A mask is unreadable, holds a class index out of range, or has another size than its picture (the
            message names the file); or the list is empty or holds an id twice. Where files may be skipped: over half of
            the images cannot be read.
    """
    ids = source.ids(split)
    if not ids:
        raise ValueError(f"the {split} list of {source.name} is empty, expected at least one image id")
    check_unique(ids, f"the {split} list of {source.name}")
    key = _cache_key(source, split, ids)
    path = None if cache_dir is None else Path(cache_dir) / f"{source.name}-{split}-{key[:16]}.npz"
    found = None if path is None else _read_cache(path, key)
    if found is None:
        workers = available_cpus() if num_workers is None else num_workers
        found = _scan(source, ids, num_workers=workers, progress=progress, title=f"{source.name} {split} masks")
        if path is not None:
            _write_cache(path, key, *found)
    pairs, skipped = found
    if skipped:
        logger.warning("%s", tell_skipped([why for _, why in skipped], len(ids), f"{split} images of {source.name}"))
    kept = np.ones(len(ids), dtype=bool)
    kept[[position for position, _ in skipped]] = False
    return Catalog(
        ids=np.array(ids)[kept],
        image_index=(np.cumsum(kept) - 1)[pairs[:, 0]].astype(np.int64),
        class_value=pairs[:, 1].copy(),
        area=pairs[:, 2].copy(),
        class_names=tuple(source.class_names),
        skipped=tuple((ids[position], why) for position, why in skipped),
    )


def _pointers(counts: npt.NDArray[np.intp]) -> IntArray:
    """CSR row pointers (n+1,) from row lengths (n,)."""
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int64)


def _cache_key(source: SegmentationDataset, split: Split, ids: list[str]) -> str:
    inputs = hashlib.sha256()
    # The number of classes decides which mask values are refused, so it belongs to the inputs.
    first = _FORMAT if source.skips is None else f"{_FORMAT}-skip"  # other files are looked into, and otherwise
    for text in (first, source.name, split, str(len(source.class_names)), source.fingerprint(split), *ids):
        inputs.update(f"{len(text)}:{text}".encode())
    return inputs.hexdigest()


def _read_cache(path: Path, key: str) -> tuple[_Rows, _Skipped] | None:
    """Pairs and skipped images of a cache file, or None when there is none or it cannot be trusted."""
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            pairs: _Rows = data["pairs"]
            skipped = str(data["skipped"]) if "skipped" in data else ""
            if str(data["digest"]) == _digest(key, pairs, skipped):
                return pairs, [(int(position), str(why)) for position, why in json.loads(skipped or "[]")]
    except Exception as error:  # a file can be broken in endless ways, and scanning again mends them all
        logger.debug("catalog cache %s: %s", path, error)
    logger.warning("catalog cache %s is damaged or not ours: scanning the masks again", path)
    return None


def _digest(key: str, pairs: _Rows, skipped: str) -> str:
    """Checksum of a cache file; the zip format's own does not cover its headers, and thus not the array's type."""
    head = f"{key} {pairs.dtype.str} {pairs.shape} {skipped}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(pairs).tobytes()).hexdigest()


def _write_cache(path: Path, key: str, pairs: _Rows, skipped: _Skipped) -> None:
    """Write a cache file; several processes may do so at once."""
    text = json.dumps(skipped) if skipped else ""
    digest = _digest(key, pairs, text)
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, digest=np.array(digest), pairs=pairs, skipped=np.array(text))
    except OSError as error:  # the scan is done and right: a full or read-only disk must not cost the run
        logger.warning("catalog cache %s cannot be written (%s): the next run scans the masks again", path, error)


def _scan(
    source: SegmentationDataset, ids: list[str], *, num_workers: int, progress: bool, title: str
) -> tuple[_Rows, _Skipped]:
    """Pairs (P, 3) int64 of a whole list, sorted by image and class, and what could not be read."""
    chunks = [(start, ids[start : start + _CHUNK]) for start in range(0, len(ids), _CHUNK)]
    with tqdm(total=len(ids), desc=title, unit="mask", disable=not progress) as bar:
        if num_workers > 1 and len(ids) >= _MIN_PARALLEL:
            try:
                return _collect(_scan_in_pool(source, chunks, num_workers), bar)
            except BrokenProcessPool:
                # E.g. called from an unguarded script or from stdin, which spawned processes cannot import.
                logger.warning("worker processes for %s could not run: scanning in this process", title)
                bar.reset()
        return _collect((_scan_chunk(source, start, chunk) for start, chunk in chunks), bar)


def _collect(results: Iterator[_Part], bar: tqdm[None]) -> tuple[_Rows, _Skipped]:
    parts, skipped = [], []
    for part in results:
        parts.append(part.rows)
        skipped += part.skipped
        bar.update(part.num_images)
    return np.concatenate(parts), skipped


def _scan_in_pool(
    source: SegmentationDataset, chunks: list[tuple[int, list[str]]], num_workers: int
) -> Iterator[_Part]:
    # Never fork: the caller may have torch loaded, whose threads' locks would be copied in whatever state they are in.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    workers = min(num_workers, len(chunks))
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_set_worker_source, initargs=(source,))
    try:
        yield from pool.map(_scan_chunk_in_worker, chunks)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)  # after an error the remaining chunks are not scanned


_worker_source: SegmentationDataset | None = None


def _set_worker_source(source: SegmentationDataset) -> None:
    global _worker_source  # set once per worker process, so that a large source does not travel with every chunk
    _worker_source = source


def _scan_chunk_in_worker(chunk: tuple[int, list[str]]) -> _Part:
    assert _worker_source is not None
    return _scan_chunk(_worker_source, *chunk)


class _Part(NamedTuple):
    """What a chunk of images holds."""

    num_images: int
    rows: _Rows
    skipped: _Skipped


def _scan_chunk(source: SegmentationDataset, start: int, ids: list[str]) -> _Part:
    """Pairs (P, 3) int64 of images start, start+1, … of the list."""
    rows, skipped = [np.empty((0, 3), dtype=np.int64)], []
    for position, image_id in enumerate(ids, start):
        try:
            areas = class_areas(source, image_id)
            if source.skips is not None:
                _check_picture(source, image_id)
        except (ValueError, OSError) as error:
            if source.skips is None:
                raise
            skipped.append((position, " ".join(str(error).split())))
            continue
        values = np.flatnonzero(areas)
        rows.append(np.stack([np.full_like(values, position), values, areas[values]], axis=1))
    return _Part(len(ids), np.concatenate(rows).astype(np.int64, copy=False), skipped)


def _check_picture(source: SegmentationDataset, image_id: str) -> None:
    """Decode a picture: its header, which `class_areas` looks at, may be whole where the rest is not."""
    size, mask_size = source.read_image(image_id).shape[:2], source.read_mask(image_id).shape
    if size != mask_size:
        raise ValueError(f"{source.mask_location(image_id)} is {mask_size} (H, W) but its picture is {size}")


def class_areas(source: SegmentationDataset, image_id: str) -> IntArray:
    """Count the pixels of each class in one image, and check its mask.

    Args:
        source: The data set.
        image_id: Which image.

    Returns:
        (C+1,) int64, by class value; 0 for the background.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The mask is unreadable, holds other values, or has another size than its picture; one line that
            names it.
    """
    num_classes = len(source.class_names)
    where = source.mask_location(image_id)
    try:
        mask = source.read_mask(image_id)
        covered = source.covered_areas(image_id)
        size = source.image_size(image_id)
    except (FileNotFoundError, ValueError) as error:
        if where in str(error) or image_id in str(error):
            raise
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"{where}: {_one_line(error)}") from None
    except Exception as error:
        raise ValueError(f"{where} cannot be read: {_one_line(error)}") from error
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise ValueError(f"{where} has shape {mask.shape} and type {mask.dtype}, expected (H, W) uint8 class indices")
    if size is not None and size != mask.shape:
        raise ValueError(
            f"{where} is {mask.shape[0]}x{mask.shape[1]} (HxW) but its picture is {size[0]}x{size[1]}: expected the"
            " same size, prepare the mask again"
        )
    areas = np.bincount(mask.ravel(), minlength=256)
    wrong = np.flatnonzero(areas[num_classes + 1 : IGNORE])
    if len(wrong):
        raise ValueError(
            f"{where} holds class index {wrong[0] + num_classes + 1}, expected 0..{num_classes} or {IGNORE}"
            f" ({source.name} has {num_classes} classes): prepare the mask again or check the dataset setting"
        )
    areas = areas[: num_classes + 1].astype(np.int64)
    areas[0] = 0
    for value, area in covered.items():
        areas[value] += area
    return areas


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
