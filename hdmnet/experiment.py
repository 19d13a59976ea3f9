"""From a composed config to a finished run: data, stage 1, stage 2, test, result. The doors call `train` and `evaluate`."""

from __future__ import annotations

import hashlib
import json
import logging
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar

from hdmnet import results
from hdmnet.callbacks.visualise import EpisodePictures
from hdmnet.checkpoints import (
    RUN_KEY,
    load_base_learner,
    load_strictly,
    read_checkpoint,
    run_state_dict,
    save_base_learner,
)
from hdmnet.config import image_size, instantiate, to_plain, to_stored
from hdmnet.data.datamodule import BaseLearnerDataModule, FewShotDataModule
from hdmnet.data.transforms import BaseLearnerAugment, ResizeOnly
from hdmnet.metrics import FewShotIoU
from hdmnet.models.base_learner import FEATURE_CHANNELS, BaseLearner
from hdmnet.models.official import load_official_checkpoint
from hdmnet.tasks.base_learner import BaseLearnerTask, BaseOptimiserSettings
from hdmnet.tasks.few_shot import FewShotTask, LossWeights, OptimiserSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from omegaconf import DictConfig
    from torch import nn

    from hdmnet.data.source import Source

log = logging.getLogger(__name__)


class Timer:
    """Seconds by phase; use as ``with timer("fit"):``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, phase: str) -> _Phase:
        """A context that adds its duration to the phase."""
        return _Phase(self, phase)


class _Phase:
    def __init__(self, timer: Timer, phase: str) -> None:
        self.timer, self.phase, self.start = timer, phase, 0.0

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        seconds = self.timer.seconds
        seconds[self.phase] = round(seconds.get(self.phase, 0.0) + time.perf_counter() - self.start, 2)


# ------------------------------------------------------------------------------------------------------------ doors


def train(cfg: DictConfig) -> dict[str, Any]:
    """Run the main job: base learner if there is none yet, HDMNet, test; leaves the run's folder complete.

    Args:
        cfg: The config of the train door, validated, its paths absolute.

    Returns:
        The result, as written to ``result.json``.

    Raises:
        ValueError: Data, checkpoint or config do not fit.
        FileNotFoundError: Something on disk is missing.
    """
    _quieten()
    timer = Timer()
    with timer("data"):
        source = build_source(cfg)
        data = build_few_shot_data(cfg, source)
        data.setup()  # every list, mask and class count is checked before any training
        if cfg.ckpt is not None:
            read_checkpoint(cfg.ckpt)
    with timer("base_learner"):
        learner = obtain_base_learner(cfg, source)
    # Again, so that stage 2 starts alike whether stage 1 was trained just now or found on disk.
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    task = build_task(cfg, build_model(cfg, learner), data)
    if cfg.ckpt is not None:
        load_strictly(task.model, run_state_dict(_run_checkpoint(cfg.ckpt)), f"ckpt={cfg.ckpt}")
    trainer = build_trainer(cfg, callbacks=[*instantiate_all(cfg.callbacks)], logger=instantiate_all(cfg.logger))
    with timer("train"):
        trainer.fit(task, datamodule=data)
    chosen = _chosen_checkpoint(cfg, trainer)
    load_strictly(task.model, run_state_dict(_run_checkpoint(chosen)), str(chosen))
    return test(cfg, task, data, trainer, timer, checkpoint=chosen)


def evaluate(cfg: DictConfig, *, official: bool = False) -> dict[str, Any]:
    """Run the test protocol on a checkpoint.

    Args:
        cfg: The config of the evaluate door, merged with the checkpoint's.
        official: The checkpoint is the official release's.

    Returns:
        The result, as written to ``result.json``.

    Raises:
        ValueError: Data or checkpoint do not fit the config.
        FileNotFoundError: Something on disk is missing.
    """
    _quieten()
    timer = Timer()
    with timer("data"):
        source = build_source(cfg)
        data = build_few_shot_data(cfg, source)
        data.setup("test")
    model: nn.Module
    if official:
        model = load_official_checkpoint(cfg.ckpt, source.name, cfg.backbone.name, cfg.shot)
    else:
        checkpoint = _run_checkpoint(cfg.ckpt)
        learner = build_base_learner(cfg, data.num_base, weights=None)
        # The shot weights of the ensemble have the shape of the training's K, whatever K is tested.
        model = build_model(cfg, learner, num_shots=checkpoint[RUN_KEY]["config"]["shot"])
        load_strictly(model, run_state_dict(checkpoint), f"ckpt={cfg.ckpt}")
    task = build_task(cfg, model, data)
    trainer = build_trainer(cfg, callbacks=list(_test_callbacks(cfg)), logger=False)
    return test(cfg, task, data, trainer, timer, checkpoint=Path(cfg.ckpt))


def test(
    cfg: DictConfig, task: FewShotTask, data: FewShotDataModule, trainer: L.Trainer, timer: Timer, *, checkpoint: Path
) -> dict[str, Any]:
    """Test, measure the controls, write ``result.json`` and print the table.

    Args:
        cfg: The config.
        task: Holds the weights to test.
        data: Set up for the test.
        trainer: Runs it.
        timer: Gets the phases "test" and "controls".
        checkpoint: Which weights they are, for the result.

    Returns:
        The result.
    """
    with timer("test"):
        trainer.test(task, datamodule=data, verbose=False)
    figures = {name: results.summarise_seeds(seeds, task.class_names) for name, seeds in task.test_results.items()}
    controls: dict[str, float] = {}
    if cfg.dataset.controls and cfg.support_mask == "given":
        with timer("controls"):
            controls["every_object_foreground"] = every_object_foreground(data)
            controls["support_mask_ones"] = _test_with_ones(cfg, task, data)
    result = results.make_result(
        dataset=cfg.dataset.name,
        fold=cfg.fold,
        shot=cfg.shot,
        backbone=cfg.backbone.name,
        ablation=cfg.ablation,
        seed=cfg.seed,
        test=figures["final"],
        test_no_ensemble=figures["meta"],
        manifest_sha256=[manifest.sha256() for manifest in data.test_manifests],
        config=to_plain(cfg),
        timings=timer.seconds,
        controls=controls,
        checkpoint=str(checkpoint),
        selection=cfg.selection,
        support_mask=cfg.support_mask,
        protocol=cfg.protocol,
    )
    if trainer.is_global_zero:
        results.write_result(Path(cfg.paths.run_dir) / "result.json", result)
        results.print_fold_table(result)
        print(f"\nresult, checkpoints and pictures: {cfg.paths.run_dir}", flush=True)
    return result


# --------------------------------------------------------------------------------------------------------- controls


def every_object_foreground(data: FewShotDataModule) -> float:
    """The control that calls every labelled object foreground: what a model scores that ignores the support.

    Args:
        data: Set up for the test; the episodes of its first seed are taken.

    Returns:
        mIoU as a fraction.
    """
    metric = FewShotIoU(len(data.novel_names))
    novel = data.fold_classes.novel
    for episode in data.test_manifests[0]:
        mask = torch.from_numpy(data.source.read_mask(episode.query_id))
        target = torch.where(mask == 255, 255, (mask == episode.class_value).to(torch.uint8))
        class_index = torch.tensor([novel.index(episode.class_value)])
        metric.update((mask > 0).long()[None], target[None], class_index)
    return float(metric.compute()["miou"])


def _test_with_ones(cfg: DictConfig, task: FewShotTask, data: FewShotDataModule) -> float:
    """The control of the paper's Table 8: the same model and episodes of the first seed, support masks all ones."""
    ones = build_few_shot_data(cfg, data.source, support_mask="ones", num_test_seeds=1)
    trainer = build_trainer(cfg, callbacks=list(_progress_bars(cfg)), logger=False)
    trainer.test(task, datamodule=ones, verbose=False)
    return float(task.test_results["final"][0]["miou"])


