"""The loggers of a run, and what a run is called on a dashboard: folds and seeds of one setting are one group."""

from __future__ import annotations

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from hdmnet.config.instantiate import instantiate_all
from hdmnet.config.values import HDMNET, method_of, to_plain, to_stored
from hdmnet.runtime.errors import InputError
from hdmnet.runtime.home import expand_home

if TYPE_CHECKING:
    from omegaconf import DictConfig

_MAX_NAME, _MAX_TAG = 128, 64  # what W&B takes

# What does not make another setting: the repetition and the machine; and the groups that the name says already.
_SAME_SETTING = frozenset(
    {"fold", "seed", "num_workers", "reuse", "reuse_memory_gb", "rerun", "resume", "ckpt", "base_ckpt", "dataset.root"}
    | {"baseline_episodes", "trainer.accelerator", "trainer.enable_progress_bar", "trainer.log_every_n_steps"}
)
_SAME_SETTING_GROUPS = frozenset({"paths", "logger", "callbacks", "hydra", "sweep", "launcher", "local"})
_NAMED = frozenset({"dataset", "shot", "backbone", "ablation", "trainer"})


def build_loggers(cfg: DictConfig, job_type: str) -> list[Any]:
    """Build the loggers of a config; one with a method `describe_run` is told what runs.

    Null entries, and loggers whose attribute `runs_in` lacks the job type, are left out.

    Args:
        cfg: An entry point's config, its paths absolute.
        job_type: "train" or "evaluate".
    """
    loggers = [one for one in instantiate_all(cfg.logger) if job_type in getattr(one, "runs_in", (job_type,))]
    for logger in loggers:
        if hasattr(logger, "describe_run"):
            logger.describe_run(describe_run(cfg, job_type))
    return loggers


def check_loggers(cfg: DictConfig) -> None:
    """Refuse `logger=wandb` where W&B is not installed, before anything is read or trained; raises InputError."""
    asked = any(node is not None and "wandb" in str(node.get("_target_")) for node in cfg.logger.values())
    if asked and find_spec("wandb") is None:
        raise InputError("logger=wandb needs W&B: pip install 'hdmnet[wandb]'")


def describe_run(cfg: DictConfig, job_type: str) -> dict[str, Any]:
    """Title, name, group, job type, tags and config of a run, for whoever shows or keeps them.

    Runs have the same group exactly when they differ in nothing but fold, seed and machine, as far as their command
    lines say so; a config that no command line made is told from others by a hash.

    Args:
        cfg: An entry point's config, its paths absolute.
        job_type: "train" or "evaluate"; of callbacks where they run.
    """
    config = to_plain(cfg)
    method = method_of(config)
    parts = [str(cfg.dataset.name), f"{cfg.shot}-shot", str(cfg.backbone.name)]
    parts += [] if method == HDMNET else [method]
    if cfg.ablation is not None:
        parts.append(str(cfg.ablation))
    group = _shorten(" ".join(parts + [told for told in _differences(cfg) if told != f"model={method}"]), _MAX_NAME)
    which = f" fold{cfg.fold} seed{cfg.seed}"
    tags = [parts[0], f"fold{cfg.fold}", *parts[1:3], method, str(cfg.ablation or "no ablation")]
    return {
        "title": f"{cfg.dataset.name}, fold {cfg.fold}, {cfg.shot}-shot, {method}",
        "name": _shorten(group, _MAX_NAME - len(which)) + which,
        "group": group,
        "job_type": job_type,
        "tags": [_shorten(tag, _MAX_TAG) for tag in tags],
        "config": config,
    }


def _differences(cfg: DictConfig) -> list[str]:
    """What the command line changed of the setting, sorted; of an evaluation also what the training's had changed."""
    folders = [Path(cfg.paths.run_dir)]
    if cfg.ckpt is not None:
        folders.append(expand_home(cfg.ckpt).absolute().parent.parent)
    files = [folder / ".hydra" / "overrides.yaml" for folder in folders]
    if not files[0].is_file():
        return [_digest(cfg)]
    # Unresolved: what a `${…}` refers to is in the config, not in the list.
    told: list[Any] = [OmegaConf.to_container(OmegaConf.load(file)) for file in files if file.is_file()]
    overrides = {str(item) for one in told for item in one}
    return sorted(item.lstrip("+") for item in overrides if _is_of_the_setting(item))


def _is_of_the_setting(override: str) -> bool:
    key = override.lstrip("+~").partition("=")[0].partition("@")[0]
    return key not in _SAME_SETTING | _NAMED and key.partition(".")[0] not in _SAME_SETTING_GROUPS


def _digest(cfg: DictConfig) -> str:
    """Hash of a config without fold, seed and machine; references to the fold stay references."""
    facts = {key: value for key, value in to_stored(cfg).items() if key not in _SAME_SETTING_GROUPS}
    for key in _SAME_SETTING:
        group, _, leaf = key.rpartition(".")
        (facts[group] if group else facts).pop(leaf, None)
    return "config " + hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]


def _shorten(text: str, length: int) -> str:
    """Cut a text that is too long; a hash keeps it apart from others with the same beginning."""
    if len(text) <= length:
        return text
    digest = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{text[: length - 9]} {digest}"
