"""Looks through COCO segmentations before pycocotools gets them: its C code trusts them, and ends the process."""

from __future__ import annotations

from typing import Any

from hdmnet.runtime.errors import DatasetError

_FARTHEST = 100_000  # pixels: no coordinate of a picture is farther off


def check_polygons(polygons: list[Any]) -> None:
    """Refuse what pycocotools would crash on: it takes any number to an integer, and walks along every edge.

    Args:
        polygons: [x1, y1, x2, y2, ...] each, in pixels.

    Raises:
        ValueError: It is not that.
    """
    for part in polygons:
        if not isinstance(part, list) or len(part) < 4 or len(part) % 2:
            raise DatasetError("a polygon is no list of x, y pairs")
        if not all(type(value) in (int, float) and -_FARTHEST <= value <= _FARTHEST for value in part):
            raise DatasetError(f"a polygon has a coordinate that is no number of pixels within {_FARTHEST:,}")


def run_lengths(code: Any) -> list[int]:
    """Run lengths of COCO's compressed form, which pycocotools trusts: six bits a character, the lowest first.

    Of each character bit 5 says that more follow, and bit 4 of the last is the sign. From the fourth on a run's length
    is stored less that of the run before the last.

    Args:
        code: The text, `counts` of a segmentation.

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
