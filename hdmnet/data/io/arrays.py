"""Types of mask arrays, and a walk through large ones."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]


_BAND = 256  # rows


def bands(height: int) -> Iterator[slice]:
    """Rows of a picture, some at a time, where what is made of all at once would take gigabytes of a large one."""
    return (slice(start, min(start + _BAND, height)) for start in range(0, height, _BAND))


#: Label value that neither a loss nor a metric counts.
IGNORE = 255

#: Most classes of a map that holds several: it has 8 bits. Nothing but such maps has a limit.
MAX_LABELS = IGNORE - 1
