"""From a node with `_target_` to an object."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from omegaconf import OmegaConf

# What a config may build. It can come out of a checkpoint that somebody else made: naming os.system must not help.
ALLOWED_TARGETS = ("hdmnet.", "lightning.pytorch.", "torch.nn.", "torch.optim.", "torchvision.")


def instantiate(cfg: Any, **kwargs: Any) -> Any:
    """Build the object that a config describes by `_target_`; the package's only way from config to object.

    Not Hydra's: that one takes dataclasses among the arguments for configs, wraps every error in three lines, and
    builds whatever is named.

    Args:
        cfg: A node with `_target_` (and `_partial_: true` for a `functools.partial`). Nodes with `_target_` below it
            are built first; other containers become plain dicts and lists.
        **kwargs: More arguments by name, passed as they are; they win over the node's.

    Returns:
        What the target returns; None for None.

    Raises:
        ValueError: No or a forbidden target, one that cannot be imported, or arguments that do not fit.
    """
    key = ""
    if OmegaConf.is_config(cfg):
        key = str(cfg._get_full_key(None) or "")
        cfg = OmegaConf.to_container(cfg, resolve=True)
    if cfg is None:
        return None
    if not isinstance(cfg, Mapping) or "_target_" not in cfg:
        raise ValueError(f"{key or 'config'} cannot be built: it has no _target_")
    return _build({**cfg, **{name: _Ready(value) for name, value in kwargs.items()}}, key)


def instantiate_all(group: Mapping[str, Any]) -> list[Any]:
    """Build every entry of a config group that has a `_target_` (callbacks, loggers); null entries are left out."""
    return [instantiate(node) for node in group.values() if node is not None and "_target_" in node]


@dataclass(frozen=True)
class _Ready:
    """Marks an argument that was built already and is passed on untouched."""

    value: Any


def _build(node: Any, key: str) -> Any:
    if isinstance(node, _Ready):
        return node.value
    if isinstance(node, list):
        return [_build(item, key) for item in node]
    if not isinstance(node, Mapping):
        return node
    arguments = {
        name: _build(value, f"{key}.{name}".lstrip("."))
        for name, value in node.items()
        if name not in ("_target_", "_partial_")
    }
    if "_target_" not in node:
        return arguments
    target = str(node["_target_"])
    function = _locate(target, key)
    if node.get("_partial_", False):
        return functools.partial(function, **arguments)
    if target.startswith("hdmnet."):
        return _call(function, arguments, target, key)
    try:
        return function(**arguments)
    except (
        TypeError,
        ValueError,
        AttributeError,
        KeyError,
        OverflowError,
    ) as error:  # a foreign constructor's refusal of a user's value: say which key it was
        raise ValueError(f"{key or target}: {' '.join(str(error).split())}") from error


def _call(function: Callable[..., Any], arguments: dict[str, Any], target: str, key: str) -> Any:
    """Call one of ours: its own ValueErrors say what is wrong; only arguments that do not fit are put in words here."""
    import inspect

    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise ValueError(f"{key or target}: {target} does not take these keys: {error}") from None
    return function(**arguments)


def _locate(target: str, key: str) -> Callable[..., Any]:
    """Import what a `_target_` names.

    Raises:
        ValueError: It is outside `ALLOWED_TARGETS` (also by way of a module that an allowed one imports), or not there.
    """
    refusal = f"{key or 'config'}: _target_ {target!r} is not allowed, expected one under {', '.join(ALLOWED_TARGETS)}"
    if not target.startswith(ALLOWED_TARGETS):
        raise ValueError(refusal)
    parts = target.split(".")
    found: Any = None
    for cut in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:cut])
        try:
            found = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is there and lacks something itself: not the config's fault
            continue
        break
    for part in parts[cut:] if found is not None else ():
        found = getattr(found, part, None)
    if found is None or not callable(found):
        raise ValueError(f"{key or 'config'}: _target_ {target!r} does not exist")
    # `hdmnet.config.values.os.system` starts with an allowed name but is defined elsewhere.
    if not f"{getattr(found, '__module__', None)}.".startswith(ALLOWED_TARGETS):
        raise ValueError(refusal)
    return cast(Callable[..., Any], found)
