"""Regions of COCO-style annotations: polygons and run lengths.

Both are looked through before pycocotools gets them: its C code trusts them, and ends the process.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hdmnet.data.io.arrays import IGNORE, MAX_LABELS, UInt8Array
from hdmnet.runtime.errors import DatasetError

#: What to make of a region that is marked as a crowd (`iscrowd: 1`): its value, None: an object of its class.
CROWD_VALUES: dict[str, int | None] = {"ignore": IGNORE, "zero": 0, "class": None}

_FARTHEST = 100_000  # pixels: no coordinate of a picture is farther off


def decode_segmentation(segmentation: Any, height: int, width: int) -> npt.NDArray[np.bool_]:
    """Decode a COCO segmentation of a picture of H x W pixels exactly as pycocotools' `annToMask` does.

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

    if marks_nothing(segmentation):
        return np.zeros((height, width), dtype=bool)  # pycocotools would fail, or take two points for a box
    if isinstance(segmentation, list):
        check_polygons(segmentation)
        segmentation = [part for part in segmentation if len(part) > 4]
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


def marks_nothing(segmentation: Any) -> bool:
    """Whether an annotation has no region: none given, as in exports of boxes, parts of two points, no run lengths."""
    if isinstance(segmentation, list):
        return all(isinstance(part, list) and len(part) in (0, 4) for part in segmentation)
    if isinstance(segmentation, dict):
        return not segmentation or segmentation.get("counts", 0) in ([], "", b"")
    return segmentation is None


def is_crowd(annotation: Mapping[str, Any], of: str = "") -> bool:
    """Whether an annotation is marked as a crowd; some programs write numbers as texts.

    Raises:
        ValueError: The mark is neither 0 nor 1; `of` says of what the annotation is.
    """
    mark = annotation.get("iscrowd")
    text = str(mark).lower()
    if text in ("0", "0.0", "false", "none"):
        return False
    if text not in ("1", "1.0", "true"):
        number = annotation.get("id", "?")
        raise DatasetError(f"annotation {number}{of} has iscrowd {text[:80]!r}, expected 0 or 1: export it again")
    return True


def plain_id(value: Any) -> Any:
    """An id such that 1, 1.0 and "1" are one, as some programs write the same id in several ways."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return int(value) if isinstance(value, str) and value.isdecimal() and value == str(int(value)) else value


def refuse_doubled(entries: Sequence[Mapping[str, Any]], what: str, name: str) -> None:
    """Refuse images or categories of which two have one id: each would get the objects of both.

    An entry that is there twice, with the same name, does no harm.

    Args:
        entries: The images or categories of a COCO-style file.
        what: Which they are, with their file, for the message.
        name: Their key for the name: "file_name", "name".

    Raises:
        ValueError: Two have one id.
    """
    first: dict[Any, Any] = {}  # 1, 1.0 and "1" are one id
    for entry in entries:
        named, one = entry.get(name), plain_id(entry["id"])
        if first.setdefault(one, named) != named:
            raise DatasetError(
                f"{what}: {str(first[one])!r} and {str(named)!r} have the same id {entry['id']!r}, expected "
                "one each: export them anew (where files are merged, with new ids)"
            )


def category_values(categories: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """Number the categories of an instances file: class = position, from 1, in ascending category id.

    Args:
        categories: The `categories` of a COCO instances file.

    Returns:
        Class value of every category id.

    Raises:
        ValueError: If there is none, two have one id, or there are more than fit in 8 bits.
    """
    refuse_doubled(categories, "categories", "name")
    ids = sorted({int(category["id"]) for category in categories})
    if not 1 <= len(ids) <= MAX_LABELS:
        raise DatasetError(f"found {len(ids)} categories, expected 1 to {MAX_LABELS}, as class {IGNORE} means ignore")
    return {category: value for value, category in enumerate(ids, start=1)}


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
        crowd_value = CROWD_VALUES[crowd] if is_crowd(annotation) else None
        try:
            region = decode_segmentation(annotation.get("segmentation"), *size)
        except Exception as error:  # pycocotools raises bare Exception, TypeError and more on malformed input
            raise DatasetError(f"{name} cannot be decoded: {' '.join(str(error).split())}") from None
        mask[region] = values[category] if crowd_value is None else crowd_value
    return mask


def check_polygons(polygons: list[Any]) -> None:
    """Refuse what pycocotools would crash on: it takes any number to an integer, and walks along every edge.

    Raises:
        ValueError: It is not a list of [x1, y1, x2, y2, ...] in pixels each.
    """
    for part in polygons:
        if not isinstance(part, list) or len(part) % 2 or len(part) == 2:
            raise DatasetError("a polygon is no list of x, y pairs")
        if not all(type(value) in (int, float) and -_FARTHEST <= value <= _FARTHEST for value in part):
            raise DatasetError(f"a polygon has a coordinate that is no number of pixels within {_FARTHEST:,}")


def run_lengths(code: Any) -> list[int]:
    """Run lengths of COCO's compressed form, which pycocotools trusts: six bits a character, the lowest first.

    Of each character bit 5 says that more follow, and bit 4 of the last is the sign. From the fourth on a run's length
    is stored less that of the run before the last.

    Returns:
        The lengths, of background and object by turns; not all need be positive.

    Raises:
        ValueError: It is no such text.
    """
    if not isinstance(code, str | bytes):
        raise DatasetError("its run-length code is no text")
    characters = code.encode("latin-1", "replace") if isinstance(code, str) else code
    lengths: list[int] = []
    value = shift = 0
    for character in characters:
        bits = character - 48
        if not 0 <= bits < 64 or shift > 30:
            raise DatasetError("its run-length code holds characters that none has")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        value -= (1 << shift) if bits & 16 else 0
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    if shift:
        raise DatasetError("its run-length code is cut short")
    return lengths
