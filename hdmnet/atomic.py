"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write beside a file, then rename: a reader never meets half a file, and of several writers the last wins.

    Args:
        path: The file; its folder is made if needed. It stays as it was when the block raises.

    Yields:
        The temporary path to write to: hidden, unique, never taken for a finished file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Opened by the caller, not by `tempfile`, which would leave files that other users of a shared folder cannot read.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