# --------------------------------------------------------------------------------------------------------- building


def build_source(cfg: DictConfig) -> Source:
    """The data set, checked to be there."""
    source: Source = instantiate(cfg.dataset.source)
    for key in ("min_area", "num_folds"):
        if cfg.dataset.get(key) is not None:
            setattr(source, key, cfg.dataset[key])
    source.check()
    return source


def build_few_shot_data(cfg: DictConfig, source: Source, **changes: Any) -> FewShotDataModule:  # noqa: ANN401
    """The episodes of the config's fold; `changes` replace arguments of `FewShotDataModule`."""
    size, dataset = image_size(cfg.dataset.image_size), cfg.dataset
    mean, std = list(cfg.backbone.mean), list(cfg.backbone.std)
    episodes, seeds = cfg.get("episodes"), cfg.get("seeds")  # only the evaluate door has them
    arguments: dict[str, Any] = {
        "fold": cfg.fold,
        "shot": cfg.shot,
        "image_size": size,
        "augment": instantiate(cfg.augment, image_size=size, mean=mean),
        "batch_size": cfg.batch_size,
        "num_workers": cfg.num_workers,
        "seed": cfg.seed,
        "episodes_per_epoch": dataset.episodes_per_epoch,
        "num_val_episodes": dataset.num_val_episodes,
        "num_test_episodes": dataset.num_test_episodes if episodes is None else episodes,
        "num_test_seeds": dataset.num_test_seeds if seeds is None else seeds,
        "protocol": cfg.protocol,
        "filter_novel": dataset.filter_novel,
        "support_mask": cfg.support_mask,
        "mean": mean,
        "std": std,
        "cache_dir": Path(cfg.paths.cache_dir) / "catalogs",
    }
    return FewShotDataModule(source, **(arguments | changes))


