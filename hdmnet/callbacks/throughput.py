"""How fast a training runs and what it waits for: episodes a second, data wait, gradient norm, GPU memory."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from hdmnet.runtime.private_api import writes_log


class Throughput(Callback):
    """Log the training's speed once every `trainer.log_every_n_steps` optimiser steps.

    ===================================  =========================================================================
    `throughput/episodes_per_second`     of all processes
    `throughput/data_wait`               share of the time that the loop waited for the loader and the copy to the
                                         device, 0 to 1 (of this process)
    `throughput/gpu_memory_gib`          most that tensors have taken on the first GPU so far; not on a CPU
    `optim/grad_norm`                    L2 norm of the gradient of all parameters, before clipping
    ===================================  =========================================================================

    The figures are of the steps since the last ones. Validations, checkpoints and the first batch after them, which
    the workers prepare meanwhile, are left out. On a GPU the clock is the loop's own: nothing is synchronised.
    """

    def __init__(self) -> None:
        self._mark: float | None = None  # when the last batch ended; None: what came since is not training
        self._counts = False  # whether the running batch counts
        self._last_step = -1
        self._reset()

    def _reset(self) -> None:
        self._waited = self._elapsed = 0.0
        self._episodes = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the start of the workers out."""
        self._mark = None
        self._last_step = trainer.global_step

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the validation, and the checkpoint after it, out."""
        self._mark = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Add up what was waited for the batch."""
        now = time.perf_counter()
        self._counts = self._mark is not None
        if self._mark is not None:
            self._waited += now - self._mark
            self._elapsed += now - self._mark
        self._mark = now

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Log the gradient's norm, which clipping has not touched yet."""
        if _is_due(trainer):
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            pl_module.log("optim/grad_norm", torch.nn.utils.get_total_norm(gradients))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add up the step, and log where it is due."""
        now = time.perf_counter()
        if self._counts and self._mark is not None:
            self._elapsed += now - self._mark
            self._episodes += len(batch.query_image)
        self._mark = now
        stepped, self._last_step = trainer.global_step > self._last_step, trainer.global_step
        if stepped and _is_due(trainer):  # not while gradients are being accumulated
            self._log(trainer, pl_module)

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._elapsed > 0:
            rate = self._episodes * trainer.world_size / self._elapsed
            pl_module.log("throughput/episodes_per_second", rate)
            pl_module.log("throughput/data_wait", self._waited / self._elapsed)
            self._reset()
        if pl_module.device.type == "cuda":
            pl_module.log("throughput/gpu_memory_gib", torch.cuda.max_memory_allocated(pl_module.device) / 2**30)


def _is_due(trainer: Trainer) -> bool:
    """Whether the figures of this batch are logged."""
    return bool(trainer.loggers) and writes_log(trainer)
