"""`dataset.on_error=skip`: files that cannot be read are left out and listed, instead of ending the run.

What is decided where:

* When a catalog is built every picture and mask of its list is decoded. What cannot be is taken off the list, for
  training, validation and test alike. So the episodes are drawn from readable files only, they are the same for any
  number of workers and processes, and the manifest's hash says which they were.
* A file that could be read then and cannot in training (a disk that fails) has its episode replaced by the next draw
  of the same generator, a function of the episode's index alone.
* In a validation or test such a file ends the run after all: figures that depend on a disk's moods are no result.

The list is kept as lines of JSON in the run's folder, one file a process, so that it outlives workers, ranks and kills.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from hdmnet.runtime.errors import DatasetError

_T = TypeVar("_T")

#: Distance between an index and its replacement: beyond what any training reaches.
STRIDE = 1 << 40
_MOST_ATTEMPTS = 100


class UnreadableError(DatasetError):
    """A picture or mask that cannot be read, of a data set whose files may be skipped."""


class SkippedFiles:
    """Where the files that training could not read are listed; may travel to worker processes.

    Args:
        folder: Folder of the lists; made when there is something to list. None: nothing is kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def record(self, index: int, why: str) -> None:
        """List a file that the episode or sample of an index met; `why` is one line that names it."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{socket.gethostname()}-{os.getpid()}.jsonl"
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"index": index, "why": why}) + "\n")

    def read(self) -> dict[str, int]:
        """How many episodes or samples met each file, over all processes: one a line as it was given to `record`."""
        met: dict[str, set[int]] = {}
        for file in sorted(self.folder.glob("*.jsonl")) if self.folder is not None else ():
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:  # the last line of a process that was killed while it wrote
                    continue
                met.setdefault(str(entry["why"]), set()).add(int(entry["index"]))
        return {why: len(met[why]) for why in sorted(met)}


def tell_skipped(reasons: Sequence[str], total: int, what: str) -> str:
    """One line that says of images, of `total`, that they are left out, and why the first is.

    Raises:
        ValueError: They are more than half, so that something else must be wrong.
    """
    first = f"the first because {reasons[0]}"
    if 2 * len(reasons) > total:
        raise DatasetError(
            f"{len(reasons):,} of {total:,} {what} cannot be read, {first}: too many to skip, mend them or check the "
            "dataset settings"
        )
    return f"dataset.on_error=skip: {len(reasons):,} of {total:,} {what} are left out, {first}"


def first_readable(index: int, draw: Callable[[int], _T], skips: SkippedFiles | None) -> _T:
    """Draw the first of the training samples `index`, `index + STRIDE`, `index + 2 * STRIDE` ... that can be read.

    `skips` gets what could not be read; without it that is raised.

    Raises:
        ValueError: None of many could.
    """
    if skips is None:
        return draw(index)
    for attempt in range(_MOST_ATTEMPTS):
        try:
            return draw(index + attempt * STRIDE)
        except UnreadableError as error:
            last = str(error)
            skips.record(index, last)
    raise DatasetError(
        f"{_MOST_ATTEMPTS} training samples in a row could not be read, the last because {last}: is the disk still "
        "there? Restore it and resume the run"
    )