def build_base_learner(cfg: DictConfig, num_base: int, **changes: Any) -> BaseLearner:  # noqa: ANN401
    """An untrained base learner on the config's backbone; `changes` replace arguments of the backbone's builder."""
    feature_channels = cfg.backbone.get("feature_channels", FEATURE_CHANNELS)
    backbone = instantiate(cfg.backbone.build, **changes)
    return BaseLearner(backbone=backbone, num_base=num_base, feature_channels=feature_channels)


def build_model(cfg: DictConfig, learner: BaseLearner, *, num_shots: int | None = None) -> nn.Module:
    """The few-shot segmenter of the config on a base learner."""
    shots = cfg.shot if num_shots is None else num_shots
    model: nn.Module = instantiate(cfg.model, base_learner=learner, num_shots=shots)
    return model


def build_task(cfg: DictConfig, model: nn.Module, data: FewShotDataModule) -> FewShotTask:
    """Losses, optimiser and metrics of stage 2."""
    optim = cfg.optim
    return FewShotTask(
        model=model,
        class_names=data.novel_names,
        num_test_seeds=data.num_test_seeds,
        loss=LossWeights(**to_plain(cfg)["loss"]),
        optimiser=OptimiserSettings(
            lr=optim.lr,
            weight_decay=optim.weight_decay,
            head_lr_factor=optim.head_lr_factor,
            power=optim.power,
            warmup_steps=optim.warmup_steps,
        ),
        image_mean=list(cfg.backbone.mean),
        image_std=list(cfg.backbone.std),
        checkpoint_extra={"config": to_stored(cfg), "class_names": list(data.novel_names)},
    )


def build_trainer(cfg: DictConfig, *, callbacks: list[L.Callback], logger: Any, **changes: Any) -> L.Trainer:  # noqa: ANN401
    """A Lightning Trainer from ``cfg.trainer``; `changes` replace its arguments."""
    trainer: L.Trainer = instantiate(cfg.trainer, **({"callbacks": callbacks, "logger": logger} | changes))
    return trainer


