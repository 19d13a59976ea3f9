"""Files of tensors and plain containers only, so that loading one never runs anything."""

from __future__ import annotations

import importlib
import io
import logging
import os
import re
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from hdmnet.runtime.atomic import replacing, sync
from hdmnet.runtime.errors import CheckpointError, MissingFileError
from hdmnet.runtime.home import expand_home

log = logging.getLogger(__name__)

BASE_LEARNER_KEY, RUN_KEY = "hdmnet_base_learner", "hdmnet"  # of what hdmnet adds to a checkpoint
BEST, LAST, PREVIOUS = "best.ckpt", "last.ckpt", "last-previous.ckpt"  # in a run's folder checkpoints/


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of any kind, or tensors in a `.safetensors` file; returns its top-level mapping.

    Raises:
        MissingFileError: There is no such file.
        CheckpointError: The file is damaged, holds code, or is no mapping.
    """
    path = expand_home(path)
    if not path.is_file():
        raise MissingFileError(f"checkpoint {str(path)!r} not found; expected the path of a .ckpt or .pth file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on odd files before it refuses them
            if path.suffix == ".safetensors":
                content = importlib.import_module("safetensors.torch").load_file(path)
            else:
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds here
        more = re.search(r"GLOBAL (\S+)", str(error))
        why = "damaged, or more than tensors and plain containers" if more is None else f"{more[1]} beside tensors"
        raise CheckpointError(
            f"checkpoint {str(path)!r} cannot be read: {why} (nothing in it was run); expected a file written by "
            "hdmnet or by the official release"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"checkpoint {str(path)!r} holds a {type(content).__name__}; expected a mapping")
    return content


def write_atomically(content: dict[str, Any], path: str | Path) -> None:
    """Save with torch under a temporary name, then rename: the file is whole or not there."""
    with replacing(path) as temporary:
        torch.save(content, temporary)


def write_durably(content: dict[str, Any], path: str | Path, *, before: Path | None = None) -> None:
    """As `write_atomically`, and whole after a loss of power too.

    The present file goes to `before`, once the new one is whole; with None it is replaced.

    Raises:
        OSError: The disk is full, or the folder cannot be written; the files that were there are whole.
    """
    # Into memory first: on a full disk torch's own writer raises nothing that could be told from a bug.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path = Path(path)
    with replacing(path, durable=True) as temporary:
        temporary.write_bytes(buffer.getbuffer())
        if before is not None and path.is_file():
            sync(temporary)
            os.replace(path, before)


def newest_whole(folder: str | Path) -> Path | None:
    """The checkpoint that a run in a folder goes on from.

    That is `last.ckpt`, or the one before it where the last is damaged or was about to be replaced; None where neither
    is.

    Raises:
        CheckpointError: There are some, and all are damaged.
    """
    damaged = []
    for file in (Path(folder) / LAST, Path(folder) / PREVIOUS):
        if not file.is_file():
            continue
        try:
            _check_sums(file)
            read_checkpoint(file)
        except (ValueError, OSError) as error:
            damaged.append(file)
            log.warning("CHECKPOINT DAMAGED: %s; the one before it is tried", error)
            continue
        return file
    if damaged:
        raise CheckpointError(
            f"{' and '.join(map(str, damaged))} cannot be read; expected a whole one to go on from: delete them to "
            "begin the run anew"
        )
    return None


def _check_sums(path: Path) -> None:
    """Refuse a file one of whose parts differs from its checksum; torch does not compare them."""
    try:
        with zipfile.ZipFile(path) as file:
            wrong = file.testzip()
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise CheckpointError(f"{path} is no whole file of torch.save ({error})") from None
    if wrong is not None:
        raise CheckpointError(f"{path} is damaged: checksum of {wrong}")
