"""From a node with `_target_` to an object: Hydra's `instantiate` behind one guard."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hydra import utils
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from hdmnet.runtime.errors import ConfigError, UserError, one_line, refusals_as
from hdmnet.runtime.private_api import full_key

# Libraries whose constructors refuse a user's value by more kinds of exception than ValueError.
_LIBRARIES = frozenset({"albumentations", "lightning", "timm", "torch", "torchvision"})


def instantiate(cfg: Any, leave_out: Collection[str] = (), /, **kwargs: Any) -> Any:
    """Build the object that a config describes by `_target_`; the package's only way from config to object.

    Any class that can be imported is built: what a user names on the command line or in a file of his own is his. A
    config out of somebody else's file is to be checked first (`hdmnet.config.stored`).

    Args:
        cfg: A node with `_target_` (and `_partial_: true` for a `functools.partial`). Nodes with `_target_` below it
            are built first; other containers become plain dicts and lists. None gives None.
        leave_out: Keys of the node that are no arguments of its target.
        **kwargs: More arguments by name, passed as they are; they win over the node's.

    Raises:
        ConfigError: No target, one that cannot be imported, or arguments that do not fit or are refused.
        FileError: The constructor misses a file.
    """
    key = ""
    if OmegaConf.is_config(cfg):
        key = full_key(cfg)
        cfg = OmegaConf.to_container(cfg, resolve=True)
    if cfg is None:
        return None
    if not isinstance(cfg, Mapping) or "_target_" not in cfg:
        raise ConfigError(f"{key or 'config'} cannot be built: it has no _target_")
    target = str(cfg["_target_"])
    node = {name: value for name, value in cfg.items() if name not in {*leave_out, *kwargs}} | {"_partial_": True}
    with _one_line_refusals(key, target):
        # Hydra builds what lies below. Ready-made arguments join afterwards: it would take dataclasses and modules for
        # configs, and copy them.
        built = utils.instantiate(node, _convert_="all")
        made = functools.partial(built.func, *built.args, **{**built.keywords, **kwargs})
        if cfg.get("_partial_", False):
            return made
        _check_arguments(made, target)
        return made()


def instantiate_all(group: Mapping[str, Any]) -> list[Any]:
    """Build every entry of a config group that has a `_target_` (callbacks, loggers); null entries are left out."""
    return [instantiate(node) for node in group.values() if node is not None and "_target_" in node]


def _check_arguments(made: functools.partial[Any], target: str) -> None:
    """Refuse arguments that the target does not take: a TypeError from inside it would be a bug."""
    try:
        signature = inspect.signature(made.func)
    except (TypeError, ValueError):  # written in C
        return
    try:
        signature.bind(*made.args, **made.keywords)
    except TypeError as error:
        raise ValueError(f"{target} does not take these keys: {error}") from None


@contextmanager
def _one_line_refusals(key: str, target: str) -> Iterator[None]:
    """Put the key in front of what a constructor refuses."""
    try:
        with refusals_as(_RefusedError):
            try:
                yield
            except InstantiationException as error:  # Hydra's, around what was raised below the node
                message = str(error)
                below, named = re.search(r"full_key: (\S+)", message), re.search(r"'(.+?)'", message)
                key = ".".join(filter(None, [key, below[1] if below else ""]))
                target = named[1] if named else target
                if message.startswith("Error in call") and error.__cause__ is not None:
                    raise error.__cause__ from None
                if error.__cause__ is not None:
                    message = f"_target_ {target!r} does not exist ({one_line(_root(error))})"
                raise _RefusedError(" ".join(message.split())) from error
    except _RefusedError as error:
        raise ConfigError(_with_key(str(error), key, target)) from error.__cause__
    except (TypeError, AttributeError, KeyError, OverflowError) as error:
        if target.partition(".")[0] not in _LIBRARIES:
            raise
        raise ConfigError(f"{key or target}: {one_line(error)}") from error


class _RefusedError(UserError, ValueError):
    """Still without its key."""


def _with_key(message: str, key: str, target: str) -> str:
    """`num_stages=5: …` becomes `model.num_stages=5: …`, what begins otherwise `model: …`."""
    if not re.match(r"[a-z][\w.]*=", message):
        return f"{key or target}: {message}"
    return message if not key or message.startswith(f"{key}.") else f"{key}.{message}"


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
