"""Configs that come out of files: a checkpoint or a `result.json` may have been made by somebody else.

Loading a checkpoint runs nothing (`checkpoints.read_checkpoint`), but the config in it says what to build. So it may
name only what this installation's own configs name or what lies in a module that it admits, and it may read nothing:
OmegaConf's resolvers would bring environment variables (`${oc.env:SECRET}`) into logs, or make a node out of text
(`${oc.create:...}`).
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hdmnet.config.checks import validate
from hdmnet.config.merge import NEVER_FROM_CHECKPOINT, merge_with_checkpoint
from hdmnet.config.paths import conf_dirs
from hdmnet.config.values import ABSENT, RESOLVER, look_up, to_plain
from hdmnet.runtime.errors import CheckpointError, ConfigError
from hdmnet.runtime.walk import walk_folders

_TARGET = re.compile(r"^[\s-]*_target_:\s*['\"]?([\w.]+)", re.MULTILINE)
EXTENSIONS_VARIABLE, EXTENSIONS_GROUP = "HDMNET_EXTENSIONS", "hdmnet.extensions"
_DEEPEST = 20  # ours have five levels
_OF_A_MACHINE = frozenset({"trainer", "logger", "callbacks", "paths"})
# What the network cannot be built without; the rest is missing in configs of older versions.
_NEEDED = ("dataset.image_size", "backbone._target_", "backbone.mean", "backbone.std", "model._target_", "shot")


def conf_targets() -> frozenset[str]:
    """All that the files in conf/, conf/local and the folders of `HDMNET_CONF` name as a `_target_`."""
    return _targets_below(conf_dirs())


@functools.cache
def _targets_below(folders: tuple[Path, ...]) -> frozenset[str]:
    return frozenset(
        target
        for folder in folders
        for parent, _, files in walk_folders(folder, [])
        for file in files
        if file.endswith(".yaml")
        for target in _TARGET.findall((parent / file).read_text(encoding="utf-8", errors="replace"))
    )


def is_extension(target: str) -> bool:
    """Whether a `_target_` lies in a module that this installation admits to configs out of files.

    Those are the modules, with all below them, that `HDMNET_EXTENSIONS=my_package,other.module` lists and that
    installed packages name by an entry point of the group `hdmnet.extensions`.
    """
    admitted = os.environ.get(EXTENSIONS_VARIABLE, "").split(",")
    admitted += [entry.value for entry in entry_points(group=EXTENSIONS_GROUP)]
    return any(f"{target}.".startswith(f"{module.strip()}.") for module in admitted if module.strip())


def evaluation_config(cfg: DictConfig, stored: Any, overrides: Sequence[str], origin: str) -> DictConfig:
    """The config to evaluate a checkpoint with (see `merge_with_checkpoint`), checked.

    What the command's own config `cfg` names may be built; `origin` is what to call the file in an error.

    Raises:
        CheckpointError: The stored config could do harm or is damaged, or a value is wrong.
    """
    own = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))
    check_stored(stored, origin, also={str(value) for key, value in _walk(own, "") if _is_target(key)})
    # e.g. a fold that the checkpoint's data set does not have
    return _checked(lambda: merge_with_checkpoint(cfg, stored, overrides), origin)


def stored_config(stored: Any, origin: str) -> DictConfig:
    """The config out of a checkpoint or result, to build its network or data again.

    Returns:
        What of it belongs to the network and the data, and the folders as plain text or null.

    Raises:
        CheckpointError: It could do harm or is damaged, or a value is wrong.
    """
    check_stored(stored, origin, left_out=_OF_A_MACHINE)
    kept = {key: value for key, value in stored.items() if key not in _OF_A_MACHINE}
    paths = stored.get("paths")
    folders: dict[str, str | None] = dict.fromkeys(("data_dir", "weights_dir", "output_dir", "cache_dir", "run_dir"))
    for key in folders if isinstance(paths, Mapping) else ():
        folder = paths.get(key)
        folders[key] = folder if isinstance(folder, str) and "${" not in folder else None
    cfg = _checked(lambda: OmegaConf.create({**kept, "paths": folders}), origin)
    plain = to_plain(cfg)
    for key in _NEEDED:
        if look_up(plain, key) in (ABSENT, None):
            raise CheckpointError(f"{origin}: its config has no {key}; expected a file that hdmnet wrote")
    return cfg


def check_stored(
    stored: Any,
    origin: str,
    *,
    also: Collection[str] = (),
    left_out: Collection[str] = NEVER_FROM_CHECKPOINT,
) -> None:
    """Refuse a config out of a file that could do harm, before anything is made of it.

    Args:
        stored: The config as it lies in the file.
        origin: What to call the file in an error.
        also: Targets to allow beside those of conf/.
        left_out: Top-level keys that are not taken from it, and so not looked at.

    Raises:
        CheckpointError: It is no mapping of plain values, names another target, or would resolve more than its own
            keys.
    """
    if not isinstance(stored, Mapping):
        raise CheckpointError(f"{origin}: its config is a {type(stored).__name__}; expected a file that hdmnet wrote")
    for key, value in _walk({name: stored[name] for name in stored if name not in left_out}, ""):
        if key.count(".") > _DEEPEST or not isinstance(value, str | int | float | None):
            raise CheckpointError(
                f"{origin}: its config holds no plain value at {key[:80]!r}; expected what hdmnet wrote"
            )
        known = not _is_target(key) or value in conf_targets() or value in also
        if not known and not (isinstance(value, str) and is_extension(value)):
            raise CheckpointError(
                f"{origin}: its config names {key}={value!r}, which no file in conf/ does: refused, nothing was run; "
                f"if you know it, name it on the command line or its module in {EXTENSIONS_VARIABLE}"
            )
        if isinstance(value, str) and RESOLVER.search(value):
            raise CheckpointError(
                f"{origin}: its config would resolve {key}={value[:80]!r}: refused, a file may only refer to its own "
                "keys; give this one on the command line"
            )


def _checked(make: Callable[[], DictConfig], origin: str) -> DictConfig:
    """Make a config; its interpolations can be read and resolved, its values are right."""
    try:
        cfg = make()
        to_plain(cfg)
    except (OmegaConfBaseException, RecursionError, TypeError, ValueError) as error:
        reason = " ".join(str(error).partition("\n")[0].split())
        raise CheckpointError(
            f"{origin}: its config is damaged ({reason}); expected a file that hdmnet wrote"
        ) from None
    try:
        validate(cfg)
    except ConfigError as error:  # the file's fault, not the command line's
        raise CheckpointError(str(error)) from None
    return cfg


def _is_target(key: str) -> bool:
    return key.rpartition(".")[2] == "_target_"


def _walk(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """All leaves below a node with their dotted keys; ends at what nests too deeply."""
    if key.count(".") > _DEEPEST:
        yield key, node
    elif isinstance(node, Mapping):
        for name, value in node.items():
            yield from _walk(value, f"{key}.{name}".lstrip("."))
            if not isinstance(name, str):
                yield f"{key}.{name}".lstrip("."), object()
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _walk(value, f"{key}.{index}".lstrip("."))
    else:
        yield key, node
