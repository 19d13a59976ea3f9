"""Which run a command goes on with: the newest unfinished one of the same config, or the one that it names.

A run leaves `.hydra/run.json` in its folder when it begins: what it computes, told apart from where and on how many
devices. As long as its process lives it holds a lock beside it; the system frees the lock however the process ends.

Imports nothing heavy.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from hdmnet.config.renamed import upgrade
from hdmnet.config.values import to_plain, to_stored
from hdmnet.runtime.atomic import replacing
from hdmnet.runtime.errors import InputError, MissingFileError
from hdmnet.runtime.home import expand_home
from hdmnet.runtime.run_folder import is_held, own_folder, remove_unused

log = logging.getLogger(__name__)

RUN_FILE = Path(".hydra") / "run.json"
AUTO, LAST = "auto", "last"

# Keys that say where and how a run is computed. Devices and batch size are looked at apart: see `_same_batches`.
_NOT_OF_THE_RUN = (
    *("paths", "logger", "num_workers", "recipe", "sweep", "rerun", "resume", "ckpt", "batch_size"),
    *("compile", "keep_features_gb", "baseline_episodes"),
)
_NOT_OF_THE_TRAINER = (
    *("enable_progress_bar", "enable_model_summary", "log_every_n_steps", "profiler", "accelerator", "devices"),
    *("num_nodes", "strategy"),
)


def facts_of(cfg: DictConfig, left_out: Collection[str], left_out_of_trainer: Collection[str]) -> dict[str, Any]:
    """A config as plain containers without the keys that do not count; its interpolations are kept."""
    found = {key: value for key, value in to_stored(cfg).items() if key not in left_out}
    found["trainer"] = {key: value for key, value in found["trainer"].items() if key not in left_out_of_trainer}
    return found


@dataclass(frozen=True)
class RunRecord:
    """What `run.json` says of a run."""

    folder: Path
    facts: Mapping[str, Any]  # what it computes: its config without folders, loggers, devices and batch size
    ckpt: str | None  # the weights that it began from
    batch_size: Any  # episodes a device
    devices: int | None  # processes, as far as the config tells; None: the machine decides
    begun: str  # ISO 8601

    @classmethod
    def of(cls, cfg: DictConfig, folder: Path) -> RunRecord:
        """The run that a config describes."""
        found = facts_of(cfg, _NOT_OF_THE_RUN, _NOT_OF_THE_TRAINER)
        found["optim"].pop("batch_size", None)
        found["callbacks"] = {name: node for name, node in found["callbacks"].items() if isinstance(node, dict)}
        for node in found["callbacks"].values():
            node.pop("every_n_minutes", None)
        devices, nodes = cfg.trainer.devices, cfg.trainer.num_nodes
        processes = devices * nodes if isinstance(devices, int) and devices > 0 else None
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
        return cls(folder, json.loads(json.dumps(found, default=str)), cfg.ckpt, cfg.batch_size, processes, now)

    @classmethod
    def read(cls, folder: Path) -> RunRecord | None:
        """The run of a folder; None where there is none, or where its file is damaged."""
        try:
            content = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
            content["facts"] = upgrade(content["facts"])
            return cls(folder, **{key: content[key] for key in ("facts", "ckpt", "batch_size", "devices", "begun")})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self) -> None:
        """Leave it in the run's folder."""
        content = {key: value for key, value in vars(self).items() if key != "folder"}
        with replacing(self.folder / RUN_FILE, durable=True) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @property
    def finished(self) -> bool:
        """Whether it has left its result."""
        return (self.folder / "result.json").is_file()

    def differences(self, other: RunRecord) -> list[str]:
        """Keys whose values differ, as far as they decide what is computed."""
        found = _differing(_resolved(self.facts), _resolved(other.facts))
        return found if _same_batches(self, other) else [*found, "batch_size"]


