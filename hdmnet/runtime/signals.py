"""The signals that ask a run to end: a training asks for them between two steps, writes a checkpoint and ends then.

Imports nothing heavy.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: not finished, the same command may be run again
INTERRUPTED = 130  # what shells give for Ctrl-C

# SLURM sends the last two some time before it ends a job, by `--signal`; submitit's is SIGUSR2.
_ALWAYS = (signal.SIGTERM, signal.SIGINT)
_UNDER_SLURM = (signal.SIGUSR1, signal.SIGUSR2)


class Stopped(BaseException):
    """A signal has ended the run; not an error."""

    def __init__(self, number: int, saved: str | None = None) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.saved = saved  # what can be gone on from, in words; None: nothing was written because of the signal

    @property
    def exit_code(self) -> int:
        """Exit code of the process."""
        return INTERRUPTED if self.number == signal.SIGINT else EXIT_CODE

    @property
    def wants_requeue(self) -> bool:
        """Whether it was SLURM's warning that the job's time is over; submitit's jobs are submitit's to put back."""
        return self.number in _UNDER_SLURM and "SUBMITIT_EXECUTOR" not in os.environ


class _State:
    """Of this process."""

    handling_signals = False  # whether signals come to `_on_signal`
    polled = False  # whether somebody asks `stop_requested` again and again
    number: int | None = None
    owner = os.getpid()


@contextmanager
def handling_signals() -> Iterator[None]:
    """Turn signals that would end the process into `Stopped`, or into an answer of `stop_requested` inside `polling`.

    Outside the main thread nothing changes: only that one can be told of signals. Worker processes that are left at the
    end are killed: they would outlive the signal by which Python ends them, and Python would wait for them for ever.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = _ALWAYS + (_UNDER_SLURM if "SLURM_JOB_ID" in os.environ else ())
    before = {number: signal.getsignal(number) for number in numbers}
    others = {child.pid for child in multiprocessing.active_children()}
    _State.handling_signals, _State.polled, _State.number, _State.owner = True, False, None, os.getpid()
    for number in numbers:
        signal.signal(number, _on_signal)
    try:
        yield
    finally:
        _State.handling_signals, _State.number = False, None
        for number, handler in before.items():
            signal.signal(number, handler)
        for child in multiprocessing.active_children():
            if child.daemon and child.pid not in others:
                child.kill()
                child.join()


def _on_signal(number: int, _: FrameType | None) -> None:
    if os.getpid() != _State.owner:  # a process that was forked: its parent decides
        return
    # Nobody would ask, or somebody at a keyboard has lost patience; machines may well say the same thing twice.
    if not _State.polled or _State.number == number == signal.SIGINT:
        raise Stopped(number)
    if _State.number is not None:
        return
    _State.number = number
    # Not `print`: it raises where the signal has interrupted another one.
    os.write(2, f"{signal.Signals(number).name}: the run will end after this step\n".encode())


def are_handled() -> bool:
    """Whether this is inside `handling_signals`."""
    return _State.handling_signals


@contextmanager
def polling() -> Iterator[None]:
    """A section that asks `stop_requested` every few seconds at least; the first signal does not interrupt it.

    Raises:
        Stopped: The section has ended without an answer to the signal.
    """
    _State.polled = True
    try:
        yield
    finally:
        _State.polled = False
    if _State.number is not None:
        raise Stopped(_State.number)


def stop_requested() -> int | None:
    """The signal that has asked the run to end; None while there was none."""
    return _State.number


def outlive_one_signal() -> None:
    """Make a worker process that was forked inside `handling_signals` ignore Ctrl-C and its first SIGTERM.

    A terminal, SLURM and `timeout` send them to all processes of a job at once. Without its workers a training would
    break off before it can write its checkpoint; `handling_signals` ends them.
    """
    if not _State.handling_signals:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    seen: list[int] = []

    def once(number: int, _: Any) -> None:
        if seen:
            os._exit(0)
        seen.append(number)

    signal.signal(signal.SIGTERM, once)
