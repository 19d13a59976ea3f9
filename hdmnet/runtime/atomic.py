"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hdmnet.runtime.home import expand_home


@contextmanager
def replacing(path: str | Path, *, durable: bool = False) -> Iterator[Path]:
    """Write beside a file, then rename: a reader never meets half a file, and of several writers the last wins.

    Args:
        path: The file; its folder is made if needed. It stays as it was when the block raises.
        durable: Whether it is whole after a loss of power too: the content reaches the disk before the name does. Costs
            some milliseconds, which is too much for thousands of files that can be made again.

    Yields:
        The temporary path to write to: hidden, unique, never taken for a finished file.
    """
    path = expand_home(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Opened by the caller, not by `tempfile`, which would leave files that other users of a shared folder cannot read.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        if durable:
            sync(temporary)
        os.replace(temporary, path)
        if durable:
            sync(path.parent)
    finally:
        with contextlib.suppress(OSError):  # the folder may be gone; what went wrong is on its way up already
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: str | Path) -> None:
    """Remove the temporary files that killed writers have left in a folder; nobody may be writing in it."""
    for file in Path(folder).glob(".*.tmp"):
        file.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until the content of a file or folder that can be read is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot, of folders
            raise
    finally:
        os.close(descriptor)
