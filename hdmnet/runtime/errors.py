"""Which exceptions are the user's to mend, and the one line that says how.

Ours are raised by a `raise` statement of this package and already say what was found, what was expected and what to do.
Everything else that is not plainly about a file is taken for a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import linecache
import os
import re
import signal
from pathlib import Path

from omegaconf.errors import OmegaConfBaseException

_PACKAGE = str(Path(__file__).resolve().parents[1]) + os.sep


# A frame of a traceback in text form, as worker processes send it: file, then its source line.
_TEXT_FRAME = re.compile(r'^\s*File "(?P<file>.+)", line \d+, in .*\n\s*(?P<source>.*)$', re.MULTILINE)


_WORKER_ERROR = re.compile(r"^Caught (?P<name>\w+) in .+\nOriginal Traceback", re.MULTILINE)


# A DataLoader's process that is gone: torch raises it wherever the loop is when the system tells of the death.
_DEAD_WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? (?P<pids>[\d, ]+)\) "
    r"(?:is killed by signal: (?P<signal>[\w ]+)|exited unexpectedly(?: with exit code (?P<code>-?\d+))?)"
)


_WHY_DEAD = {
    "Killed": "most often because memory ran out: lower num_workers, batch_size or image size, or get more memory",
    "Bus error": "most often because shared memory ran out: enlarge /dev/shm (docker run --shm-size=8g), or lower "
    "num_workers",
    "Terminated": "by the system or somebody: run it again",
}


_CRASHED = "a library crashed on what it read: num_workers=0 shows where"


def wants_traceback() -> bool:
    """Whether `HDMNET_TRACEBACK=1` asks for tracebacks in place of one-line errors."""
    return os.environ.get("HDMNET_TRACEBACK") == "1"


def one_line(error: BaseException) -> str:
    """The message of an exception on one line, without OmegaConf's notes on where the key sits in which type."""
    if isinstance(error, OmegaConfBaseException):
        key = f"{error.full_key}: " if error.full_key else ""
        return key + " ".join((error.msg or str(error)).split("\n    full_key:")[0].split())
    return " ".join(str(error).split())


def user_message(error: Exception) -> str | None:
    """One line for an error that the user can mend; None for a bug.

    Args:
        error: What the job raised.

    Returns:
        The message of our own ValueErrors and OSErrors, also out of worker processes; of the operating system's
        refusals that name a file, and of a full disk; of Lightning's refusals of a setting; of processes of the job
        that are gone. None for everything else.
    """
    if type(error).__name__ == "MisconfigurationException":
        return one_line(error)
    if isinstance(error, OSError) and (error.filename is not None or error.errno == errno.ENOSPC):
        return one_line(error)
    if isinstance(error, RuntimeError):
        return _lost_process(error)
    if not isinstance(error, ValueError | OSError):
        return None
    worker = _WORKER_ERROR.match(str(error))
    if worker is not None:  # a DataLoader's worker: the message is the whole traceback
        name = worker["name"]
        message = str(error).rpartition(f"\n{name}: ")[2]
        return " ".join(message.split()) if _raised_here_in_text(str(error)) else None
    remote = getattr(error.__cause__, "tb", None)  # a process pool's worker: the traceback is the cause
    raised_here = _raised_here_in_text(remote) if isinstance(remote, str) else _raised_here(error)
    return one_line(error) if raised_here else None


def _lost_process(error: BaseException | None) -> str | None:
    """The line for a worker or rank that has ended while it was needed; None where the error tells of no such thing."""
    pids, name, code = "", None, None
    while error is not None:
        if (found := _DEAD_WORKER.search(str(error))) is not None:  # torch may look twice, and the cause know more
            pids = pids or found["pids"]
            name, code = name or found["signal"], code or found["code"] or _exit_code(error)
        elif not pids and "gloo" in str(error) and "onnection" in str(error):
            return "the connection to another process of this job broke: it has ended, and its own message says why"
        error = error.__cause__ or error.__context__
    if not pids:
        return None
    if name is None and code is not None and int(code) < 0:
        name = signal.strsignal(-int(code))
    if name is not None:
        how, why = f"was killed by signal: {name.strip()}", _WHY_DEAD.get(name.strip(), _CRASHED)
    elif code is not None:
        how, why = f"ended unexpectedly with exit code {code}", _CRASHED
    else:
        how, why = "ended unexpectedly", f"{_WHY_DEAD['Killed']}; or {_CRASHED}"
    return f"data loader worker (process {pids}) {how}, {why}"


def _exit_code(error: BaseException) -> int | None:
    """Exit code of the first worker that torch has found dead: its message leaves it out, but not its frame."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    workers = [] if trace is None else trace.tb_frame.f_locals.get("failed_workers") or []
    return getattr(workers[0], "exitcode", None) if workers else None


def _raised_here(error: Exception) -> bool:
    """Whether a `raise` statement of this package raised it; not a call of ours that a library refused."""
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    file = trace.tb_frame.f_code.co_filename
    return _is_our_raise(file, linecache.getline(file, trace.tb_lineno))


def _raised_here_in_text(trace: str) -> bool:
    frames = list(_TEXT_FRAME.finditer(trace))
    return bool(frames) and _is_our_raise(frames[-1]["file"], frames[-1]["source"])


def _is_our_raise(file: str, source: str) -> bool:
    return os.path.realpath(file).startswith(_PACKAGE) and source.lstrip().startswith("raise ")
