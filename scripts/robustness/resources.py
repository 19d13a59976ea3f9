"""What a run takes of the machine over time: memory, open files, threads and processes of all that belongs to it."""

from __future__ import annotations

import csv
import logging
import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

PROC = Path("/proc")
FILE = "resources.csv"
COLUMNS = ("seconds", "phase", "step", "memory_mb", "open_files", "threads", "processes")
_STATUS_MEMORY, _STATUS_THREADS = "VmRSS", "Threads"

log = logging.getLogger(__name__)


class ResourceLog(Callback):
    """Write `resources.csv` into a run's folder: a line every so many steps, and after each validation and test.

    Columns: seconds since the start; phase (train, validation, test); optimiser step; memory in 10^6 bytes, resident,
    shared pages counted once for each process; open files; threads; processes. The last four of this process and all
    that it has started, so workers too. In a DDP run the first process writes, of its own tree. Needs Linux.

        +callbacks.resources._target_=scripts.robustness.resources.ResourceLog
        '+callbacks.resources.directory=${paths.run_dir}'

    Args:
        directory: The folder.
        every_n_steps: Steps between two lines.
    """

    def __init__(self, directory: str | Path, every_n_steps: int = 50) -> None:
        self.path = Path(directory) / FILE
        self.every_n_steps = every_n_steps
        self._begin = time.monotonic()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say where nothing will be written."""
        if not (PROC / "self" / "status").is_file():
            log.warning("%s is not written: this system has no %s", FILE, PROC)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a line where it is due."""
        if trainer.global_step % self.every_n_steps == 0:
            self._write(trainer, "train")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a line."""
        self._write(trainer, "validation")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a line."""
        self._write(trainer, "test")

    def _write(self, trainer: Trainer, phase: str) -> None:
        if not trainer.is_global_zero or not (PROC / "self" / "status").is_file():
            return
        taken = measure(os.getpid())
        row = [
            f"{time.monotonic() - self._begin:.1f}",
            phase,
            trainer.global_step,
            *(taken[name] for name in COLUMNS[3:]),
        ]
        is_new = not self.path.is_file()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, row] if is_new else [row])


def measure(root: int) -> dict[str, float]:
    """What a process and its descendants take now.

    Args:
        root: The process.

    Returns:
        `memory_mb` (10^6 bytes), `open_files`, `threads`, `processes`; one that ends meanwhile is left out.
    """
    taken = dict.fromkeys(COLUMNS[3:], 0.0)
    for process in family(root):
        folder = PROC / str(process)
        try:
            lines = (line.partition(":") for line in (folder / "status").read_text().splitlines())
            status = {name: value.split() for name, _, value in lines}
            open_files = len(os.listdir(folder / "fd"))
        except OSError:
            continue
        memory = status.get(_STATUS_MEMORY)
        if memory is None:  # a zombie
            continue
        taken["memory_mb"] += int(memory[0]) * 1024 / 1e6
        taken["threads"] += int(status[_STATUS_THREADS][0])
        taken["open_files"] += open_files
        taken["processes"] += 1
    return {name: round(value, 1) for name, value in taken.items()}


def family(root: int) -> list[int]:
    """A process and its descendants, zombies too, as process ids."""
    children: dict[int, list[int]] = {}
    for stat in PROC.glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):  # it has just ended
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found, todo = [], [root]
    while todo:
        process = todo.pop()
        found.append(process)
        todo.extend(children.get(process, ()))
    return found
