"""The errors that a user can mend, and the one line that an entry point prints for them.

A `UserError` says what was found, what was expected and what to do. Every other exception that is not plainly about a
file or a lost process is a bug and keeps its traceback. The subclasses can be caught as the built-in that they extend.
"""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from omegaconf.errors import OmegaConfBaseException


class UserError(Exception):
    """Something that the user can mend; takes the message as its only argument, so that processes can hand it on.

    Attributes:
        exit_code: Of the command that ends with it: 1 = a file, a folder or the data are wrong, 2 = the command line.
    """

    exit_code = 1


class ConfigError(UserError, ValueError):
    """A key, value or group of a config, or a word of the command line."""

    exit_code = 2


class InputError(UserError, ValueError):
    """What a command was given does not fit together."""


class DatasetError(UserError, ValueError):
    """Pictures, masks, annotations, lists and classes."""


class CheckpointError(UserError, ValueError):
    """Checkpoints, weights and the configs in them."""


class FileError(UserError, OSError):
    """A file that cannot be fetched, read or written."""


class MissingFileError(FileError, FileNotFoundError):
    """A file or folder that is not there."""


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

    The line is that of a `UserError`, also out of worker processes; of the operating system's refusals that name a
    file, and of a full disk; of Lightning's refusals of a setting; of processes of the job that are gone.
    """
    if isinstance(error, UserError):
        return _without_workers_traceback(error)
    if type(error).__name__ == "MisconfigurationException":  # by name: importing Lightning takes seconds
        return one_line(error)
    if isinstance(error, OSError) and (error.filename is not None or error.errno == errno.ENOSPC):
        return one_line(error)
    return _lost_process(error) if isinstance(error, RuntimeError) else None


def exit_code(error: Exception) -> int:
    """Exit code of a command that ends with an error for which there is a `user_message`."""
    return error.exit_code if isinstance(error, UserError) else 1


@contextmanager
def refusals_as(kind: type[UserError]) -> Iterator[None]:
    """Turn the refusals of code that knows no `UserError` (hdmnet/models, other packages) into one.

    A ValueError becomes one of the `kind`, an OSError that names no file a `FileError`.
    """
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise kind(one_line(error)) from error
    except OSError as error:
        if error.filename is not None:
            raise
        missing = isinstance(error, FileNotFoundError)
        raise (MissingFileError if missing else FileError)(one_line(error)) from error


def _without_workers_traceback(error: UserError) -> str:
    """A DataLoader's worker hands on an error of the same class whose message is the worker's whole traceback."""
    message = str(error)
    if "\nOriginal Traceback" in message:
        message = message.rpartition(f"\n{type(error).__module__}.{type(error).__qualname__}: ")[2]
    return " ".join(message.split())


def _lost_process(error: BaseException | None) -> str | None:
    """The line for a worker or rank that has ended while it was needed; None where the error tells of no such thing."""
    pids, name, code = "", None, None
    while error is not None:
        if (found := _DEAD_WORKER.search(str(error))) is not None:  # torch may look twice, and the cause know more
            pids = pids or found["pids"]
            name, code = name or found["signal"], code or found["code"]
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