def instantiate_all(group: DictConfig) -> list[Any]:
    """Build every entry of a config group that has a ``_target_`` (callbacks, loggers); null entries are left out."""
    return [instantiate(node) for node in group.values() if node is not None and "_target_" in node]


def _progress_bars(cfg: DictConfig) -> Iterator[L.Callback]:
    return (c for c in instantiate_all(cfg.callbacks) if isinstance(c, TQDMProgressBar))


def _test_callbacks(cfg: DictConfig) -> Iterator[L.Callback]:
    return (c for c in instantiate_all(cfg.callbacks) if isinstance(c, TQDMProgressBar | EpisodePictures))


# --------------------------------------------------------------------------------------------------------- stage 1


def base_learner_path(cfg: DictConfig) -> Path:
    """Where the base learner of this config is kept: the name holds a hash of all that it depends on."""
    plain = to_plain(cfg)
    dataset = {k: v for k, v in plain["dataset"].items() if not k.startswith(("num_val_", "num_test_", "controls", "root"))}
    dataset.pop("image_size"), dataset.pop("episodes_per_epoch"), dataset["source"].pop("root", None)
    facts = {
        "dataset": dataset,
        "backbone": {k: v for k, v in plain["backbone"].items() if k != "build"},
        "optim": plain["optim"]["base"],
        "max_steps": _stage1_limits(cfg)["max_steps"],
        "devices": plain["trainer"]["devices"],
        "precision": plain["trainer"]["precision"],
        "fold": cfg.fold,
        "seed": cfg.seed,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:10]
    name = f"{cfg.dataset.name}_fold{cfg.fold}_{cfg.backbone.name}_seed{cfg.seed}_{digest}.pt"
    return Path(cfg.paths.cache_dir) / "base_learners" / name


def obtain_base_learner(cfg: DictConfig, source: Source) -> BaseLearner:
    """The base learner: from ``base_ckpt``, else trained before with the same settings, else trained now.

    Args:
        cfg: The config of the train door.
        source: The data set.

    Returns:
        The trained base learner, on the CPU.

    Raises:
        ValueError: ``base_ckpt`` does not fit.
        FileNotFoundError: ``base_ckpt`` is not there.
    """
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    data = build_base_data(cfg, source)
    given, kept = cfg.base_ckpt, base_learner_path(cfg)
    if given is not None or kept.is_file():
        path = Path(kept if given is None else given)
        log.info("base learner: %s", path)
        # Every weight comes from the file: no download of pretrained ones for nothing.
        learner = build_base_learner(cfg, data.num_base, weights=None)
        return load_base_learner(learner, path, dataset=source.name, backbone=cfg.backbone.name)
    learner = build_base_learner(cfg, data.num_base)
    return train_base_learner(cfg, learner, data, kept)


def build_base_data(cfg: DictConfig, source: Source) -> BaseLearnerDataModule:
    """The training and validation pictures of stage 1."""
    size, base = image_size(cfg.dataset.base_image_size), cfg.optim.base
    mean, std = list(cfg.backbone.mean), list(cfg.backbone.std)
    processes = _num_processes(cfg)
    if base.batch_size % processes:
        raise ValueError(f"optim.base.batch_size={base.batch_size} cannot be shared by {processes} processes; expected a multiple")
    return BaseLearnerDataModule(
        source,
        fold=cfg.fold,
        image_size=size,
        augment=ResizeOnly(size) if base.augment == "none" else BaseLearnerAugment(size, mean=mean),
        batch_size=base.batch_size // processes,
        num_workers=cfg.num_workers,
        seed=cfg.seed,
        num_val_samples=base.num_val_samples,
        filter_novel=cfg.dataset.filter_novel,
        mean=mean,
        std=std,
        cache_dir=Path(cfg.paths.cache_dir) / "catalogs",
    )


