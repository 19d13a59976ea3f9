"""Masks from COCO-style annotations: polygons and run lengths, painted over one another."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from hdmnet.data.io.arrays import IGNORE, MAX_LABELS
from hdmnet.data.io.masks import CROWD_VALUES
from hdmnet.data.io.polygons import check_polygons, run_lengths
from hdmnet.runtime.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt

    from hdmnet.data.io.arrays import UInt8Array


def category_values(categories: Iterable[Mapping[str, Any]]) -> dict[int, int]:
    """Number the categories of an instances file: class = position, from 1, in ascending category id.

    Args:
        categories: The `categories` of a COCO instances file.

    Returns:
        Class value of every category id.

    Raises:
        ValueError: If there is none, or there are more than fit in 8 bits.
    """
    ids = sorted({int(category["id"]) for category in categories})
    if not 1 <= len(ids) <= MAX_LABELS:
        raise DatasetError(f"found {len(ids)} categories, expected 1 to {MAX_LABELS}, as class {IGNORE} means ignore")
    return {category: value for value, category in enumerate(ids, start=1)}


def decode_segmentation(segmentation: Any, height: int, width: int) -> npt.NDArray[np.bool_]:
    """Decode a COCO segmentation exactly as pycocotools' `annToMask` does.

    Args:
        segmentation: A list of polygons [x1, y1, x2, y2, ...], whose union it is, in pixels of the original picture; or
            a run-length encoding {"size": [H, W], "counts": list of int (uncompressed) | str (compressed)}.
        height: H of the picture.
        width: W of the picture.

    Returns:
        (H, W) bool.

    Raises:
        ValueError: If it is malformed or has another size than the picture.
    """
    from pycocotools import mask as coco_mask

    if isinstance(segmentation, list):
        if not segmentation:
            return np.zeros((height, width), dtype=bool)  # an annotation without a part: pycocotools would fail
        check_polygons(segmentation)
        code = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation, dict) and {"size", "counts"} <= segmentation.keys():
        if list(segmentation["size"]) != [height, width]:
            raise DatasetError(f"its run-length code has size {segmentation['size']}, its picture [{height}, {width}]")
        counts = segmentation["counts"]
        lengths = counts if isinstance(counts, list) else run_lengths(counts)
        if not all(type(length) is int and length >= 0 for length in lengths):
            raise DatasetError("its run lengths are no integers of at least 0")
        if sum(lengths) != height * width:
            raise DatasetError(f"its run lengths add up to {sum(lengths)}, expected {height * width}")
        code = (
            coco_mask.frPyObjects(segmentation, height, width)
            if isinstance(counts, list)
            else {"size": [height, width], "counts": counts}
        )
    else:
        raise DatasetError("its segmentation is neither polygons nor a run-length code")
    with warnings.catch_warnings():
        # pycocotools lacks the `copy` keyword that NumPy 2 asks of `__array__`; the result is right all the same.
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        decoded: npt.NDArray[np.bool_] = coco_mask.decode(code).astype(bool)
    return decoded


def paint_annotations(
    annotations: Sequence[Mapping[str, Any]], size: tuple[int, int], values: Mapping[int, int], crowd: str = "ignore"
) -> UInt8Array:
    """Paint a picture's annotations to one mask, in the order given, later ones over earlier ones.

    Args:
        annotations: COCO annotations: `segmentation`, `category_id`, and if any `iscrowd`, `id`.
        size: (H, W) of the picture.
        values: Class value of every category id, see `category_values`.
        crowd: What a crowd region paints: "ignore" 255, "zero" background, "class" its class.

    Returns:
        (H, W) uint8: 0, 1..C, 255.

    Raises:
        ValueError: If a category is unknown or a segmentation malformed; the line names the annotation.
    """
    mask = np.zeros(size, dtype=np.uint8)
    for annotation in annotations:
        name = f"annotation {annotation.get('id', '?')}"
        category = annotation.get("category_id")
        if not isinstance(category, int) or category not in values:
            raise DatasetError(f"{name} has category {category!r}, not among the file's {len(values)} categories")
        crowd_value = CROWD_VALUES[crowd] if annotation.get("iscrowd") else None
        try:
            region = decode_segmentation(annotation.get("segmentation"), *size)
        except Exception as error:  # pycocotools raises bare Exception, TypeError and more on malformed input
            raise DatasetError(f"{name} cannot be decoded: {' '.join(str(error).split())}") from None
        mask[region] = values[category] if crowd_value is None else crowd_value
    return mask
