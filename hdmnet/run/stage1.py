"""Stage 1: the base learner of a config, given, kept from an earlier run, or trained now."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import socket
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
from filelock import FileLock, Timeout

from hdmnet.callbacks.build import build_callbacks
from hdmnet.config.instantiate import instantiate
from hdmnet.config.protocol import dataset_settings
from hdmnet.config.values import image_size, to_plain
from hdmnet.data.datamodules.base_learner import BaseLearnerDataModule
from hdmnet.data.transforms import BaseLearnerAugment, build_augment
from hdmnet.run.build import (
    base_val_share,
    build_base_learner,
    build_trainer,
    epoch_length,
    num_processes,
    skipped_files,
)
from hdmnet.run.checkpoints import load_base_learner, load_strictly, run_state_dict, save_base_learner
from hdmnet.runtime import ranks, signals
from hdmnet.runtime.checkpoint_file import newest_whole, read_checkpoint
from hdmnet.runtime.errors import InputError
from hdmnet.tasks.base_learner import BaseLearnerTask, BaseOptimiserSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from omegaconf import DictConfig

    from hdmnet.callbacks.checkpoint import RunCheckpoint
    from hdmnet.data.datasets.base import SegmentationDataset
    from hdmnet.data.transforms import Augment
    from hdmnet.models.base_learner import BaseLearner

log = logging.getLogger(__name__)

# Arguments of the trainer that change what stage 1 learns.
_TRAINING_ARGUMENTS = (
    *("accumulate_grad_batches", "devices", "fast_dev_run", "gradient_clip_algorithm", "gradient_clip_val"),
    *("limit_train_batches", "max_time", "num_nodes", "overfit_batches", "precision", "sync_batchnorm"),
)
# Newer keys of the data set, of optim.base, and their defaults: base learners of before there were these are found.
_LATER_KEYS = {"novel_pixels": None, "year": 2014, "images": "filtered"}


def base_learner_path(cfg: DictConfig, data: BaseLearnerDataModule) -> Path:
    """Where the base learner of this config is kept: the name holds a hash of all that it depends on.

    Training images and their areas stand for the data, wherever the folder lies; `data` is to be set up.
    """
    plain = to_plain(cfg)
    unused = ("num_val_", "num_test_", "base_val_", "check_files", "controls", "root", "backbone")
    dataset = {k: v for k, v in dataset_settings(plain).items() if not k.startswith(unused) and k != "augment"}
    dataset.pop("image_size"), dataset.pop("episodes_per_epoch")
    optim = dict(plain["optim"]["base"])
    for key, default in _LATER_KEYS.items():
        for node in (dataset, optim):
            if node.get(key) == default:
                node.pop(key, None)
    facts = {
        "dataset": dataset,
        "backbone": {k: v for k, v in plain["backbone"].items() if k != "weights_dir"},
        "optim": optim,
        "max_steps": stage1_limits(cfg)["max_steps"],
        "trainer": {key: plain["trainer"][key] for key in _TRAINING_ARGUMENTS},
        "data": data.digest(),
        "fold": cfg.fold,
        "seed": cfg.seed,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:10]
    name = f"{cfg.dataset.name}_fold{cfg.fold}_{cfg.backbone.name}_seed{cfg.seed}_{digest}.pt"
    return Path(cfg.paths.cache_dir) / "base_learners" / name


def obtain_base_learner(cfg: DictConfig, dataset: SegmentationDataset) -> BaseLearner:
    """The trained base learner, on the CPU: from ``base_ckpt``, else trained before with the same settings, else now.

    Raises:
        ValueError: ``base_ckpt`` does not fit.
        FileNotFoundError: ``base_ckpt`` is not there.
    """
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    data = build_base_data(cfg, dataset)
    data.setup("fit")
    path = base_learner_path(cfg, data) if cfg.base_ckpt is None else Path(cfg.base_ckpt)
    if cfg.base_ckpt is None:
        with _turn_to_train(path, str(cfg.paths.run_dir)) as mine:
            if mine:
                return train_base_learner(cfg, build_base_learner(cfg, data.num_base), data, path)
    log.info("base learner: %s", path)
    # Every weight comes from the file: no download of pretrained ones for nothing.
    learner = build_base_learner(cfg, data.num_base, weights=None)
    return load_base_learner(learner, path, dataset=dataset.name, backbone=cfg.backbone.name, fold=cfg.fold)


@contextmanager
def _turn_to_train(path: Path, who: str) -> Iterator[bool]:
    """Whether this job is to train the base learner that is kept at `path`.

    Of several jobs that need it one trains it, under a lock; the others wait (and are told for `who`), and take over
    should it fail. The system frees the lock of a process that is gone, however it ended. The first rank decides for
    the job.
    """
    if ranks.rank() > 0:
        # Lightning starts the other ranks when the first has decided and before it can have written the file.
        yield ranks.receive_from_first("base learner") == "train" if ranks.started_together() else not path.is_file()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = path.with_suffix(".training")
    with _waiting_lock(path.with_suffix(".lock"), holder) if not path.is_file() else nullcontext():
        mine = not path.is_file()
        ranks.send_to_ranks("base learner", "train" if mine else "load")
        if not mine:
            yield False
            return
        about = f"{who} (process {os.getpid()} on {socket.gethostname()})"
        holder.write_text(about, encoding="utf-8", errors="backslashreplace")
        try:
            yield True
        finally:
            holder.unlink(missing_ok=True)


@contextmanager
def _waiting_lock(file: Path, holder: Path) -> Iterator[None]:
    """Hold a file's lock; says for whom it has to wait."""
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        known = holder.read_text(encoding="utf-8") if holder.is_file() else "another job"
        log.info("base learner: waiting, it is being trained by %s", known)
        lock.acquire(poll_interval=0.5)
    try:
        yield
    finally:
        lock.release()


