"""Refuses arguments of Lightning's Trainer that cannot work here, before anything is read or trained."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.profilers import PyTorchProfiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from hdmnet.config.instantiate import instantiate
from hdmnet.runtime import ranks
from hdmnet.runtime.errors import ConfigError, UserError, one_line
from hdmnet.runtime.private_api import starts_by_multiprocessing

if TYPE_CHECKING:
    from collections.abc import Callable

    import lightning as L
    from omegaconf import DictConfig

    from hdmnet.data.datasets.base import Split

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def new_trainer(cfg: DictConfig, **changes: Any) -> L.Trainer:
    """Lightning's Trainer of ``cfg.trainer``; `changes` replace arguments.

    Raises:
        ConfigError: Lightning or this package refuses an argument.
    """
    # Null is Lightning's own default; of this one it is a value.
    nulls = [str(name) for name, value in cfg.trainer.items() if value is None and name != "check_val_every_n_epoch"]
    if cfg.trainer.profiler == "pytorch":  # names of modules come by hooks, which a copy of the trunk would copy
        changes = {"profiler": PyTorchProfiler(record_module_names=False), **changes}
    try:
        trainer: L.Trainer = instantiate(cfg.trainer, nulls, **changes)
    except UserError:
        raise
    except Exception as error:  # many kinds; whichever it is, an argument is wrong
        raise ConfigError(f"trainer: {one_line(error)}") from error
    strategy = trainer.strategy
    # A strategy from outside is its user's; Lightning's others shard the weights, or run where a result is lost.
    ours = type(strategy) in (SingleDeviceStrategy, DDPStrategy) or not type(strategy).__module__.startswith(
        "lightning"
    )
    if not ours or starts_by_multiprocessing(trainer):
        raise _wrong(cfg, "strategy", "auto or ddp: a process a device, each with all weights, started as a command")
    if trainer.precision not in PRECISIONS:
        raise _wrong(cfg, "precision", f"{', '.join(PRECISIONS)} or null: the weights stay 32 bits wide")
    parallel = isinstance(strategy, DDPStrategy)
    if parallel and cfg.trainer.use_distributed_sampler:
        raise _wrong(cfg, "use_distributed_sampler", "false: the samplers here share the episodes out themselves")
    if parallel and cfg.trainer.sync_batchnorm and strategy.root_device.type == "cpu":
        raise _wrong(cfg, "sync_batchnorm", "false on CPUs: torch synchronises batch normalisation on GPUs only")
    by_hand = {"NODE_RANK", "GROUP_RANK"} & os.environ.keys()
    if trainer.num_nodes > 1 and ranks.launched_by() is None and not by_hand:
        raise _wrong(cfg, "num_nodes", "1, or a start of every machine's processes by torchrun or srun")
    return trainer


def check_trainer(cfg: DictConfig, *, trains: bool) -> None:
    """Refuse what cannot work, before any data is read: nothing is kept of the Trainer that is built for it.

    Args:
        cfg: An entry point's config.
        trains: Whether it trains; else it tests only.

    Raises:
        ConfigError: An argument is refused; one line with its key.
    """
    trainer = new_trainer(cfg, callbacks=[Checkpoint()] if trains else [], logger=False)
    if not trains:
        if trainer.limit_test_batches == 0:
            raise _wrong(cfg, "limit_test_batches", "null or at least 1 batch: an evaluation does nothing but test")
        return
    if trainer.limit_train_batches == 0:
        raise _wrong(cfg, "limit_train_batches", "null or at least 1 batch: nothing would be trained")
    for key in ("max_steps", "max_epochs"):
        if cfg.trainer[key] == 0:
            raise _wrong(cfg, key, "-1 (no limit) or at least 1: nothing would be trained")
    if cfg.optim.schedule is not None and cfg.trainer.max_steps in (-1, None) and cfg.trainer.max_epochs == -1:
        raise _wrong(cfg, "max_epochs", "a limit, here or by trainer.max_steps: the learning rate falls until the end")


def check_batches(cfg: DictConfig, count: Callable[[Split], int], *, trains: bool = True) -> None:
    """Refuse limits that leave no batch, which Lightning would do after stage 1 or, for the test, at the very end.

    Args:
        cfg: An entry point's config, whose arguments `check_trainer` has taken.
        count: Batches of a process: of "train" in an epoch of stage 2, of "val" and "test" the fewest there can be.
        trains: Whether the method learns; else it is only validated and tested.

    Raises:
        ConfigError: One line with the key.
    """
    arguments = cfg.trainer
    if arguments.fast_dev_run:
        return
    splits: tuple[Split, ...] = ("train", "val", "test") if trains else ("val", "test")
    limits = {split: f"limit_{split}_batches" for split in splits}
    if arguments.overfit_batches and trains:
        limits["train"] = limits["val"] = "overfit_batches"
    for split, name in limits.items():
        # A number with a point is a share.
        if (
            isinstance(arguments[name], float)
            and int((batches := count(split)) * arguments[name]) == 0 < arguments[name]
        ):
            raise _wrong(cfg, name, f"at least {1 / batches:.3g}, or a number of batches: {split} has {batches}")
    if not trains:
        return
    interval, every, limit = arguments.val_check_interval, arguments.check_val_every_n_epoch, arguments[limits["train"]]
    if not isinstance(interval, int) or every is None or arguments[limits["val"]] == 0:
        return
    batches = count("train")
    if limit is not None:
        batches = int(batches * limit) if isinstance(limit, float) and limit <= 1 else min(batches, int(limit))
    if interval > batches:
        expected = f"at most {batches}, the batches of an epoch, or trainer.check_val_every_n_epoch=null to count all"
        raise _wrong(cfg, "val_check_interval", expected)


def _wrong(cfg: DictConfig, key: str, expected: str) -> ConfigError:
    value = cfg.trainer[key]
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
    return ConfigError(f"trainer.{key}={shown}: expected {expected}")
