"""What a command prints, on consoles of any encoding."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Mapping, Sequence

MOST_CLASSES = 40  # in a table that is read from top to bottom
_MOST_NAMES = 20  # in a line


def print_in_any_encoding() -> None:
    """Let this process print what its console's encoding lacks as an escape in place of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def name_some(names: Sequence[str]) -> str:
    """Names for a line: of many the first, and how many more."""
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more:,} more" if more > 0 else "")


def classes_to_show(ious: Mapping[str, float | None]) -> list[str]:
    """Classes for a table: as they come, but of more than `MOST_CLASSES` those of lowest and highest IoU, ascending."""
    if len(ious) <= MOST_CLASSES:
        return list(ious)
    defined = {name: iou for name, iou in ious.items() if iou is not None and math.isfinite(iou)}
    ordered = sorted(defined, key=defined.__getitem__)
    half = MOST_CLASSES // 2
    return ordered if len(ordered) <= MOST_CLASSES else [*ordered[:half], *ordered[-half:]]
