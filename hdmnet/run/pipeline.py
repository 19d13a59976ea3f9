"""From a composed config to a finished run: stage 1, stage 2, test, result; see `train` and `evaluate`."""

from __future__ import annotations

import logging
import math
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import numpy as np
import torch

from hdmnet.callbacks.build import build_callbacks
from hdmnet.callbacks.checkpoint import RunCheckpoint
from hdmnet.callbacks.resume_state import KEY
from hdmnet.config.values import to_plain
from hdmnet.data.datasets.base import label_table
from hdmnet.loggers.build import build_loggers, check_loggers
from hdmnet.loggers.wandb import one_wandb_run
from hdmnet.metrics import FewShotIoU
from hdmnet.models.several_views import add_views
from hdmnet.models.trunk import FrozenTrunk
from hdmnet.run import fall_back
from hdmnet.run.baselines import build_controls, describe_baselines, leave, run_along, run_apart
from hdmnet.run.build import (
    build_dataset,
    build_encoder,
    build_few_shot_data,
    build_model,
    build_task,
    build_trained,
    build_trainer,
    check_builds,
    epoch_length,
    head_bars,
    needs_base_learner,
    num_processes,
    refuse_to_learn,
    warn_of_slow_precision,
)
from hdmnet.run.checkpoints import load_official, load_strictly, run_entry, run_state_dict
from hdmnet.run.compare_results import compare_results, print_comparison, training_facts
from hdmnet.run.disk_check import check_free_disk
from hdmnet.run.pretrained import WORD, begin_from_pretrained, check_beginning
from hdmnet.run.result import make_result, print_fold_table, write_result
from hdmnet.run.stage1 import obtain_base_learner
from hdmnet.run.told import describe_end, describe_plan
from hdmnet.run.trainer_arguments import check_batches, check_trainer
from hdmnet.runtime import ranks, signals
from hdmnet.runtime.checkpoint_file import BEST, RUN_KEY, newest_whole, read_checkpoint, write_durably
from hdmnet.runtime.errors import InputError
from hdmnet.runtime.home import expand_home
from hdmnet.runtime.malloc import keep_freed_memory
from hdmnet.runtime.provenance import git_state, peak_memory_mb
from hdmnet.runtime.warnings import silence_known_warnings
from hdmnet.tasks.controls import ONES
from hdmnet.tasks.episode_table import EPISODES
from hdmnet.tasks.intervals import estimate
from hdmnet.tasks.summary import summarise_seeds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from omegaconf import DictConfig
    from torch import nn

    from hdmnet.data.datamodules.few_shot import FewShotDataModule
    from hdmnet.models.method import FewShotMethod
    from hdmnet.tasks.few_shot import FewShotTask

log = logging.getLogger(__name__)


class Timer:
    """Seconds by phase, of the clock and of this process's processors; use as ``with timer("fit"):``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.processor_seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the duration of what is inside to the phase."""
        start, processor = time.perf_counter(), time.process_time()
        yield
        self.seconds[phase] = round(self.seconds.get(phase, 0.0) + time.perf_counter() - start, 2)
        used = self.processor_seconds.get(phase, 0.0) + time.process_time() - processor
        self.processor_seconds[phase] = round(used, 2)


