"""A new run folder for each command, also for two that start in the same second.

Imports nothing heavy.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from hdmnet.cli.home import expand_home_of_command

#: Folders that were not there before this command, which Hydra makes or has made for it.
new_folders: set[Path] = set()

_REFERENCE = re.compile(r"\$\{([\w.]+)\}")


class FreshFolder(Callback):
    """Hydra's callback (`hydra.callbacks` of the entry points): before anything is written, a dated folder is made.

    Before that `~` is replaced in the whole config. Where another command has the folder already, it becomes `…_2`,
    `…_3`. A folder without a date is what somebody asked for; `own_folder` keeps two runs out of it.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Of one run."""
        expand_home_of_command(config)
        _make_fresh(config, "hydra.run.dir")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Of the jobs of a multirun."""
        expand_home_of_command(config)
        _make_fresh(config, "hydra.sweep.dir")


def _make_fresh(cfg: DictConfig, key: str) -> None:
    """Make the folder that a key names, if it has a date, and let the key name what was made."""
    parent, _, leaf = key.rpartition(".")
    text = OmegaConf.to_container(OmegaConf.select(cfg, parent) if parent else cfg, resolve=False)[leaf]  # type: ignore[index, call-overload]
    if reference := _REFERENCE.fullmatch(str(text)):  # as predict's `${output}`
        _make_fresh(cfg, reference[1])
        return
    folder = Path(str(OmegaConf.select(cfg, key)))
    if "${now:" in str(text):
        folder = make_new(folder)
        new_folders.add(folder.absolute())
        with read_write(cfg), read_write(cfg.hydra), open_dict(cfg):
            OmegaConf.update(cfg, key, str(folder))
    elif not folder.exists():
        new_folders.add(folder.absolute())


def make_new(folder: Path) -> Path:
    """Make a folder that was not there: this one, or with `_2`, `_3` … behind its name; returns it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        fresh = folder if number == 1 else folder.with_name(f"{folder.name}_{number}")
        try:
            fresh.mkdir()  # of several processes one succeeds
        except FileExistsError:
            continue
        return fresh
    raise AssertionError