def train_base_learner(cfg: DictConfig, learner: BaseLearner, data: BaseLearnerDataModule, path: Path) -> BaseLearner:
    """Train the base learner, keep the best by base-class mIoU and write it to `path`."""
    base, run_dir = cfg.optim.base, Path(cfg.paths.run_dir)
    keys = ("optimizer", "lr", "momentum", "weight_decay", "power", "head_lr_factor", "warmup_steps")
    task = BaseLearnerTask(model=learner, optimiser=BaseOptimiserSettings(**{key: base[key] for key in keys}))
    keeper = ModelCheckpoint(dirpath=run_dir / "base_learner", filename="best", monitor="base/miou", mode="max")
    trainer = build_trainer(
        cfg,
        callbacks=[keeper, *_progress_bars(cfg)],
        logger=False,
        check_val_every_n_epoch=base.val_every_epochs,
        **_stage1_limits(cfg),
    )
    log.info("base learner: training it (stage 1), to be kept as %s", path)
    trainer.fit(task, datamodule=data)
    best = keeper.best_model_path
    if best:
        load_strictly(task.model, run_state_dict(read_checkpoint(best)), best)
    if trainer.is_global_zero:
        miou = None if keeper.best_model_score is None else float(keeper.best_model_score)
        about = {"fold": cfg.fold, "backbone": cfg.backbone.name, "dataset": cfg.dataset.name, "base_miou": miou}
        save_base_learner(learner, path, about)
        log.info("base learner: base-class mIoU %s", "not measured" if miou is None else f"{miou:.3f}")
    trainer.strategy.barrier()
    return learner.cpu()


def _stage1_limits(cfg: DictConfig) -> dict[str, int]:
    """Stage 1's own epochs and steps; an explicit ``trainer.max_steps`` caps it too, so that a trial run is short."""
    base, cap = cfg.optim.base, cfg.trainer.max_steps
    steps = base.max_steps
    if cap not in (None, -1) and cap != cfg.optim.max_steps:
        steps = cap if steps == -1 else min(steps, cap)
    return {"max_epochs": base.max_epochs, "max_steps": steps}


# ---------------------------------------------------------------------------------------------------------- helpers


def _num_processes(cfg: DictConfig) -> int:
    """Processes of the run; "auto" and lists as Lightning counts them."""
    devices, nodes = cfg.trainer.devices, cfg.trainer.num_nodes
    if isinstance(devices, int) and devices > 0:
        return devices * int(nodes)
    if isinstance(devices, str) and devices.isdigit():
        return int(devices) * int(nodes)
    count = max(torch.cuda.device_count(), 1) if devices in ("auto", -1, "-1") else len(devices)
    return count * int(nodes)


def _chosen_checkpoint(cfg: DictConfig, trainer: L.Trainer) -> Path:
    keeper = trainer.checkpoint_callback
    if not isinstance(keeper, ModelCheckpoint):
        raise ValueError("callbacks.checkpoint is missing; a run needs it to choose the weights that are tested")
    last = keeper.last_model_path
    chosen = keeper.best_model_path if cfg.selection == "best" and keeper.best_model_path else last
    if not chosen:
        raise ValueError("training wrote no checkpoint; give it at least one step (trainer.max_steps, dataset.episodes_per_epoch)")
    return Path(chosen)


def _run_checkpoint(path: str | Path) -> dict[str, Any]:
    content = read_checkpoint(path)
    if RUN_KEY not in content or "state_dict" not in content:
        raise ValueError(f"checkpoint {str(path)!r} is not of an hdmnet run; expected checkpoints/best.ckpt of a run's folder")
    return content


def _quieten() -> None:
    """Silence what Lightning says in every run and what is on purpose here."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for pattern in (
        ".*does not have many workers.*",  # num_workers is the user's choice
        ".*Checkpoint directory .* exists and is not empty.*",  # the run's folder is made before
        ".*number of training batches .* is smaller than the logging interval.*",
    ):
        warnings.filterwarnings("ignore", pattern)
