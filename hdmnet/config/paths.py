"""Where the configs lie, and the folders that they name."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from hdmnet.config.values import RESOLVER
from hdmnet.runtime.errors import MissingFileError
from hdmnet.runtime.home import expand_home

CONF_VARIABLE = "HDMNET_CONF"
HYDRA_VERSION_BASE = "1.3"


def conf_dir() -> Path:
    """Folder of the configs: `hdmnet/conf` in an installed wheel, `conf` at the root of a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise MissingFileError(f"no conf/train.yaml in or beside {package}: install hdmnet again")


def user_conf_dirs() -> tuple[Path, ...]:
    """The user's own folders of configs, `HDMNET_CONF=DIR[:DIR]`, absolute: with groups as in conf/."""
    names = [name for name in os.environ.get(CONF_VARIABLE, "").split(os.pathsep) if name.strip()]
    folders = tuple(expand_home(name).absolute() for name in names)
    for folder in folders:
        if not folder.is_dir():
            raise MissingFileError(f"{CONF_VARIABLE} names {str(folder)!r}; expected a folder of configs")
    return folders


def conf_dirs() -> tuple[Path, ...]:
    """All folders of configs, in the order in which a file is looked for."""
    return (conf_dir(), *user_conf_dirs())


def find_option(group: str, option: str) -> Path | None:
    """File of a config group's option, e.g. of `find_option("dataset", "coco")`; None where there is none."""
    files = (folder / group / f"{option}.yaml" for folder in conf_dirs())
    return next((file for file in files if file.is_file()), None)


def option_of(group: str, node: Mapping[str, Any]) -> str | None:
    """The option of a config group that a stored node was made from, by its class and name; else by its class alone.

    Of several with that class, the one that the class' module is called by: `folder`, not `isic`, which is such a one.
    None where no file of the group has its `_target_`.
    """
    modules = str(node.get("_target_")).split(".")
    fits = [option for option, (target, _) in _options(group, conf_dirs()).items() if target == node.get("_target_")]
    named = [option for option in fits if _options(group, conf_dirs())[option][1] == node.get("name")]
    return next(iter([*named, *(option for option in fits if option in modules), *fits]), None)


@functools.cache
def _options(group: str, folders: tuple[Path, ...]) -> dict[str, tuple[str | None, str | None]]:
    """`_target_` and `name` of each option of a group."""
    found: dict[str, tuple[str | None, str | None]] = {}
    for file in (file for folder in folders for file in sorted((folder / group).glob("*.yaml"))):
        content = OmegaConf.load(file)
        node = OmegaConf.to_container(content, resolve=False)
        if isinstance(node, dict):
            found.setdefault(file.stem, (node.get("_target_"), node.get("name")))
    return found


def expand_home_in(cfg: DictConfig | ListConfig) -> None:
    """Replace `~` at the beginning of every value of a config, in place, also where an environment variable gave it.

    Raises:
        InputError: There is such a value, and the user has no home folder.
    """
    raw: Any = OmegaConf.to_container(cfg, resolve=False)
    for key, value in raw.items() if isinstance(raw, dict) else enumerate(raw or ()):
        if isinstance(value, dict | list):
            expand_home_in(cfg[key])
        elif isinstance(value, str) and value.startswith("~"):
            cfg[key] = str(expand_home(value))
        # What refers to another key alone follows that one; what a resolver gives stands nowhere else.
        elif isinstance(value, str) and RESOLVER.search(value):
            try:
                resolved = cfg[key]
            except OmegaConfBaseException:  # refused when the config is checked
                continue
            if isinstance(resolved, str) and resolved.startswith("~"):
                cfg[key] = str(expand_home(resolved))


def make_paths_absolute(cfg: DictConfig, run_dir: str | Path) -> None:
    """Fix the folders of `paths` in place: absolute from the current folder, `run_dir` filled in; `~` everywhere."""
    expand_home_in(cfg)
    with open_dict(cfg):
        for key in list(cfg.paths):
            if cfg.paths[key] is not None:
                cfg.paths[key] = str(Path(cfg.paths[key]).absolute())
        cfg.paths.run_dir = str(Path(run_dir).absolute())