@one_wandb_run()
def train(cfg: DictConfig) -> dict[str, Any]:
    """Run the main job: base learner if one is needed and there is none yet, method, test; gives the result.

    A method that has nothing to learn is validated and tested as it is; its checkpoint holds its trunk.

    Args:
        cfg: The config of `python -m hdmnet.train`, validated, its paths absolute.

    Raises:
        ValueError: Data, checkpoint or config do not fit.
        FileNotFoundError: Something on disk is missing.
        Stopped: A signal has ended the run.
    """
    silence_known_warnings()
    keep_freed_memory()
    git_state()  # now: what is committed while the run goes on is not what ran
    timer = Timer()
    warn_of_slow_precision(cfg)
    with timer("data"):
        learns = check_builds(cfg)
        check_trainer(cfg, trains=learns)
        check_loggers(cfg)
        point = resume_point(cfg) if learns else None
        start = _check_config(cfg, resumed=point is not None)
        dataset = build_dataset(cfg)
        data = build_few_shot_data(cfg, dataset)
        if needs_base_learner(cfg):
            label_table(len(dataset.class_names), data.class_split.train)  # refuses more classes than a map holds
        for stage in (None,) if learns else ("validate", "test"):
            data.setup(stage)  # every list, mask and class count is checked before any training
        check_free_disk(cfg, data.num_base)
        if learns:
            data.episodes_per_epoch = epoch_length(cfg, data.episodes_per_epoch, cfg.batch_size, cfg.trainer.max_steps)
        check_batches(cfg, partial(data.count_batches, num_processes(cfg)), trains=learns)
        stage1 = needs_base_learner(cfg) and start is None and point is None
        log.info("%s", describe_plan(cfg, data, stage1=stage1, learns=learns))
    with timer("base_learner"):
        L.seed_everything(cfg.seed, workers=True, verbose=False)  # a backbone may begin with random weights
        encoder: nn.Module
        if start is not None or point is not None:  # it holds its encoder: nothing to train or to look for
            encoder = build_encoder(cfg, data.num_base, weights=None)
        elif stage1:
            encoder = obtain_base_learner(cfg, dataset)
        else:
            encoder = build_encoder(cfg, data.num_base)
    # Again, so that stage 2 starts alike whether stage 1 was trained just now or found on disk.
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    task = build_task(cfg, build_model(cfg, encoder), data)
    if start is not None:
        load_strictly(task.model, run_state_dict(start), f"ckpt={cfg.ckpt}")
    elif cfg.ckpt == WORD:
        begin_from_pretrained(task.model)
    trainer = build_trainer(cfg, "stage 2", callbacks=build_callbacks(cfg, "train"), logger=build_loggers(cfg, "train"))
    _speed_up(cfg, task.model, trainer.strategy.root_device)
    kept = _checkpoint_callback(trainer)  # refused before anything is trained
    if not learns:
        log.info("stage 2: model=%s has nothing to learn, it is validated and tested as it is", cfg.model.name)
        with timer("validation"):
            path = _keep_untrained(cfg, task, data, trainer)
        return test(cfg, task, data, trainer, timer, checkpoint=path, trained=None, trained_on=None, training=None)
    if point is not None:
        fall_back.undo(kept.dirpath)
    with timer("train"), signals.polling():
        trainer.fit(task, datamodule=data, ckpt_path=point)
    timer.seconds["train"] += round(kept.seconds_before, 2)
    chosen, facts = _chosen_checkpoint(cfg, trainer), None
    if chosen is not None:
        load_strictly(task.model, run_state_dict(_run_checkpoint(chosen)), str(chosen))
    if cfg.optim.get("fall_back") and chosen is not None and trainer.limit_val_batches > 0:
        with timer("fall_back"):
            choice = fall_back.choose(cfg, task, data, chosen)
        if choice is not None:
            cfg, task, chosen, facts = choice.cfg, choice.task, choice.checkpoint, choice.facts
            kept.best_model_score = choice.val_miou
    return test(cfg, task, data, trainer, timer, checkpoint=chosen, trained=None, trained_on=None, training=facts)


def _speed_up(cfg: DictConfig, model: FewShotMethod, device: torch.device) -> None:
    """Do what `compile` and `keep_features_gb` ask for.

    Raises:
        ValueError: Features cannot be kept, or would be of no use.
    """
    compiled = cfg.get("compile")  # a job written by an earlier version lacks both
    if cfg.get("keep_features_gb"):
        trunk, asked = getattr(model, "trunk", None), f"keep_features_gb={cfg.keep_features_gb:g}"
        if not isinstance(trunk, FrozenTrunk):
            raise InputError(f"{asked}: model={cfg.model.name} has no trunk that keeps features; leave it out")
        if device.type != "cpu" or compiled is not None:
            raise InputError(f"{asked}: only a CPU without compile keeps features; expected 0")
        if cfg.augment.get("name") not in ("none", "flip"):
            raise InputError(f"{asked}: augmented pictures never repeat; expected augment=none or augment=flip")
        trunk.keep_features(cfg.keep_features_gb * 1e9)
    if compiled is not None:
        model.compile(mode=compiled, dynamic=False)


def _keep_untrained(cfg: DictConfig, task: FewShotTask, data: FewShotDataModule, trainer: L.Trainer) -> Path | None:
    """Validate a method that has nothing to learn, and leave it where the best checkpoint of a training would be."""
    kept = _checkpoint_callback(trainer)
    path: Path | None = None if cfg.trainer.fast_dev_run else kept.dirpath / BEST
    if path is not None and ranks.rank() == 0:
        try:
            write_durably({"state_dict": task.state_dict(), RUN_KEY: task.checkpoint_extra}, path)
        except OSError as error:
            log.warning("CHECKPOINT NOT WRITTEN: %s: %s; the run goes on", path, error.strerror or error)
            kept.failures, path = kept.failures + 1, None
    if trainer.limit_val_batches > 0:
        head_bars(trainer, "validation")
        (figures,) = trainer.validate(task, datamodule=data, verbose=False)
        kept.best_model_score = figures.get(kept.monitor)  # what settings are searched by
    return path


