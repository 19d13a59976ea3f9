"""What a mask holds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]


#: Label value that neither a loss nor a metric counts.
IGNORE = 255

#: Most classes of a map that holds several: it has 8 bits. Nothing but such maps has a limit.
MAX_LABELS = IGNORE - 1
