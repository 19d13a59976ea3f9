"""`~` at the beginning of a path: only a shell replaces it, and only where it stands alone."""

from __future__ import annotations

import os
from pathlib import Path

from hdmnet.runtime.errors import InputError


def expand_home(path: str | os.PathLike[str]) -> Path:
    """Replace `~` or `~user` at the beginning of a path by that home folder; all else stays as it is.

    Raises:
        InputError: It is the user's own, and the system does not know where that is.
    """
    expanded = os.path.expanduser(path)
    if expanded == "~" or expanded.startswith(f"~{os.sep}"):
        raise InputError(
            f"{os.fspath(path)}: this user has no home folder (HOME is not set, and there is no entry in the password "
            "database); set HOME, or write the path out"
        )
    return Path(expanded)
