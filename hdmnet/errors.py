"""Which exceptions are the user's to mend, and the one line that says how.

Ours are raised by a `raise` statement of this package and already say what was found, what was expected and what to do.
Everything else that is not plainly about a file is taken for a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import linecache
import os
import re
import sys
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from hdmnet import config

_PACKAGE = str(Path(__file__).resolve().parent) + os.sep
# A frame of a traceback in text form, as worker processes send it: file, then its source line.
_TEXT_FRAME = re.compile(r'^\s*File "(?P<file>.+)", line \d+, in .*\n\s*(?P<source>.*)$', re.MULTILINE)
_WORKER_ERROR = re.compile(r"^Caught (?P<name>\w+) in .+\nOriginal Traceback", re.MULTILINE)


def wants_traceback() -> bool:
    """Whether `HDMNET_TRACEBACK=1` asks for tracebacks in place of one-line errors."""
    return os.environ.get("HDMNET_TRACEBACK") == "1"


def one_line(error: BaseException) -> str:
    """The message of an exception on one line, without OmegaConf's notes on where the key sits in which type."""
    if isinstance(error, OmegaConfBaseException):
        key = f"{error.full_key}: " if error.full_key else ""
        return key + " ".join((error.msg or str(error)).split("\n    full_key:")[0].split())
    return " ".join(str(error).split())


# ------------------------------------------------------------------------------------------------ errors of the job


def user_message(error: Exception) -> str | None:
    """One line for an error that the user can mend; None for a bug.

    Args:
        error: What the job raised.

    Returns:
        The message of our own ValueErrors and OSErrors, also out of worker processes; of the operating system's
        refusals that name a file, and of a full disk; of Lightning's refusals of a setting. None for everything else.
    """
    if type(error).__name__ == "MisconfigurationException":
        return one_line(error)
    if isinstance(error, OSError) and (error.filename is not None or error.errno == errno.ENOSPC):
        return one_line(error)
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


# -------------------------------------------------------------------------------------- errors of the command line


def composition_message(error: HydraException | OmegaConfBaseException, config_name: str) -> str:
    """One line for a command line that Hydra refuses, with the key or option that was probably meant.

    Args:
        error: What Hydra raised before the job began.
        config_name: The door's config.
    """
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        options = [name for name in error.options if not name.startswith("_")]
        hint = config.did_you_mean(option, options)
        return f"{group}={option}: no such option{hint} ({group} can be {', '.join(options)})"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: expected key=value; quote special characters, e.g. \"ckpt='a=b.ckpt'\""
    first = str(error).partition("\n")[0]
    unknown = re.match(r"Could not (?:override|delete) '([^'=]+)", first.partition(": ")[2] or first)
    if unknown is not None:
        key = unknown[1]
        return f"{key}: no such key{config.did_you_mean(key, known_keys(config_name))} (--cfg job shows all keys)"
    ambiguous = re.match(r"Ambiguous value for argument '(.+)'", first)
    if ambiguous is not None:
        key, _, values = ambiguous[1].partition("=")
        return f"{ambiguous[1]}: several values; add -m to run one after another, or write {key}=[{values}] for a list"
    merging = re.match(r"Error merging override (.+)", first)
    if merging is not None and isinstance(error.__cause__, OmegaConfBaseException):
        reason = one_line(error.__cause__).removeprefix(f"{error.__cause__.full_key}: ")
        return f"{merging[1]}: {reason}"
    return one_line(error)


def known_keys(config_name: str) -> list[str]:
    """All dotted keys and group names that a door's command line knows, given the groups chosen on it."""
    conf = config.conf_dir()
    chosen = []
    for word in sys.argv[1:]:
        group, _, option = word.partition("=")
        if (conf / group / f"{option}.yaml").is_file():
            chosen.append(word)
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(conf), version_base="1.3"):
        try:
            cfg = compose(config_name, overrides=chosen)
        except HydraException:
            cfg = compose(config_name)
    return _dotted_keys(cfg)


def _dotted_keys(cfg: DictConfig, prefix: str = "") -> list[str]:
    keys = []
    for key in map(str, cfg):
        dotted = f"{prefix}{key}"
        keys.append(dotted)
        if isinstance(cfg._get_node(key), DictConfig) and cfg._get_node(key)._value() is not None:  # type: ignore[union-attr]
            keys.extend(_dotted_keys(cfg[key], f"{dotted}."))
    return keys
