"""From a composed config to the parts of a run: data, models, task, trainer, callbacks.

Lightning is imported where it is needed: `predict`, `demo` and `Segmenter`, which build networks only, start in two
thirds of the time.
"""

from __future__ import annotations

import functools
import inspect
import logging
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from omegaconf import OmegaConf

from hdmnet.config.instantiate import instantiate
from hdmnet.config.paths import conf_dir
from hdmnet.config.protocol import dataset_settings
from hdmnet.config.values import did_you_mean, image_size, to_plain, to_stored
from hdmnet.data.datasets.skipped_files import SkippedFiles
from hdmnet.data.episodes.rules import EvaluationRules
from hdmnet.models.backbones.prepare import prepare_trunk
from hdmnet.models.base_learner import FEATURE_CHANNELS, BaseLearner
from hdmnet.run.checkpoints import load_strictly
from hdmnet.runtime import ranks, signals
from hdmnet.runtime.errors import CheckpointError, ConfigError, InputError
from hdmnet.runtime.private_api import leave_sigterm_alone
from hdmnet.runtime.provenance import emulates_bfloat16, git_state, library_versions, processor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import lightning as L
    from omegaconf import DictConfig
    from torch import Tensor, nn

    from hdmnet.data.datamodules.few_shot import FewShotDataModule
    from hdmnet.data.datasets.base import SegmentationDataset
    from hdmnet.models.backbones.base import Backbone
    from hdmnet.models.method import FewShotMethod
    from hdmnet.tasks.few_shot import FewShotTask

log = logging.getLogger(__name__)

BACKBONE, BASE_LEARNER = "backbone", "base_learner"  # values of model.encoder
GENERALISED_SEEDS = 5  # of supports, as the field has it
_FEATURE_CHANNELS = {"resnet_narrow": 128}  # of the base learner, where it is not the usual number


def build_dataset(cfg: DictConfig, *, check: bool = True) -> SegmentationDataset:
    """The data set, checked to be there if not told otherwise.

    Of the keys of conf/dataset_defaults its constructor gets those that it names and that are not null; all others are
    its own.

    Raises:
        ValueError: It does not take its keys, has another number of folds, or is not whole.
        FileNotFoundError: Something of it is missing.
    """
    node = dataset_settings(to_plain(cfg))
    target = instantiate({"_target_": node["_target_"], "_partial_": True}).func
    named = inspect.signature(target).parameters
    given = {key for key in named if node.get(key) is not None}
    own = {key: value for key, value in node.items() if key in given or key not in common_keys()}
    if "cache_dir" in named:
        own["cache_dir"] = str(Path(cfg.paths.cache_dir) / "instances")
    dataset: SegmentationDataset = instantiate(OmegaConf.create({"dataset": own}).dataset)  # so named in errors
    if node.get("num_folds") not in (None, dataset.num_folds):
        raise InputError(f"dataset.num_folds={node['num_folds']}: expected {dataset.num_folds}, as {dataset.name} has")
    if check:
        dataset.check(files=skipped_files(cfg) is None)
        for one in dataset.left_out() if ranks.rank() == 0 else ():
            log.warning("%s: %s", dataset.name, one.tell())
    return dataset


@functools.cache
def common_keys() -> frozenset[str]:
    """Keys that the `dataset` node has whichever the data set is."""
    return frozenset(map(str, OmegaConf.load(conf_dir() / "dataset_defaults" / "default.yaml")))


def skipped_files(cfg: DictConfig) -> SkippedFiles | None:
    """Where files that cannot be read are listed, if they may be skipped."""
    if cfg.dataset.get("on_error") != "skip":
        return None
    return SkippedFiles(None if cfg.paths.run_dir is None else Path(cfg.paths.run_dir) / "skipped")


