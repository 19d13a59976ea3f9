"""The config to evaluate a checkpoint with."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from hdmnet.config.values import ABSENT, look_up

# Belongs to the machine or to the command at hand, never to the checkpoint that is evaluated.
NEVER_FROM_CHECKPOINT = frozenset(
    {"paths", "trainer", "logger", "callbacks", "ckpt", "base_ckpt", "resume", "num_workers", "episodes", "seeds"}
    | {"way", "generalised", "generalised_threshold", "sweep", "rerun", "reuse", "reuse_memory_gb"}
    | {"baseline_episodes", "compile", "keep_features_gb"}
)
# Folders that are taken from the checkpoint's run while they exist and nothing else names them: key -> variable.
_FOLDER_VARIABLES = {"data_dir": "HDMNET_DATA", "weights_dir": "HDMNET_WEIGHTS"}


def merge_with_checkpoint(cfg: DictConfig, stored: Mapping[str, Any], overrides: Sequence[str]) -> DictConfig:
    """The config to evaluate a checkpoint with: what it was trained with, unless the command line says otherwise.

    `dataset=pascal` replaces the stored group but for the size of the network's input, `dataset.image_size=257` sets
    the one key of it. The trainer, loggers, callbacks, output folders and the evaluation's own keys always come from
    the command at hand; the data folder is the training run's where neither the command nor the environment variable
    names one and it still exists.

    Args:
        cfg: The entry point's composed config, command line included; left as it is.
        stored: The training run's config as `to_stored` gives it.
        overrides: The command line's overrides, e.g. `["dataset.image_size=257", "shot=5"]`.
    """
    mentioned = {override.lstrip("+~").split("=", 1)[0].split("@", 1)[0] for override in overrides}
    asked = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))
    merged = copy.deepcopy(cfg)
    OmegaConf.set_struct(merged, False)
    for key, value in stored.items():
        if key in NEVER_FROM_CHECKPOINT or key in mentioned:
            continue
        merged[key] = copy.deepcopy(value)
        for path in sorted(path for path in mentioned if path.startswith(f"{key}.")):
            _set(merged, path, look_up(asked, path))
    trained_size = OmegaConf.select(OmegaConf.create(dict(stored)), "dataset.image_size")
    if "dataset" in mentioned and trained_size is not None and "dataset.image_size" not in mentioned:
        merged.dataset.image_size = trained_size
    for key, variable in _FOLDER_VARIABLES.items():
        folder = look_up(stored, f"paths.{key}")
        named = variable in os.environ or not mentioned.isdisjoint({"paths", f"paths.{key}"})
        if isinstance(folder, str) and not named and Path(folder).is_dir():
            merged.paths[key] = folder
    OmegaConf.set_struct(merged, True)
    return merged


def _set(cfg: DictConfig, path: str, value: Any) -> None:
    """Set a dotted key, or remove it where the command line removed it (`~dataset.val_list`)."""
    if value is ABSENT:
        parent, _, leaf = path.rpartition(".")
        node = OmegaConf.select(cfg, parent)
        if node is not None and leaf in node:
            del node[leaf]
        return
    OmegaConf.update(cfg, path, value, merge=False, force_add=True)