@one_wandb_run()
def evaluate(cfg: DictConfig, checkpoint: dict[str, Any] | None) -> dict[str, Any]:
    """Run the test protocol on a checkpoint; gives the result.

    Args:
        cfg: The config of `python -m hdmnet.evaluate`, merged with the checkpoint's.
        checkpoint: The content of ``cfg.ckpt``, of a run of ours or of a method's official release; None: there is
            none, the method has nothing to learn.

    Raises:
        ValueError: Data or checkpoint do not fit the config.
        FileNotFoundError: Something on disk is missing.
    """
    silence_known_warnings()
    keep_freed_memory()
    git_state()  # now: what is committed while the run goes on is not what ran
    timer = Timer()
    warn_of_slow_precision(cfg)
    with timer("data"):
        check_trainer(cfg, trains=False)
        check_loggers(cfg)
        task, data = prepare_evaluation(cfg, checkpoint)
    trainer = build_trainer(cfg, "test", callbacks=build_callbacks(cfg, "test"), logger=build_loggers(cfg, "evaluate"))
    if checkpoint is None:
        return test(cfg, task, data, trainer, timer, checkpoint=None, trained=None, trained_on=None, training=None)
    path = expand_home(cfg.ckpt).absolute()
    entry = checkpoint.get(RUN_KEY)
    facts = training_facts(path, entry)
    return test(
        cfg, task, data, trainer, timer, checkpoint=path, trained=facts, trained_on=_trained_on(entry), training=None
    )


def prepare_evaluation(cfg: DictConfig, checkpoint: dict[str, Any] | None) -> tuple[FewShotTask, FewShotDataModule]:
    """Build what `evaluate` tests; arguments and refusals as there.

    Returns:
        The task, which holds the checkpoint's weights, and the episodes, set up for the test.
    """
    if checkpoint is None:
        refuse_to_learn(cfg)
    entry = None if checkpoint is None else run_entry(checkpoint, cfg.ckpt)
    dataset = build_dataset(cfg)
    data = build_few_shot_data(cfg, dataset)
    facts = {} if entry is None else entry["facts"]
    if data.generalised:
        _refuse_other_base_classes(cfg, entry, data.num_base)
    data.setup("test")
    if checkpoint is None:
        L.seed_everything(cfg.seed, workers=True, verbose=False)
        model = build_model(cfg, build_encoder(cfg, data.num_base))
    elif entry is None:
        settings = to_plain(cfg)["model"]
        model = load_official(cfg.model.name, cfg.ckpt, dataset.name, cfg.backbone.name, cfg.shot, settings)
    else:
        _refuse_other_fold(cfg, checkpoint, dataset.novel_for)
        model = build_trained(cfg, run_state_dict(checkpoint), cfg.ckpt, facts)
    return build_task(cfg, add_views(model, cfg.test_scales, cfg.test_flip), data, **facts), data


def test(
    cfg: DictConfig,
    task: FewShotTask,
    data: FewShotDataModule,
    trainer: L.Trainer,
    timer: Timer,
    *,
    checkpoint: Path | None,
    trained: dict[str, Any] | None,
    trained_on: dict[str, Any] | None,
    training: dict[str, Any] | None,
) -> dict[str, Any]:
    """Test, with the controls, write ``result.json`` and print the table; gives the result.

    Args:
        cfg: The config.
        task: Holds the weights to test.
        data: Set up for the test.
        trainer: Runs it.
        timer: Gets the phases "test" and "controls", which is what of these is not done in the test.
        checkpoint: Which weights they are, for the result; None: they are in no file.
        trained: What is known of the run that made them, to compare with.
        trained_on: Data set, fold and shots of that run, where they are not the config's own.
        training: Whether it helped, see `hdmnet.run.fall_back`.
    """
    head_bars(trainer, "test")
    if task.tests_base:
        log.warning(
            "no class of %s is left out: its test is on classes of the training, no few-shot figure", data.dataset.name
        )
    tests = trainer.limit_test_batches > 0
    controls = build_controls(cfg, task.model) if tests and not data.several_classes else None
    with timer("test"):
        along = controls is not None and run_along(task, data, controls)
        if tests:
            trainer.test(task, datamodule=data, verbose=False)
        else:
            task.test_nothing()
    figures = _figures(task, data)
    baselines, measured = None, {}
    if controls is not None:
        with timer("controls"):
            if not along:
                run_apart(cfg, task, data, controls)
            leave(task, data)
            baselines = describe_baselines(controls, task.episodes)
            if cfg.dataset.controls:
                measured = _controls(task, data)
    known = {
        "controls": measured,
        "baselines": baselines,
        "checkpoint": None if checkpoint is None else str(checkpoint),
    }
    known |= {key: one for key, one in {"training": training, "trained_on": trained_on}.items() if one is not None}
    facts = [data.result_facts(), *_facts_of_trainer(trainer, timer), known]
    result = make_result(to_plain(cfg), figures, *facts)
    if trained is not None:
        result["compared_with"] = compare_results(result, trained)
    for logger in trainer.loggers if baselines else ():
        if hasattr(logger, "log_baselines"):
            logger.log_baselines(baselines)
    if trainer.is_global_zero:
        print_fold_table(result)  # first: the figures are not lost where they cannot be written
        task.episodes.write(Path(cfg.paths.run_dir) / EPISODES)
        write_result(Path(cfg.paths.run_dir) / "result.json", result)  # last: where it is, a run is finished
        if trained is not None:
            print_comparison(result["compared_with"])
        print(f"\n{describe_end(cfg, checkpoint)}", flush=True)
    return result


