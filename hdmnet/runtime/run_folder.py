"""One run, one folder: a second process is kept out while the first is at work, and a finished result is kept."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from hdmnet.runtime.errors import InputError

_LOCK = Path(".hydra") / "running.lock"
_HOLDER = _LOCK.with_suffix(".txt")


@contextmanager
def own_folder(folder: Path, *, replace: bool, setting: str = "hydra.run.dir") -> Iterator[None]:
    """Hold a run's folder, made if needed; the system frees it when the process is gone, however it ended.

    Args:
        folder: The folder.
        replace: Whether it may have a result.
        setting: The key that names another one, for messages.

    Raises:
        InputError: Another process holds it, or it has a result and `replace` does not allow to replace that.
        OSError: It cannot be written to.
    """
    file = folder / _LOCK
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"run folder {folder} is in use by {_holder(folder)}: wait for it, or give this run a folder of its own "
            f"({setting}=DIR)"
        ) from None
    try:
        if not replace and (folder / "result.json").is_file():
            raise InputError(
                f"run folder {folder} holds the result.json of a finished run: give this run a folder of its own "
                f"({setting}=DIR), or move that one away"
            )
        (folder / _HOLDER).write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        lock.release()


def is_held(folder: Path) -> bool:
    """Whether a process is at work in a run's folder."""
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def remove_unused(folder: Path, *, below: Path | None = None) -> None:
    """Remove a folder that holds nothing but what Hydra and `own_folder` write as a command begins.

    Args:
        folder: Made for the command; with anything else in it, or held by a process, it stays.
        below: The folders above it go too, up to this one, where nothing is left in them; None: they stay.
    """
    if not folder.is_dir() or any(entry.name != ".hydra" for entry in folder.iterdir()) or is_held(folder):
        return
    shutil.rmtree(folder / ".hydra", ignore_errors=True)
    with contextlib.suppress(OSError):  # until one is not empty
        folder.rmdir()
        for parent in folder.parents if below in folder.parents else ():
            if parent == below:
                break
            parent.rmdir()


def _holder(folder: Path) -> str:
    try:
        return (folder / _HOLDER).read_text(encoding="utf-8")
    except OSError:
        return "another process"