def _resolved(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """The facts with the values of the keys that they refer to; folders, which do not count, by their names."""
    if re.search(r"\$\{[^{}]*:", str(facts)):  # would call a resolver
        return facts
    folders = {key: key for key in ("data_dir", "weights_dir", "output_dir", "cache_dir", "run_dir")}
    try:
        plain = to_plain(OmegaConf.create({**facts, "paths": folders}))
    except OmegaConfBaseException:
        return facts
    return {key: value for key, value in plain.items() if key != "paths"}


def _same_batches(one: RunRecord, other: RunRecord) -> bool:
    """Whether a device, or a step of all devices, gets the same number of episodes."""
    if one.batch_size == other.batch_size:
        return True
    sizes = [run.batch_size * run.devices if run.devices else None for run in (one, other)]
    return sizes[0] is not None and sizes[0] == sizes[1]


def _differing(one: Any, other: Any, key: str = "") -> list[str]:
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return [] if one == other else [key]
    missing = object()
    return [
        found
        for name in sorted(one.keys() | other.keys())
        for found in _differing(one.get(name, missing), other.get(name, missing), f"{key}.{name}".lstrip("."))
    ]


# -------------------------------------------------------------------------------------------------- finding a run


def wish(cfg: DictConfig) -> str | None:
    """What the command wants to go on with: None (nothing), "auto", "last" or a path.

    A job that SLURM has put into the queue again wants "auto".
    """
    if cfg.ckpt == LAST:
        return LAST
    if cfg.resume is None and int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0:
        return AUTO
    return None if cfg.resume is None else str(cfg.resume)


def find_folder(cfg: DictConfig, fresh: Path) -> Path:
    """The folder of the run that a command goes on with; `fresh` where it begins a new one.

    Args:
        cfg: A composed config of the entry point train. Its `resume` becomes the checkpoint to go on from where it
            names one, the folder where the newest of the folder is meant, and null for a new run.
        fresh: The folder that Hydra has made for this command.

    Raises:
        InputError: The run that is named has finished, is running, or computes something else.
        MissingFileError: There is no such run.
    """
    wanted = wish(cfg)
    if wanted is None:
        return fresh
    asked = RunRecord.of(cfg, fresh)
    if wanted in (AUTO, LAST):
        found = _newest_unfinished(asked, any_ckpt=cfg.ckpt == LAST)
        if found is None and wanted == LAST:
            raise MissingFileError(
                f"no unfinished run of this config in {fresh.parent}; expected the command line of a run that was "
                "stopped, or hydra.run.dir=RUN; leave `last` out to begin a new one"
            )
        checkpoint = None
    else:
        found, checkpoint = _named(wanted, asked)
    with open_dict(cfg):
        if cfg.ckpt == LAST and found is not None:
            cfg.ckpt = found.ckpt
        cfg.resume = None if found is None else str(checkpoint or found.folder)
    if found is None:
        log.info("resume=auto: no unfinished run of this config in %s; a new one begins", fresh.parent)
        return fresh
    if fresh != found.folder:
        remove_unused(fresh)
    log.info("resume: going on with the run in %s", found.folder)
    if found.batch_size != asked.batch_size or found.devices != asked.devices:
        log.warning(
            "resume: it was begun with batch_size=%s on %s device(s), now it is %s on %s; the episodes go on in their "
            "order, but where the product of the two differs a step is another one",
            *(found.batch_size, found.devices or "all", asked.batch_size, asked.devices or "all"),
        )
    return found.folder


def _newest_unfinished(asked: RunRecord, *, any_ckpt: bool) -> RunRecord | None:
    """The run of the asked folder itself, or the newest of those beside it that has not finished."""
    here = asked.folder.parent
    folders = [asked.folder, *sorted(here.iterdir() if here.is_dir() else (), reverse=True)]
    runs = [run for run in map(RunRecord.read, dict.fromkeys(folders)) if run is not None]
    runs.sort(key=lambda run: (run.folder == asked.folder, run.begun), reverse=True)
    for run in runs:
        if run.finished or run.differences(asked) or not (any_ckpt or run.ckpt == asked.ckpt):
            continue
        if is_held(run.folder):
            log.info("resume: the run in %s is still running, it is left alone", run.folder)
            continue
        return run
    return None


def _named(wanted: str, asked: RunRecord) -> tuple[RunRecord, Path | None]:
    """The run of a folder, or of a checkpoint in it, and the checkpoint."""
    path = expand_home(wanted).absolute()
    if not path.exists():
        raise MissingFileError(f"resume={wanted}: not found; expected auto, last, a run's folder or its checkpoint")
    checkpoint = path if path.is_file() else None
    folder = path if checkpoint is None else path.parent.parent
    run = RunRecord.read(folder)
    if run is None:
        raise MissingFileError(
            f"resume={wanted}: {folder / RUN_FILE} is missing or damaged; expected the folder of a run that was "
            "stopped; ckpt=PATH begins a new run from a checkpoint's weights"
        )
    if run.finished:
        raise InputError(
            f"resume={wanted}: this run has finished, see {folder / 'result.json'}; ckpt=PATH begins a new run from "
            "its weights"
        )
    different = run.differences(asked)
    if different:
        raise InputError(
            f"resume={wanted}: this run was begun with another {', '.join(different[:5])}; expected the same command "
            "line (folders, devices and num_workers may differ); ckpt=PATH begins a new run from its weights"
        )
    return run, checkpoint


def can_go_on(cfg: DictConfig, folder: Path) -> bool:
    """Whether a training with a folder of its own is to go on with what it finds there."""
    run = RunRecord.read(folder)
    return (
        wish(cfg) is not None
        and run is not None
        and not run.finished
        and not run.differences(RunRecord.of(cfg, folder))
    )


# ------------------------------------------------------------------------------------------------- claiming a run


@contextmanager
def claimed(cfg: DictConfig) -> Iterator[None]:
    """Keep other processes out of the run's folder, and let a later command find a training there.

    Raises:
        InputError: Another process is at work there, or the folder holds the result of a finished run.
        OSError: It cannot be written to.
    """
    folder = Path(cfg.paths.run_dir)
    # Segmented pictures may be replaced, results may not.
    replace = "dataset" not in cfg or bool(cfg.get("rerun") or cfg.get("resume"))
    with own_folder(folder, replace=replace):
        if "resume" in cfg and (cfg.resume is None or RunRecord.read(folder) is None):
            RunRecord.of(cfg, folder).write()
        yield