def build_few_shot_data(cfg: DictConfig, dataset: SegmentationDataset, **changes: Any) -> FewShotDataModule:
    """The episodes of the config's fold; `changes` replace arguments of `FewShotDataModule`."""
    from hdmnet.data.datamodules.few_shot import FewShotDataModule

    size, settings = image_size(cfg.dataset.image_size), dataset_settings(to_plain(cfg))
    mean, std = list(cfg.backbone.mean), list(cfg.backbone.std)
    # Only of an evaluation:
    episodes, seeds, generalised = cfg.get("episodes"), cfg.get("seeds"), cfg.get("generalised", False)
    num_episodes = None if generalised else settings["num_test_episodes"]
    num_seeds = GENERALISED_SEEDS if generalised else settings["num_test_seeds"]
    arguments: dict[str, Any] = {
        "fold": cfg.fold,
        "shot": cfg.shot,
        "image_size": size,
        "augment": instantiate(cfg.augment, image_size=size, mean=mean),
        "batch_size": cfg.batch_size,
        "num_workers": cfg.num_workers,
        "seed": cfg.seed,
        "episodes_per_epoch": settings["episodes_per_epoch"],
        "num_val_episodes": settings["num_val_episodes"],
        "num_test_episodes": num_episodes if episodes is None else episodes,
        "num_test_seeds": num_seeds if seeds is None else seeds,
        "rules": EvaluationRules(**{field.name: cfg.protocol[field.name] for field in fields(EvaluationRules)}),
        "filter_novel": settings["filter_novel"],
        "novel_pixels": settings.get("novel_pixels"),
        "base_val_share": base_val_share(cfg),
        "skips": skipped_files(cfg),
        "support_mask": cfg.support_mask,
        "check_files": settings.get("check_files", 0),
        "allow_repeats": settings.get("allow_repeats", False),
        "reuse_memory_gb": cfg.reuse_memory_gb if cfg.reuse else None,
        "way": cfg.get("way", 1),
        "generalised": generalised,
        "mean": mean,
        "std": std,
        "cache_dir": Path(cfg.paths.cache_dir) / "catalogs",
    }
    return FewShotDataModule(dataset, **(arguments | changes))


def base_val_share(cfg: DictConfig) -> float:
    """Share of the training images that are kept for validation on base classes: none unless `selection=base`."""
    return float(cfg.dataset.base_val_share) if cfg.selection == "base" else 0.0


def needs_base_learner(cfg: DictConfig) -> bool:
    """Whether the method needs a base learner, which stage 1 trains, and not a backbone alone.

    Raises:
        ValueError: ``model.encoder`` is neither.
    """
    encoder = cfg.model.get("encoder", BACKBONE)
    if encoder not in (BACKBONE, BASE_LEARNER):
        raise InputError(f"model.encoder={encoder}: expected {BACKBONE} or {BASE_LEARNER}")
    return bool(encoder == BASE_LEARNER)


def build_backbone(cfg: DictConfig, **changes: Any) -> Backbone:
    """The config's backbone; `changes` replace arguments of it, where the config has them."""
    if "weights" not in changes and cfg.backbone.get("frozen") and cfg.backbone.get("weights") is None:
        log.warning("backbone.weights=null and backbone.frozen=true: the backbone is random and stays so")
    own = {"mean", "std", "feature_channels"}  # of the run
    node = {key: value for key, value in to_plain(cfg)["backbone"].items() if key not in own}
    backbone: Backbone = instantiate(node, **{key: value for key, value in changes.items() if key in node})
    return backbone


def build_base_learner(cfg: DictConfig, num_base: int, **changes: Any) -> BaseLearner:
    """An untrained base learner on the config's backbone; `changes` as of `build_backbone`."""
    channels = cfg.backbone.get("feature_channels") or _FEATURE_CHANNELS.get(cfg.backbone.name, FEATURE_CHANNELS)
    backbone = build_backbone(cfg, **changes)
    learner = BaseLearner(backbone=backbone, num_base=num_base, feature_channels=channels)
    return learner.to(memory_format=torch.channels_last)  # the same values, up to 1.4 times faster on a CPU


def build_encoder(cfg: DictConfig, num_base: int, **changes: Any) -> nn.Module:
    """The method's encoder: a backbone, or an untrained base learner; `changes` as of `build_base_learner`."""
    if needs_base_learner(cfg):
        return build_base_learner(cfg, num_base, **changes)
    return build_backbone(cfg, **changes).to(memory_format=torch.channels_last)


def build_model(cfg: DictConfig, encoder: nn.Module, *, num_shots: int | None = None) -> FewShotMethod:
    """The config's method on an encoder.

    Args:
        cfg: Its `model` holds `_target_`, and arguments beside the keys `name`, `encoder`, `trunk` and `augment`.
        encoder: From `build_encoder`; its backbone becomes what `trunk` asks for.
        num_shots: K of the training episodes; None: the config's.

    Raises:
        ValueError: An argument is unknown or out of range.
    """
    shots = cfg.shot if num_shots is None else num_shots
    prepare_encoder(cfg, encoder)
    model: FewShotMethod = instantiate(cfg.model, ("name", "trunk", "augment"), encoder=encoder, num_shots=shots)
    return model


