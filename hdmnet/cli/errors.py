"""Says in one line what Hydra refuses, with the key or option that was probably meant."""

from __future__ import annotations

import re
import sys
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hdmnet.config.paths import HYDRA_VERSION_BASE, conf_dir, conf_dirs, find_option
from hdmnet.config.values import did_you_mean
from hdmnet.runtime.errors import one_line


def composition_message(error: HydraException | OmegaConfBaseException, config_name: str) -> str:
    """One line for a command line that Hydra refuses, with the key or option that was probably meant."""
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        options = [name for name in error.options if not name.startswith("_")]
        hint = did_you_mean(option, options)
        return f"{group}={option}: no such option{hint} ({group} can be {', '.join(options)})"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: expected key=value; quote special characters, e.g. \"ckpt='a=b.ckpt'\""
    first = str(error).partition("\n")[0]
    unknown = re.match(r"Could not (?:override|delete) '([^'=]+)", first.partition(": ")[2] or first)
    if unknown is not None:
        key = unknown[1]
        return f"{key}: no such key{did_you_mean(key, known_keys(config_name))} (--cfg job shows all keys)"
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
    """All dotted keys and group names that an entry point's command line knows, given the groups chosen on it."""
    chosen = [word for word in sys.argv[1:] if find_option(word.partition("=")[0], word.partition("=")[2]) is not None]
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(conf_dir()), version_base=HYDRA_VERSION_BASE):
        try:
            cfg = compose(config_name, overrides=chosen)
        except HydraException:
            cfg = compose(config_name)
    return _dotted_keys(OmegaConf.to_container(cfg, resolve=False))


def is_group(name: str) -> bool:
    """Whether it is the name of a config group, e.g. `backbone` or `hydra/launcher`."""
    return any((folder / name).is_dir() for folder in conf_dirs())


def _dotted_keys(node: Any, prefix: str = "") -> list[str]:
    keys = []
    for key, value in node.items() if isinstance(node, dict) else ():
        keys += [f"{prefix}{key}", *_dotted_keys(value, f"{prefix}{key}.")]
    return keys