def build_base_data(cfg: DictConfig, dataset: SegmentationDataset) -> BaseLearnerDataModule:
    """The training and validation pictures of stage 1.

    Raises:
        ValueError: The batch cannot be shared out to the processes.
    """
    size, base = image_size(cfg.dataset.base_image_size), cfg.optim.base
    mean, std, settings = list(cfg.backbone.mean), list(cfg.backbone.std), dataset_settings(to_plain(cfg))
    processes = num_processes(cfg)
    if base.batch_size % processes:
        raise InputError(
            f"optim.base.batch_size={base.batch_size} cannot be shared by {processes} processes; expected a multiple"
        )
    if base.batch_size < 2 * processes:  # pyramid pooling normalises a single bin over the batch
        raise InputError(
            f"optim.base.batch_size={base.batch_size} leaves one picture a process; expected at least {2 * processes}: "
            "batch normalisation needs two"
        )
    return BaseLearnerDataModule(
        dataset,
        fold=cfg.fold,
        image_size=size,
        augment=_augment(cfg, size, mean),
        batch_size=base.batch_size // processes,
        num_workers=cfg.num_workers,
        seed=cfg.seed,
        num_val_samples=base.num_val_samples,
        all_images=base.get("images") == "all",
        # A crop shows a part of the picture at its own scale: the whole is as large as stage 2 sees it.
        val_size=image_size(cfg.dataset.image_size) if base.augment == "crop" else None,
        filter_novel=settings["filter_novel"],
        novel_pixels=settings.get("novel_pixels"),
        base_val_share=base_val_share(cfg),
        skips=skipped_files(cfg),
        mean=mean,
        std=std,
        cache_dir=Path(cfg.paths.cache_dir) / "catalogs",
    )


def _augment(cfg: DictConfig, size: tuple[int, int], mean: list[float]) -> Augment:
    """Stage 1's own augmentation: BAM's by the text or as its release has it, or one of stage 2's by its name."""
    name = cfg.optim.base.augment
    if name in ("bam", "bam_release"):
        return BaseLearnerAugment(size, mean=mean, keep_label=None if name == "bam" else 1)
    return build_augment(name, image_size=size, scale=tuple(cfg.dataset.augment_scale), mean=mean)


def train_base_learner(cfg: DictConfig, learner: BaseLearner, data: BaseLearnerDataModule, path: Path) -> BaseLearner:
    """Train the base learner, take the best by base-class mIoU, write it to `path` and into the run's folder.

    Its checkpoints are kept beside `path` meanwhile. Whichever job is next to train the same one goes on from there:
    the name says that all it depends on is the same.
    """
    base, run_dir = cfg.optim.base, Path(cfg.paths.run_dir)
    limits = stage1_limits(cfg)
    data.base_samples_per_epoch = epoch_length(cfg, len(data.train_ids), data.batch_size, limits["max_steps"])
    keys = ("optimizer", "lr", "momentum", "weight_decay", "power", "head_lr_factor", "warmup_steps", "freeze_backbone")
    task = BaseLearnerTask(model=learner, optimiser=BaseOptimiserSettings(**{key: base[key] for key in keys}))
    checkpoints = path.with_suffix(".checkpoints")
    checkpoint: RunCheckpoint = instantiate(
        cfg.callbacks.checkpoint, dirpath=str(checkpoints), monitor="base/miou", mode="max"
    )
    point = None if cfg.trainer.fast_dev_run else newest_whole(checkpoints)
    trainer = build_trainer(
        cfg,
        "stage 1 (base learner)",
        callbacks=[checkpoint, *build_callbacks(cfg, "base_learner")],
        logger=False,
        check_val_every_n_epoch=base.val_every_epochs,
        val_check_interval=None,
        **limits,
    )
    log.info("base learner: training it (stage 1), to be kept as %s", path)
    if point is not None:
        log.info("base learner: going on from %s", point)
    with signals.polling():
        trainer.fit(task, datamodule=data, ckpt_path=point)
    best = checkpoint.best_model_path
    if best:
        load_strictly(task.model, run_state_dict(read_checkpoint(best)), best)
    if trainer.is_global_zero:
        miou = None if checkpoint.best_model_score is None else float(checkpoint.best_model_score)
        about = {"fold": cfg.fold, "backbone": cfg.backbone.name, "dataset": cfg.dataset.name, "base_miou": miou}
        try:
            for file in (path, run_dir / "base_learner.pt"):
                save_base_learner(learner, file, about)
        except OSError as error:
            log.warning("BASE LEARNER NOT WRITTEN: %s; the run goes on with it, others will have to train it", error)
        log.info("base learner: base-class mIoU %s", "not measured" if miou is None else f"{miou:.3f}")
    trainer.strategy.barrier()  # every process has read the best by now
    if trainer.is_global_zero and path.is_file():
        shutil.rmtree(checkpoints, ignore_errors=True)
    return learner.cpu()


def stage1_limits(cfg: DictConfig) -> dict[str, int]:
    """Stage 1's own epochs and steps; an explicit ``trainer.max_steps`` caps it too, so that a trial run is short."""
    base, cap = cfg.optim.base, cfg.trainer.max_steps
    steps = base.max_steps
    if cap not in (None, -1) and cap != cfg.optim.max_steps:
        steps = cap if steps == -1 else min(steps, cap)
    if steps == base.max_epochs == -1:
        raise InputError("optim.base.max_epochs=-1 and optim.base.max_steps=-1: expected a limit of stage 1 by one")
    return {"max_epochs": base.max_epochs, "max_steps": steps}
