"""What Hydra refuses, in one line with the key or option that was probably meant."""

from __future__ import annotations

import re
import sys

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from hdmnet.config.paths import conf_dir
from hdmnet.config.values import did_you_mean
from hdmnet.runtime.errors import one_line


def raised_by_hydra(error: Exception) -> bool:
    """Whether Hydra or OmegaConf itself raised it: their parsers trip over words of the wrong kind."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))
    return name.partition(".")[0] in ("hydra", "omegaconf", "antlr4")


def composition_message(error: HydraException | OmegaConfBaseException, config_name: str) -> str:
    """One line for a command line that Hydra refuses, with the key or option that was probably meant.

    Args:
        error: What Hydra raised before the job began.
        config_name: The door's config.
    """
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
    """All dotted keys and group names that a door's command line knows, given the groups chosen on it."""
    conf = conf_dir()
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
