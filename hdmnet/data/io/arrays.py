"""What a mask holds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]


#: Label value that neither a loss nor a metric counts.
IGNORE = 255
