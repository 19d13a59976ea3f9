"""Runs that are ended from outside at chosen moments, and the comparison of what they leave.

Moments are counted in seconds of processor time of all processes of a run, so that they fall alike on a busy machine.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
INTERRUPTED = 75  # hdmnet.runtime.signals.EXIT_CODE

# Half a minute of the embedded data: both stages, six epochs, many checkpoints.
SETTINGS = (
    *("trainer=cpu", "dataset.image_size=65", "dataset.num_train=60", "dataset.num_val=30", "dataset.controls=false"),
    *("dataset.episodes_per_epoch=16", "dataset.num_val_episodes=6", "dataset.num_test_episodes=8"),
    *("dataset.num_test_seeds=2", "optim.max_steps=48", "optim.batch_size=2", "optim.lr=1e-3", "optim.warmup_steps=2"),
    *("optim.base.max_steps=20", "optim.base.batch_size=4", "optim.base.num_val_samples=4"),
    *("optim.base.warmup_steps=2", "callbacks.pictures.num_episodes=1", "trainer.enable_progress_bar=false"),
    *("trainer.log_every_n_steps=1", "callbacks.checkpoint.every_n_minutes=0.01"),
)
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Session:
    """One process of a run, from its start to its end.

    Attributes:
        code: Exit code; negative: the signal that killed it.
        seconds: Duration.
        cpu_seconds: Processor time of all its processes, when it was last looked at.
        to_end: Seconds from the signal to the end of the first process; None without a signal.
        log: File with what it has printed.
    """

    code: int
    seconds: float
    cpu_seconds: float
    to_end: float | None
    log: Path

    @property
    def text(self) -> str:
        """What it has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")


@dataclass
class Runner:
    """Starts one command again and again in a folder of its own.

    Attributes:
        output: `paths.output_dir`.
        words: Of the command line.
        environment: Changes.
        prefix: A command that runs the command.
    """

    output: Path
    words: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    prefix: Sequence[str] = ()
    sessions: list[Session] = field(default_factory=list)

    def run(self, *words: str, until: Callable[[float, int], Any] | None = None, timeout: float = 1800) -> Session:
        """Run the command to its end.

        Args:
            words: More of the command line.
            until: Called every 2 ms with processor seconds, looked at five times a second, and process id; true: it has
                sent a signal.
            timeout: Seconds.

        Raises:
            TimeoutError: It has not ended; it is killed.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        log = self.output / f"session{len(self.sessions):02d}.log"
        command = [*self.prefix, sys.executable, "-m", "hdmnet.train", *self.words, *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **self.environment}
        begin = time.monotonic()
        signalled: float | None = None
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*command, f"paths.output_dir={self.output}"],
                cwd=self.output, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        spent, looked = 0.0, 0.0
        try:
            while process.poll() is None:
                if time.monotonic() - looked > 0.2:
                    spent, looked = max(spent, cpu_seconds(process.pid)), time.monotonic()
                if signalled is None and until is not None and until(spent, process.pid):
                    signalled = time.monotonic()
                if time.monotonic() - begin > timeout:
                    raise TimeoutError(f"{' '.join(command)} has not ended after {timeout:.0f} s, see {log}")
                time.sleep(0.002)
            ended = time.monotonic()
            _wait_for_group(process.pid, 20)
        finally:
            _kill_group(process.pid)
            process.wait()
        session = Session(
            process.returncode, ended - begin, spent, None if signalled is None else ended - signalled, log
        )
        self.sessions.append(session)
        return session

    @property
    def folder(self) -> Path:
        """The run's folder, of which there must be one."""
        folders = sorted(file.parents[1] for file in self.output.glob("shapes/*/*/.hydra/run.json"))
        if len(folders) != 1:
            raise RuntimeError(f"{len(folders)} run folders in {self.output}, expected 1: a resume has begun a new run")
        return folders[0]

    @property
    def finished(self) -> bool:
        """Whether the run has left its result."""
        return any(self.output.glob("shapes/*/*/result.json"))


def cpu_seconds(group: int) -> float:
    """Processor time of a process group's processes, ended children of theirs included."""
    ticks = 0
    for process in _processes(group):
        ticks += sum(int(value) for value in process[11:15])
    return ticks / _TICKS


def _processes(group: int) -> list[list[str]]:
    """The fields of `/proc/PID/stat` from the state on, of the living processes of a group."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] not in "ZX":
                found.append(fields)
    return found


def _wait_for_group(group: int, seconds: float) -> None:
    """Wait until nothing of a run is left.

    Raises:
        RuntimeError: Something is.
    """
    end = time.monotonic() + seconds
    while _processes(group):
        if time.monotonic() > end:
            raise RuntimeError(f"{len(_processes(group))} processes are left {seconds:.0f} s after the first has ended")
        time.sleep(0.02)


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


# ------------------------------------------------------------------------------------------------------ comparison


def load(path: Path) -> dict[str, Any]:
    """A checkpoint's content."""
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content


def differences(one: Path, other: Path) -> list[str]:
    """What two finished runs do not have in common, bit by bit.

    Compared are the weights and optimiser states of `last.ckpt`, the weights of `best.ckpt`, the random states, the
    figures of the result, and `metrics.csv` without the columns that measure time.

    Args:
        one: A run's folder.
        other: Another's.
    """
    found = []
    for name in ("last.ckpt", "best.ckpt"):
        a, b = load(one / "checkpoints" / name), load(other / "checkpoints" / name)
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "hdmnet_random", "hdmnet_position"):
            if not _equal(a[key], b[key]):
                found.append(f"{name}: {key}")
    results = [json.loads((folder / "result.json").read_text(encoding="utf-8")) for folder in (one, other)]
    for key in ("test", "test_no_ensemble", "val_miou", "manifest_sha256"):
        if results[0][key] != results[1][key]:
            found.append(f"result.json: {key}")
    if metric_rows(one) != metric_rows(other):
        found.append("metrics.csv")
    return found


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)


def metric_rows(folder: Path) -> list[dict[str, str]]:
    """The rows of `metrics.csv` without the columns that measure time."""
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if not key.startswith("throughput/")} for row in rows]
