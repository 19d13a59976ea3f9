"""The jobs of a sweep as processes: started apart from it, watched, and ended with all that they have started.

A job in the sweep's own process could end it: Lightning kills the first rank of a DDP job when another one dies.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hdmnet.runtime import ranks

_TO_END_BY_ITSELF = 10.0  # seconds for the other ranks of a job that has finished
_TO_STOP = 5.0  # seconds from an interrupt to the kill


@dataclass
class Process:
    """One job to run."""

    command: Sequence[str]
    environment: dict[str, str | None] = field(
        default_factory=dict
    )  # changes to this process's; None removes a variable
    console: Path | None = None  # takes stdout and stderr; None: they go where this process writes
    seconds: float = 0.0  # duration, once it has ended
    code: int | None = None  # exit code, once it has ended; negative: the signal that killed it

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        if self.code is not None and self.code < 0:
            return f"killed by {signal.Signals(-self.code).name}"
        return f"exit code {self.code}"


def run(
    processes: Iterable[Process], slots: Sequence[Mapping[str, str | None]], ended: Callable[[Process], None]
) -> None:
    """Run jobs side by side, one a slot; whatever ends this function ends the jobs that still run.

    A slot is what its jobs find changed in the environment, e.g. the GPU. `processes` is asked for the next job when a
    slot is free; `ended` is called when nothing of a job is left.
    """
    waiting = iter(processes)
    free = list(range(len(slots)))[::-1]
    running: list[tuple[subprocess.Popen[bytes], Process, int, float]] = []
    try:
        while True:
            while free and (process := next(waiting, None)) is not None:
                slot = free.pop()
                running.append((_start(process, slots[slot]), process, slot, time.monotonic()))
            if not running:
                return
            time.sleep(0.1)
            for entry in [entry for entry in running if entry[0].poll() is not None]:
                handle, process, slot, begin = entry
                _end_group(handle.pid, _TO_END_BY_ITSELF if handle.returncode == 0 else 0.0)
                running.remove(entry)
                free.append(slot)
                process.code, process.seconds = handle.returncode, time.monotonic() - begin
                ended(process)
    finally:
        _stop([handle for handle, *_ in running])


def _start(process: Process, slot: Mapping[str, str | None]) -> subprocess.Popen[bytes]:
    changes: dict[str, str | None] = {**dict.fromkeys(ranks.VARIABLES), **slot, **process.environment}
    changes[ranks.PARENT_VARIABLE] = str(os.getpid())
    environment = {name: value for name, value in {**os.environ, **changes}.items() if value is not None}
    with contextlib.nullcontext() if process.console is None else process.console.open("wb") as console:
        # A session of its own: one signal reaches all that the job starts, and Ctrl-C reaches the sweep alone.
        return subprocess.Popen(
            process.command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=None if console is None else subprocess.STDOUT,
            start_new_session=True,
        )


def _stop(handles: Sequence[subprocess.Popen[bytes]]) -> None:
    """Interrupt jobs, as Ctrl-C would, and kill what is left of them."""
    for handle in handles:
        _signal_group(handle.pid, signal.SIGINT)
    end = time.monotonic() + _TO_STOP
    while time.monotonic() < end and any(handle.poll() is None for handle in handles):
        time.sleep(0.05)
    for handle in handles:
        _end_group(handle.pid, 0.0)
        handle.wait()


def _end_group(group: int, patience: float) -> None:
    """Kill what is left of a process group after some seconds."""
    end = time.monotonic() + patience
    while time.monotonic() < end and group_is_alive(group):
        time.sleep(0.05)
    _signal_group(group, signal.SIGKILL)


def _signal_group(group: int, number: signal.Signals) -> None:
    # Nobody is left; macOS says so of zombies by the second.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def group_is_alive(group: int) -> bool:
    """Whether a process of the group still runs. Zombies do not: in a container often nobody collects them."""
    if not Path("/proc/self/stat").is_file():
        try:
            os.killpg(group, 0)
        except (ProcessLookupError, PermissionError):
            return False
        return True
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):  # it has just ended
            continue
        if int(its_group) == group and state not in "ZX":
            return True
    return False