def prepare_encoder(cfg: DictConfig, encoder: nn.Module) -> None:
    """Make the backbone give what the method declares in `model.trunk`, where it does.

    Raises:
        ValueError: It cannot, or a key is unknown.
    """
    declared = to_plain(cfg)["model"].get("trunk")
    if declared is None:
        return
    known = inspect.signature(prepare_trunk).parameters
    keys = ["dilation", *list(known)[1:]]
    if not isinstance(declared, dict):
        raise ConfigError(f"model.trunk={declared}: expected keys, of {', '.join(keys)}")
    for key in declared:
        if key not in keys:
            raise ConfigError(f"model.trunk.{key}: no such key; expected {', '.join(keys)}{did_you_mean(key, keys)}")
    backbone = encoder.backbone if isinstance(encoder, BaseLearner) else cast("Backbone", encoder)
    try:
        prepare_trunk(backbone, **{key: value for key, value in declared.items() if key in known})
    except ValueError as error:
        raise ConfigError(f"model.trunk.{error}") from error


def build_untrained(cfg: DictConfig, num_base: int, *, num_shots: int | None = None) -> FewShotMethod:
    """The config's method with arbitrary weights, for whoever fills it or counts; arguments as of the two above."""
    return build_model(cfg, build_encoder(cfg, num_base, weights=None), num_shots=num_shots)


def learns(cfg: DictConfig) -> bool:
    """Whether the method has anything to learn in stage 2; takes no memory.

    Raises:
        ValueError: An argument is unknown or out of range; one line with the key.
    """
    with torch.device("meta"):
        model = build_untrained(cfg, num_base=1)
    return any(parameter.requires_grad for parameter in model.parameters())


def check_builds(cfg: DictConfig) -> bool:
    """Refuse values that constructors of method and loss refuse, before any data is read; as `learns`."""
    instantiate(cfg.loss)
    return learns(cfg)


def refuse_to_learn(cfg: DictConfig) -> None:
    """Refuse a method that cannot be used without a checkpoint.

    Raises:
        ValueError: It has something to learn, or needs a base learner.
    """
    if not learns(cfg) and not needs_base_learner(cfg):
        return
    why = "needs a base learner (model.encoder)" if needs_base_learner(cfg) else "has to be trained"
    raise InputError(
        "ckpt is not given; expected a checkpoint, e.g. ckpt=RUN/checkpoints/best.ckpt: "
        f"model={cfg.model.name} {why}, model=prototype backbone=efficientnet_lite2 does without"
    )


def build_trained(
    cfg: DictConfig, state: dict[str, Tensor], path: str | Path, facts: Mapping[str, Any]
) -> FewShotMethod:
    """The config's method with the weights of a run.

    Args:
        cfg: The run's config, or the evaluation's that is merged with it.
        state: The network's state dict.
        path: Where it comes from, for messages.
        facts: Of the checkpoint: K of the training and number of base classes, which shape the weights.

    Raises:
        ValueError: The weights do not fit.
    """
    num_base, shot = (facts.get(key) if isinstance(facts, dict) else None for key in ("num_base", "shot"))
    if type(num_base) is not int or type(shot) is not int or num_base < 0 or shot < 1:
        raise CheckpointError(
            f"checkpoint {str(path)!r} tells of {num_base!r} base classes and {shot!r} shots; expected whole numbers, "
            "as hdmnet wrote them"
        )
    model = build_untrained(cfg, num_base, num_shots=shot)
    load_strictly(model, state, f"ckpt={path}")
    return model


def build_task(cfg: DictConfig, model: FewShotMethod, data: FewShotDataModule, **facts: Any) -> FewShotTask:
    """Loss, optimiser and metrics of stage 2; tells `data`, set up, what it has to know of the model.

    `facts` are what checkpoints are to tell of the training, by default of this one.
    """
    from hdmnet.tasks.feature_store import measure_features
    from hdmnet.tasks.few_shot import FewShotTask
    from hdmnet.tasks.several_classes import GeneralisedTask, SeveralClassesTask

    optim = cfg.optim
    data.measure_features = partial(measure_features, model, data.image_size)
    data.keeps_masks, data.marks_padding = model.takes_host_masks, model.takes_padding
    task: Callable[..., FewShotTask] = SeveralClassesTask if data.several_classes else FewShotTask
    if data.generalised:
        task = partial(GeneralisedTask, base_names=data.base_names, threshold=cfg.generalised_threshold)
    return task(
        model=model,
        class_names=data.novel_names,
        val_class_names=data.val_names,
        too_few=data.too_few_images().get("val", ()),
        validates_base=data.base_val_share > 0 or data.class_split.tests_base,
        tests_base=data.class_split.tests_base,
        absent_is_zero=cfg.protocol.absent_classes == "zero",
        num_test_seeds=data.num_test_seeds,
        loss=instantiate(cfg.loss),
        optimizer=instantiate(optim.optimizer),
        schedule=None if optim.schedule is None else instantiate(optim.schedule),
        groups={"lr": optim.lr, **optim.groups},
        image_mean=list(cfg.backbone.mean),
        image_std=list(cfg.backbone.std),
        checkpoint_extra={
            "config": to_stored(cfg),
            "facts": {"method": cfg.model.name, "shot": cfg.shot, "num_base": data.num_base, **facts},
            "class_names": list(data.novel_names),
            "versions": library_versions(),
            **git_state(),
        },
    )


