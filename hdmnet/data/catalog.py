"""Which images hold which classes, and how much of them: scanned once from the masks, then cached on disk.

Everything is kept in flat arrays (no Python lists per image), so that COCO's 82,000 images load in a blink and a view
can be sent to worker processes cheaply. Legend: N images, P (image, class) pairs, M images of a view, C classes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from hdmnet.data.class_split import ClassSplit
from hdmnet.data.datasets.base import SegmentationDataset, Split
from hdmnet.data.datasets.files import check_unique
from hdmnet.data.datasets.skipped_files import tell_skipped
from hdmnet.runtime.atomic import replacing
from hdmnet.runtime.errors import DatasetError, MissingFileError
from hdmnet.runtime.home import expand_home
from hdmnet.runtime.provenance import available_cpus

logger = logging.getLogger(__name__)

IntArray = npt.NDArray[np.int64]
StrArray = npt.NDArray[np.str_]

_FORMAT = "hdmnet-catalog-2"  # 2: palettes are compared
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

    def classes_of(self, position: int) -> IntArray:
        """Class values that qualify in the image at a position, ascending."""
        return self.image_classes[self.image_ptr[position] : self.image_ptr[position + 1]]

    def images_of(self, class_value: int) -> IntArray:
        """Positions of the images in which a class of `classes` qualifies, in list order."""
        row = self.classes.index(class_value)
        return self.class_images[self.class_ptr[row] : self.class_ptr[row + 1]]

    def without(self, classes: Sequence[int]) -> CatalogView:
        """The view without the images of some of its classes; an image that holds others too stays for these."""
        image_of_pair = np.repeat(np.arange(len(self)), np.diff(self.image_ptr))
        keep = ~np.isin(self.image_classes, list(classes))
        names = dict(zip(self.classes, self.class_names, strict=True))
        return _make_view(self.ids, image_of_pair[keep], self.image_classes[keep], names)


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

    def view(
        self,
        classes: Sequence[int],
        *,
        min_area: int,
        exclude: Sequence[int] = (),
        leave_out: Collection[str] = (),
        pairs: Collection[tuple[str, int]] | None = None,
    ) -> CatalogView:
        """Choose the images that hold at least one of some classes with enough area.

        Args:
            classes: Class values, e.g. those of training or of test.
            min_area: Fewest pixels at original size for a class to qualify in an image.
            exclude: Class values of which an image must not hold a single pixel, whatever their area (the novel-class
                filter of BAM and HDMNet in training).
            leave_out: Ids of images that are not wanted, whatever they hold.
            pairs: Images with the class values by which they may qualify; None: all.

        Returns:
            The view; it may be empty.

        Raises:
            ValueError: A class value is out of range, or none is given.
        """
        wanted = self._check_classes(classes, "classes")
        unwanted = self._check_classes(exclude, "exclude")
        if not wanted:
            raise DatasetError("view of a catalog got no classes, expected at least one class value")
        dropped = np.isin(self.ids, list(leave_out))
        dropped[self.image_index[np.isin(self.class_value, unwanted)]] = True
        keep = np.isin(self.class_value, wanted) & (self.area >= min_area) & ~dropped[self.image_index]
        if pairs is not None:
            images = self.ids[self.image_index].tolist()
            keep &= [pair in pairs for pair in zip(images, self.class_value.tolist(), strict=True)]
        names = {value: self.class_names[value - 1] for value in wanted}
        return _make_view(self.ids, self.image_index[keep], self.class_value[keep], names)

    def _check_classes(self, classes: Sequence[int], what: str) -> list[int]:
        wrong = [value for value in classes if not 1 <= value <= self.num_classes]
        if wrong:
            raise DatasetError(f"{what} holds class value {wrong[0]}, expected 1..{self.num_classes}")
        return sorted({int(value) for value in classes})


def load_catalog(
    dataset: SegmentationDataset,
    split: Split,
    cache_dir: str | Path | None,
    *,
    skip: bool = False,
    num_workers: int | None = None,
    progress: bool = True,
) -> Catalog:
    """Load a split's catalog from the cache, or scan the masks and cache the result.

    The cache file is keyed by the data set's name and fingerprint, the split and the list of ids; a file that is
    missing or damaged is built anew and replaced in one step, so several processes may do this at once.

    Args:
        dataset: The data set.
        split: One of the data set's splits.
        cache_dir: Folder for cache files; None: neither read nor write one, as for a data set without a fingerprint.
        skip: Leave out images that cannot be read, picture or mask; False: they are errors.
        num_workers: Processes that scan the masks; None = one per available core. 0 and 1, and short lists, scan in
            this process.
        progress: Show a progress bar while scanning.

    Returns:
        The catalog. With `skip` every picture was decoded too, and what cannot be read is in `skipped`.

    Raises:
        FileNotFoundError: An id of the list has no file; the message names it.
        ValueError: A mask is unreadable, holds a class index out of range, or has another size than its picture (the
            message names the file); or the list is empty or holds an id twice. With `skip`: over half of the images
            cannot be read.
    """
    ids = dataset.ids(split)
    if not ids:
        raise DatasetError(f"the {split} list of {dataset.name} is empty, expected at least one image id")
    check_unique(ids, f"the {split} list of {dataset.name}")
    key = None if cache_dir is None else cache_key(dataset, split, ids, skip)
    path = (
        None if key is None or cache_dir is None else expand_home(cache_dir) / f"{dataset.name}-{split}-{key[:16]}.npz"
    )
    found = None if path is None or key is None else read_cache(path, key)
    if found is None:
        workers = available_cpus() if num_workers is None else num_workers
        title = f"{dataset.name} {split} masks"
        found = _scan(dataset, ids, skip, num_workers=workers, progress=progress, title=title)
        if path is not None and key is not None:
            write_cache(path, key, *found)
    pairs, skipped = found
    if skipped:
        logger.warning("%s", tell_skipped([why for _, why in skipped], len(ids), f"{split} images of {dataset.name}"))
    kept = np.ones(len(ids), dtype=bool)
    kept[[position for position, _ in skipped]] = False
    return Catalog(
        ids=np.array(ids)[kept],
        image_index=(np.cumsum(kept) - 1)[pairs[:, 0]].astype(np.int64),
        class_value=pairs[:, 1].copy(),
        area=pairs[:, 2].copy(),
        class_names=tuple(dataset.class_names),
        skipped=tuple((ids[position], why) for position, why in skipped),
    )


def training_view(
    catalog: Catalog,
    dataset: SegmentationDataset,
    split: ClassSplit,
    *,
    filter_novel: bool,
    classes: Sequence[int] | None = None,
    leave_out: Collection[str] = (),
) -> CatalogView:
    """Images to train a fold on: with a base class of enough area and, if filtered, no pixel of a novel class.

    Args:
        catalog: Of the training list.
        dataset: Has its class names and least area.
        split: Of the fold.
        filter_novel: Whether images with a pixel of a novel class are left out.
        classes: Only images of some of these; None: of any base class.
        leave_out: Ids that are left out.

    Raises:
        ValueError: There are none because of the filter.
    """
    view = catalog.view(
        split.train if classes is None else classes,
        min_area=dataset.min_area,
        exclude=split.novel if filter_novel else (),
        leave_out=leave_out,
        pairs=dataset.listed_pairs("train"),
    )
    if not len(view) and filter_novel and not leave_out:
        without = len(catalog.view(split.train, min_area=dataset.min_area))
        if without:
            names = [dataset.class_names[value - 1] for value in split.novel]
            raise DatasetError(
                f"all {without:,} training images of {dataset.name} fold {split.fold} hold a novel class"
                f" ({', '.join(names[:5])}{' …' if len(names) > 5 else ''}), and dataset.filter_novel=true leaves such"
                " images out: set dataset.novel_pixels=ignore to train on them, the novel pixels ignored"
            )
    return view


def _make_view(ids: StrArray, image_of_pair: IntArray, values: IntArray, names: dict[int, str]) -> CatalogView:
    """The view of some pairs.

    Args:
        ids: (N,) image ids.
        image_of_pair: (P',) int64 positions in `ids`, ascending.
        values: (P',) int64 class values, ascending within an image.
        names: Name of each class of the view by its value, ascending.
    """
    images, image_of_pair = np.unique(image_of_pair, return_inverse=True)
    return CatalogView(
        ids=ids[images],
        classes=tuple(names),
        class_names=tuple(names.values()),
        image_ptr=_pointers(np.bincount(image_of_pair, minlength=len(images))),
        image_classes=values,
        class_ptr=_pointers(np.bincount(values, minlength=max(names) + 1)[list(names)]),
        class_images=image_of_pair[np.lexsort((image_of_pair, values))].astype(np.int64),
    )


def _pointers(counts: npt.NDArray[np.intp]) -> IntArray:
    """CSR row pointers (n+1,) from row lengths (n,)."""
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int64)


def cache_key(dataset: SegmentationDataset, split: Split, ids: list[str], skip: bool) -> str | None:
    """Key of what is known of a list's masks; None where it cannot be told whether they have changed."""
    fingerprint = dataset.fingerprint(split)
    if fingerprint is None:
        return None
    inputs = hashlib.sha256()
    # The number of classes decides which mask values are refused, so it belongs to the inputs.
    first = f"{_FORMAT}-skip" if skip else _FORMAT  # other files are looked into, and otherwise
    for text in (first, dataset.name, split, str(len(dataset.class_names)), fingerprint, *ids):
        inputs.update(f"{len(text)}:{text}".encode(errors="surrogateescape"))
    return inputs.hexdigest()


def read_cache(path: Path, key: str) -> tuple[_Rows, _Skipped] | None:
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
    head = f"{key} {pairs.dtype.str} {pairs.shape} {skipped}".encode(errors="surrogateescape")
    return hashlib.sha256(head + np.ascontiguousarray(pairs).tobytes()).hexdigest()


def write_cache(path: Path, key: str, pairs: _Rows, skipped: _Skipped) -> None:
    """Write a cache file of (n, m) rows; several processes may do so at once."""
    text = json.dumps(skipped) if skipped else ""
    digest = _digest(key, pairs, text)
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, digest=np.array(digest), pairs=pairs, skipped=np.array(text))
    except OSError as error:  # the scan is done and right: a full or read-only disk must not cost the run
        logger.warning("catalog cache %s cannot be written (%s): the next run scans the masks again", path, error)


def _scan(
    dataset: SegmentationDataset, ids: list[str], skip: bool, *, num_workers: int, progress: bool, title: str
) -> tuple[_Rows, _Skipped]:
    """Pairs (P, 3) int64 of a whole list, sorted by image and class, and what could not be read."""
    chunks = [(start, ids[start : start + _CHUNK]) for start in range(0, len(ids), _CHUNK)]
    with tqdm(total=len(ids), desc=title, unit="mask", disable=not progress) as bar:
        if num_workers > 1 and len(ids) >= _MIN_PARALLEL:
            try:
                return _collect(_scan_in_pool(dataset, skip, chunks, num_workers), bar)
            except BrokenProcessPool:
                # E.g. called from an unguarded script or from stdin, which spawned processes cannot import.
                logger.warning("worker processes for %s could not run: scanning in this process", title)
                bar.reset()
        return _collect((_scan_chunk(dataset, start, chunk, skip) for start, chunk in chunks), bar)


def _collect(results: Iterator[_Part], bar: tqdm[None]) -> tuple[_Rows, _Skipped]:
    parts, skipped = [], []
    for part in results:
        parts.append(part.rows)
        skipped += part.skipped
        bar.update(part.num_images)
    return np.concatenate(parts), skipped


def _scan_in_pool(
    dataset: SegmentationDataset, skip: bool, chunks: list[tuple[int, list[str]]], num_workers: int
) -> Iterator[_Part]:
    # Never fork: the caller may have torch loaded, whose threads' locks would be copied in whatever state they are in.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    workers = min(num_workers, len(chunks))
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_set_worker_dataset, initargs=(dataset, skip))
    try:
        yield from pool.map(_scan_chunk_in_worker, chunks)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)  # after an error the remaining chunks are not scanned


