"""Private interfaces of other libraries that are used here, each with its reason and a test that fails when it changes.

Imports only OmegaConf: Lightning and PyTorch take seconds.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from torch import Tensor
    from torch.optim import Optimizer

# Hydra's own sweeper, as Hydra's config of it names it: `hydra/sweeper=basic` would refuse the keys of conf/sweep.
BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"

# The entry of a saved training loop that counts optimiser steps; a resumed run writes it for its own batch size.
STEPS_KEY = "_batches_that_stepped"


def hydra_parser() -> argparse.ArgumentParser:
    """The parser of Hydra's flags: asked first, it answers an unknown flag in one line; Hydra prints its usage."""
    from hydra._internal.utils import get_args_parser

    parser: argparse.ArgumentParser = get_args_parser()
    return parser


def full_key(node: Any) -> str:
    """Dotted key of a config node below its root, for messages; OmegaConf tells it only in its own errors."""
    return str(node._get_full_key(None) or "")


def writes_log(trainer: Trainer) -> bool:
    """Whether Lightning writes its log after this batch; its own callbacks ask in the same way."""
    return bool(trainer._logger_connector.should_update_logs)


def starts_by_multiprocessing(trainer: Trainer) -> bool:
    """Whether the ranks are spawned or forked (`ddp_spawn`, `ddp_notebook`): what they learn ends with them."""
    from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

    return isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)


def leave_sigterm_alone(trainer: Trainer) -> None:
    """Take SIGTERM from Lightning, where `hdmnet.runtime.signals` handles it.

    Lightning's own handler lets the processes of a DDP job wait for one another wherever the signal meets them, for
    ever where it meets them at different places. It is called before the handler that it has found, which is ours.
    """
    cast(Any, trainer)._signal_connector._sigterm_notifier_fn = lambda *_: None


def begin_epoch(trainer: Trainer) -> None:
    """Let a resumed fit begin its epoch as any other one; with `max_steps` set Lightning takes it for interrupted."""
    from lightning.pytorch.loops.loop import _Loop

    loop = trainer.fit_loop
    cast(Any, _Loop.restarting).fset(loop, False)  # not the subclass's setter, which keeps the mark
    loop.epoch_loop.reset_restart_stage()


def fuse_optimizer(optimizer: Optimizer) -> None:
    """Let torch's optimiser step in one kernel where it can; one that was told how to keeps to it.

    Not by its argument `fused`: with that, Lightning refuses to clip gradients.
    """
    for group in optimizer.param_groups:
        if "fused" in group and not group["fused"] and group.get("foreach") is None:
            group["fused"] = True


def steps_by_flag(optimizer: Optimizer) -> bool:
    """Whether `leave_step_out` works: torch's fused optimisers look for a flag that `GradScaler` sets.

    Not at the first step: SGD would be left with a momentum of arbitrary values.
    """
    return bool(optimizer.state) and all(group.get("fused") for group in optimizer.param_groups)


def leave_step_out(optimizer: Optimizer, flag: Tensor) -> None:
    """Let the optimiser's next step change nothing where a flag () bool on its device is set; waits for nothing."""
    cast(Any, optimizer).grad_scale = None
    cast(Any, optimizer).found_inf = flag.float()
