"""A walk through a folder that follows links to folders, each folder once."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from hdmnet.runtime.errors import one_line


def walk_folders(
    root: Path, left_out: list[str], *, unreadable: list[str] | None = None
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Walk as `os.walk` does, from the top, through symbolic links to folders too.

    Real folders come before linked ones, so that a file that is there twice keeps the path that it has without links.

    Args:
        root: The folder.
        left_out: Gets a line for each link that is not followed: it leads to a folder that is walked anyway, or above
            the root, in a circle.
        unreadable: Gets a line for each folder that cannot be read; None: that is an error.

    Yields:
        Path of a folder, names of the folders in it (take out those that shall not be walked) and of its files, both
        ascending. A link that leads nowhere is among the files.

    Raises:
        OSError: A folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        if unreadable is None:
            raise error
        unreadable.append(f"folder left out, as it cannot be read: {one_line(error)}")

    above = {_identity(parent) for parent in root.resolve().parents}
    seen: dict[tuple[int, int], Path] = {}
    waiting = deque([root])
    while waiting:
        for name, folders, files in os.walk(waiting.popleft(), onerror=refuse):
            folder = Path(name)
            identity = _identity(folder)
            if identity in seen or identity in above:
                why = f"{seen[identity]}, which is read already" if identity in seen else "a folder above, in a circle"
                left_out.append(f"{folder} leads to {why}")
                folders.clear()
                continue
            seen[identity] = folder
            folders.sort()
            yield folder, folders, sorted(files)
            waiting += [folder / one for one in folders if (folder / one).is_symlink()]


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