_in_worker: tuple[SegmentationDataset, bool] | None = None


def _set_worker_dataset(dataset: SegmentationDataset, skip: bool) -> None:
    global _in_worker  # set once per worker process, so that a large data set does not travel with every chunk
    _in_worker = dataset, skip


def _scan_chunk_in_worker(chunk: tuple[int, list[str]]) -> _Part:
    assert _in_worker is not None
    dataset, skip = _in_worker
    return _scan_chunk(dataset, *chunk, skip)


class _Part(NamedTuple):
    """What a chunk of images holds."""

    num_images: int
    rows: _Rows
    skipped: _Skipped


def _scan_chunk(dataset: SegmentationDataset, start: int, ids: list[str], skip: bool) -> _Part:
    """Pairs (P, 3) int64 of images start, start+1, … of the list."""
    rows: list[tuple[int, int, int]] = []
    skipped = []
    for position, image_id in enumerate(ids, start):
        try:
            areas = class_areas(dataset, image_id)
            if skip:
                dataset.read_image(image_id)  # its header, which is looked at, may be whole where the rest is not
        except (ValueError, OSError) as error:
            if not skip:
                raise
            skipped.append((position, " ".join(str(error).split())))
            continue
        rows += [(position, value, areas[value]) for value in sorted(areas)]
    return _Part(len(ids), np.array(rows, dtype=np.int64).reshape(-1, 3), skipped)


def class_areas(dataset: SegmentationDataset, image_id: str) -> dict[int, int]:
    """Count the pixels, at least 1, of each class in one image, and check its masks.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A mask is unreadable, holds other values, or has another size than its picture; one line names it.
    """
    where = dataset.mask_location(image_id)
    try:
        return dataset.class_areas(image_id)
    except (FileNotFoundError, ValueError) as error:
        if where in str(error) or image_id in str(error):
            raise
        kind = MissingFileError if isinstance(error, FileNotFoundError) else DatasetError
        raise kind(f"{where}: {_one_line(error)}") from None
    except Exception as error:
        raise DatasetError(f"{where} cannot be read: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
