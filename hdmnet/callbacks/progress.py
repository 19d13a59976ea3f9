"""The progress bar of both stages: says which one is running."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm


class StageProgressBar(TQDMProgressBar):
    """Lightning's bar, headed by what runs instead of "Epoch 0" and "Testing DataLoader 0".

    A run trains twice and tests up to twice; the same heading four times would tell a reader nothing.

    Args:
        refresh_rate: Batches between two updates; 0 shows no bar.
        stage: Heading, e.g. "stage 1"; set for each trainer that is built.
    """

    runs_in = ("train", "base_learner", "test", "control")

    def __init__(self, refresh_rate: int = 10, stage: str = "") -> None:
        super().__init__(refresh_rate=refresh_rate)
        self.stage = stage

    @property
    def train_description(self) -> str:
        """Heading of the training bar before its first epoch."""
        return self.stage or str(super().train_description)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What stands beside the training bar; the loss too, read only when the bar is drawn."""
        known = trainer.callback_metrics
        losses = {name: float(known[name]) for name in ("base/loss", "train/loss") if name in known}
        return losses | super().get_metrics(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Head the training bar with the stage and the epoch, counted from 0 as in the log."""
        heading = f"{self.train_description}, epoch {trainer.current_epoch}"
        _restart(self.train_progress_bar, heading, self.total_train_batches)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Head the validation bar."""
        if self.has_dataloader_changed(dataloader_idx):
            _restart(self.val_progress_bar, "validation", self.total_val_batches_current_dataloader)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Head the test bar with the stage."""
        if self.has_dataloader_changed(dataloader_idx):
            _restart(self.test_progress_bar, self.stage or "test", self.total_test_batches_current_dataloader)


def _restart(bar: Tqdm, heading: str, total: float) -> None:
    """Begin a bar anew; `total` is infinite where nobody knows it."""
    bar.set_description(heading, refresh=False)
    bar.reset(total if math.isfinite(total) else None)
    bar.initial = 0