def build_trainer(
    cfg: DictConfig,
    stage: str,
    *,
    callbacks: list[L.Callback],
    logger: Any,
    **changes: Any,
) -> L.Trainer:
    """A Lightning Trainer from ``cfg.trainer``, its bars headed by `stage`; `changes` replace its arguments."""
    from lightning.pytorch.callbacks import ProgressBar

    from hdmnet.run.trainer_arguments import new_trainer

    if cfg.trainer.enable_progress_bar is False:  # Lightning refuses the two together
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    trainer = new_trainer(cfg, **({"callbacks": callbacks, "logger": logger} | changes))
    head_bars(trainer, stage)
    if signals.are_handled():
        leave_sigterm_alone(trainer)
    return trainer


def warn_of_slow_precision(cfg: DictConfig) -> None:
    """Say where 16 bits would make a run slower: on a CPU or GPU that emulates bfloat16."""
    precision, accelerator = str(cfg.trainer.precision), cfg.trainer.accelerator
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        slow = precision.startswith("bf16") and not torch.cuda.is_bf16_supported(including_emulation=False)
        device = torch.cuda.get_device_name()
    else:  # where Lightning takes 16-mixed for bf16-mixed
        slow = precision.startswith(("bf16", "16")) and accelerator in ("auto", "cpu") and emulates_bfloat16()
        device = processor()
    if slow:
        log.warning(
            "trainer.precision=%s: %s has no bfloat16 instructions and emulates them, which may be far slower than "
            "32-true: `python scripts/benchmarks/benchmark.py trunk` times both",
            *(precision, device),
        )


def head_bars(trainer: L.Trainer, stage: str) -> None:
    """Say on the progress bars what runs."""
    from hdmnet.callbacks.progress import StageProgressBar

    if isinstance(trainer.progress_bar_callback, StageProgressBar):
        trainer.progress_bar_callback.stage = stage


def epoch_length(cfg: DictConfig, samples: int | None, batch_size: int, max_steps: int) -> int | None:
    """Samples an epoch over all processes, such that training stops at the end of an epoch, where it is validated.

    Where the steps do not fill whole epochs, all epochs become a little shorter. Without this a run of few steps would
    end without any validation, and a longer one would train its last steps for nothing: no checkpoint of them is kept.

    Args:
        cfg: The config.
        samples: What is asked for.
        batch_size: Of one process.
        max_steps: Optimiser steps in all; -1: no limit.

    Returns:
        At most `samples`.

    Raises:
        ValueError: They fill no batch.
    """
    if samples is not None and samples // num_processes(cfg) < batch_size:
        raise InputError(
            f"{samples} training samples an epoch on {num_processes(cfg)} process(es) fill no batch of {batch_size}; "
            "lower batch_size or raise dataset.episodes_per_epoch"
        )
    if samples is None or max_steps is None or max_steps < 1:
        return samples
    samples_per_step = batch_size * num_processes(cfg) * int(cfg.trainer.accumulate_grad_batches or 1)
    steps = samples // samples_per_step
    if steps < 1 or max_steps % steps == 0:
        return samples
    num_epochs = -(-max_steps // steps)
    return max_steps // num_epochs * samples_per_step


def num_processes(cfg: DictConfig) -> int:
    """Processes of the run; "auto", "0,2" and [0, 2] as Lightning counts them."""
    devices, nodes = cfg.trainer.devices, int(cfg.trainer.num_nodes or 1)
    if isinstance(devices, str) and "," in devices:
        devices = [part for part in devices.split(",") if part.strip()]
    if devices is None or str(devices) in ("auto", "-1"):
        return max(1 if cfg.trainer.accelerator == "cpu" else torch.cuda.device_count(), 1) * nodes
    return (int(devices) if isinstance(devices, int | str) else len(devices)) * nodes
