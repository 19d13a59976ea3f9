"""Objects that vanish at the network's size: a picture with such a mask cannot be a support.

Masks are resized as in evaluation, to the nearest pixel, so that what is small in a large picture may lie between those
that are taken.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from hdmnet.data.catalog import Catalog, cache_key, read_cache, write_cache
from hdmnet.data.datasets.base import SegmentationDataset, Split
from hdmnet.data.transforms import padded_size, resize_mask
from hdmnet.runtime.provenance import available_cpus

_SEVERAL = 64  # pictures: fewer are done before a bar could be read


@dataclass(frozen=True)
class Vanished:
    """What vanishes.

    Attributes:
        size: (H, W) of the network's input.
        pairs: Image id and class value of each object, i.e. of all pixels of a class in an image.
    """

    size: tuple[int, int]
    pairs: frozenset[tuple[str, int]]


def find_vanished(
    dataset: SegmentationDataset,
    split: Split,
    catalog: Catalog,
    size: tuple[int, int],
    cache_dir: str | Path | None,
    *,
    skip: bool = False,
    progress: bool = True,
    pad: bool = False,
) -> Vanished:
    """Find the objects of a list, with enough area to count, that vanish; kept beside the catalog's cache.

    Args:
        dataset: The data set.
        split: The list.
        catalog: Of the list.
        size: (H, W) of the network's input.
        cache_dir: As for `load_catalog`.
        skip: Pass over what cannot be read, as it is left out when it is needed; False: it is an error.
        progress: Show a bar where there is much to look at.
        pad: Pictures keep their aspect (`EvaluationRules.resize`), so that some are smaller.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file cannot be read.
    """
    ids = dataset.ids(split)
    key = None if cache_dir is None else cache_key(dataset, split, ids, skip)
    key = None if key is None else f"{key} {size[0]}x{size[1]} {dataset.min_area}{' pad' * pad}"
    of = f"{dataset.name}-{split}-{size[0]}x{size[1]}{'-pad' * pad}-{dataset.min_area}"
    name = f"{of}-{'' if key is None else key[:16]}.npz"
    path = None if key is None or cache_dir is None else Path(cache_dir) / name
    found = None if path is None or key is None else read_cache(path, key)
    if found is None:
        title = f"{dataset.name} {split} objects"
        rows = _look(dataset, catalog, size, skip=skip, progress=progress, title=title, pad=pad)
        if path is not None and key is not None:
            write_cache(path, key, rows, [])
    else:
        rows, _ = found
    return Vanished(size, frozenset((str(catalog.ids[row[0]]), row[1]) for row in rows.tolist()))


def _look(
    dataset: SegmentationDataset,
    catalog: Catalog,
    size: tuple[int, int],
    *,
    skip: bool,
    progress: bool,
    title: str,
    pad: bool,
) -> np.ndarray:
    """(n, 2) int64: position in the catalog and class value of each object that vanishes."""
    counts = catalog.area >= dataset.min_area
    triples = np.stack([catalog.image_index, catalog.class_value, catalog.area], axis=1)[counts]
    areas: dict[int, dict[int, int]] = {}
    for position, value, area in triples.tolist():
        areas.setdefault(position, {})[value] = area

    def look(position: int) -> list[tuple[int, int]]:
        try:
            found = vanished_classes(dataset, str(catalog.ids[position]), areas[position], size, pad=pad)
        except (ValueError, OSError):
            if not skip:
                raise
            return []
        return [(position, value) for value in found]

    rows: list[tuple[int, int]] = []
    with ThreadPoolExecutor(available_cpus()) as pool:  # decoding leaves Python's lock alone
        results = pool.map(look, areas)
        quiet = not progress or len(areas) < _SEVERAL
        for part in tqdm(results, total=len(areas), desc=title, unit="image", disable=quiet):
            rows += part
    return np.array(rows, dtype=np.int64).reshape(-1, 2)


def vanished_classes(
    dataset: SegmentationDataset, image_id: str, areas: dict[int, int], size: tuple[int, int], *, pad: bool = False
) -> list[int]:
    """Those classes of an image of which no pixel is left at a size (H, W); `areas` are their pixels at original size.

    With `pad` the picture keeps its aspect within that size.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file cannot be read.
    """
    original = dataset.image_size(image_id)
    if pad:
        size = padded_size(dataset.read_image(image_id).shape[:2] if original is None else original, size)
    small = [value for value, area in areas.items() if original is None or _may_vanish(area, original, size)]
    return [value for value in small if not (resize_mask(dataset.read_class_mask(image_id, value), size) == 1).any()]


def _may_vanish(area: int, original: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether so many pixels may all lie between those that are taken: strips along all of the picture have room.

    Only large patterns of the very frequency at which pixels are taken are missed; an evaluation refuses their masks.
    """
    rows, columns = (after < before for before, after in zip(original, size, strict=True))
    return area < original[0] * original[1] * (rows / size[0] + columns / size[1])