def _facts_of_trainer(trainer: L.Trainer, timer: Timer) -> list[dict[str, Any]]:
    """What a result says of how it came about: what callbacks tell, times, memory, processes."""
    told = [cast(Any, one).result_facts() for one in cast(Any, trainer).callbacks if hasattr(one, "result_facts")]
    measured = {
        "timings": timer.seconds,
        "processor_seconds": timer.processor_seconds,
        "peak_memory_mb": peak_memory_mb(),
        "num_processes": trainer.world_size,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return [{"val_miou": None, "checkpoint_failures": 0, "skipped_steps": {}}, *told, measured]


def _figures(task: FewShotTask, data: FewShotDataModule) -> dict[str, dict[str, Any]]:
    """Of each prediction what `summarise_seeds` gives, and the interval of its mIoU."""
    too_few = data.too_few_images().get(data.test_list, {})
    figures = {}
    for name, seeds in task.test_results.items():
        found = estimate(task.episodes, name, absent_is_zero=task.absent_is_zero)
        ends = None if found is None else found.interval
        interval = None if ends is None else [max(ends[0], 0.0), min(ends[1], 1.0)]
        summary = summarise_seeds(seeds, task.class_names, too_few=too_few)
        figures[name] = {**summary, "miou_interval": interval}
    return figures


def _controls(task: FewShotTask, data: FewShotDataModule) -> dict[str, float]:
    """The entry `controls` of a result, see `hdmnet.run.result`."""
    ones = estimate(task.episodes, ONES)
    return {
        "every_object_foreground": every_object_foreground(data),
        ONES: math.nan if ones is None else ones.values[0],
    }


def _trained_on(entry: dict[str, Any] | None) -> dict[str, Any] | None:
    """What a run's checkpoint was trained on; None of others' files, which do not say."""
    if entry is None:
        return None
    config = entry["config"]
    return {"dataset": config["dataset"]["name"], "fold": config["fold"], "shot": config["shot"]}


# --------------------------------------------------------------------------------------------------------- controls


def every_object_foreground(data: FewShotDataModule) -> float:
    """The mIoU, of the first seed, of an oracle that knows the true objects, but not which: all are foreground."""
    metric = FewShotIoU(len(data.novel_names))
    index = {value: place for place, value in enumerate(data.class_split.test)}
    for episode in data.test_manifests[0]:
        target = data.dataset.read_class_mask(episode.query_id, episode.class_value)
        labelled = np.zeros(target.shape, dtype=bool)
        for value in data.dataset.class_areas(episode.query_id):
            labelled |= data.dataset.read_class_mask(episode.query_id, value) == 1
        class_index = torch.tensor([index[episode.class_value]])
        metric.update(torch.from_numpy(labelled)[None], torch.from_numpy(target)[None], class_index)
    return float(metric.compute()["miou"])


# --------------------------------------------------------------------------------------------------------- checkpoints


def resume_point(cfg: DictConfig) -> Path | None:
    """The checkpoint that the run goes on from by `resume`, a run's folder or a checkpoint; None where it begins.

    Raises:
        ValueError: There are checkpoints, and all are damaged; or the one named is not of a training.
        FileNotFoundError: The one named is not there.
    """
    if cfg.resume is None:
        return None
    path = Path(cfg.resume)
    point = newest_whole(path / "checkpoints") if path.is_dir() else path
    if point is None:
        log.info("resume: no checkpoint in %s yet, the run begins from the start", path)
        return None
    content = _run_checkpoint(point)
    if KEY not in content:
        raise InputError(f"resume={cfg.resume}: {point} holds weights only; ckpt=PATH begins a new run from them")
    log.info("resume: from step %d, %s", content["global_step"], point)
    return point


def _check_config(cfg: DictConfig, *, resumed: bool) -> dict[str, Any] | None:
    """Refuse what can be refused before the masks are scanned, which takes its time.

    Returns:
        The content of the checkpoint that a new run begins from; None where it begins from nothing, or is resumed.
    """
    if cfg.callbacks.get("checkpoint") is None:
        raise InputError("callbacks.checkpoint is missing; a run needs it to choose the weights that are tested")
    if cfg.ckpt is not None and cfg.base_ckpt is not None:
        raise InputError("ckpt and base_ckpt are both given; expected one: a run's ckpt holds its base learner")
    if cfg.base_ckpt is not None and not needs_base_learner(cfg):
        raise InputError(f"base_ckpt is given, but model={cfg.model.name} has no base learner; leave it out")
    if resumed:
        return None
    if cfg.base_ckpt is not None:
        read_checkpoint(cfg.base_ckpt)
    if cfg.ckpt is None:
        return None
    if cfg.ckpt == WORD:
        check_beginning(cfg)
        return None
    start = _run_checkpoint(cfg.ckpt)
    _refuse_other_fold(cfg, start)
    return start


def _refuse_other_fold(cfg: DictConfig, checkpoint: dict[str, Any], novel_for: str | None = None) -> None:
    """Refuse a run's checkpoint that has seen the novel classes of the config's fold, maybe of another data set."""
    trained = checkpoint[RUN_KEY]["config"]
    if trained["dataset"]["name"] in (cfg.dataset.name, novel_for) and trained["fold"] != cfg.fold:
        raise InputError(
            f"fold={cfg.fold}: its novel classes were base classes of ckpt={cfg.ckpt}, trained on fold "
            f"{trained['fold']}; expected fold={trained['fold']}, or another data set"
        )


def _refuse_other_base_classes(cfg: DictConfig, entry: dict[str, Any] | None, num_base: int) -> None:
    """Refuse a generalised test without base learner, or on other base classes than a run's has learnt."""
    if not needs_base_learner(cfg):
        raise InputError(
            f"generalised=true: model={cfg.model.name} has no base learner; expected a checkpoint of a method that has "
            "one (model=hdmnet, model=bam)"
        )
    if entry is None:
        return
    name, known = entry["config"]["dataset"]["name"], entry["facts"].get("num_base")
    if name != cfg.dataset.name or known != num_base:
        raise InputError(
            f"generalised=true: ckpt={cfg.ckpt} has learnt {known} base classes of {name}, and "
            f"dataset={cfg.dataset.name} has {num_base} on fold={cfg.fold}; expected the data set of the training"
        )


def _chosen_checkpoint(cfg: DictConfig, trainer: L.Trainer) -> Path | None:
    """The checkpoint to test, by `selection`; None where there is none: the last weights, which are at hand."""
    if cfg.trainer.fast_dev_run:
        return None
    kept = _checkpoint_callback(trainer)
    best = "" if cfg.selection == "last" else kept.best_model_path
    chosen = best or kept.last_model_path
    if cfg.selection != "last" and chosen and not best and not kept.failures:
        log.warning(
            "selection=%s, but there is no best checkpoint, as no validation ran: the LAST one is tested in its place",
            cfg.selection,
        )
    if kept.failures and not best and cfg.selection != "last":
        log.warning("no best checkpoint could be written: the LAST weights are tested in its place")
        return Path(chosen) if chosen else None
    if kept.failures and not chosen:
        return None
    if not chosen:
        raise InputError(
            "training wrote no checkpoint; give it at least one step (trainer.max_steps, dataset.episodes_per_epoch)"
        )
    return Path(chosen)


def _checkpoint_callback(trainer: L.Trainer) -> RunCheckpoint:
    """What keeps the run's checkpoints."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, RunCheckpoint):
            return callback
    raise InputError("callbacks.checkpoint is another callback; expected hdmnet.callbacks.checkpoint.RunCheckpoint")


def _run_checkpoint(path: str | Path) -> dict[str, Any]:
    content = read_checkpoint(path)
    if run_entry(content, path) is None:
        raise InputError(
            f"checkpoint {str(path)!r} is not of an hdmnet run; expected checkpoints/best.ckpt of a run's folder"
        )
    return content
