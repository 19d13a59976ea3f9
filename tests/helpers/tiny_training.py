"""A training of milliseconds on which all shows that a resume could get wrong: samples, dropout, schedule, log."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader

from hdmnet.callbacks.checkpoint import RunCheckpoint
from hdmnet.data.episodes.samplers import EpochSampler
from hdmnet.loggers.csv import CsvLogger
from hdmnet.runtime import signals
from hdmnet.runtime.private_api import leave_sigterm_alone
from hdmnet.tasks.schedule import poly_schedule


class Killed(Exception):
    """Stands for whatever ends a process."""


class Data(L.LightningDataModule):
    """Samples are their global indices; what `FoldDataModule` has for a resume."""

    def __init__(self, samples: int = 12, batch_size: int = 2, world: tuple[int, int] = (0, 1)) -> None:
        super().__init__()
        self.samples, self.batch_size, self.world = samples, batch_size, world
        self.start: tuple[int, int] = (0, 0)
        self.samples_per_epoch: int | None = None

    def train_dataloader(self) -> Any:
        self.samples_per_epoch = self.samples_per_epoch or self.samples
        rank, size = self.world
        sampler = EpochSampler(self.samples_per_epoch, rank=rank, world_size=size, start=self.start)
        return DataLoader(Indices(), self.batch_size, sampler=sampler, drop_last=True, generator=torch.Generator())

    def val_dataloader(self) -> Any:
        return DataLoader(Indices(), 1, sampler=range(3), generator=torch.Generator())


class Indices:
    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(index)


class Task(L.LightningModule):
    """Logs a loss that dropout makes random and a score that goes up and down.

    Args:
        seen: Gets (epoch, indices) of every batch.
        kill: Called as (place, how often it was reached); may raise.
    """

    def __init__(self, seen: list[Any], kill: Callable[[str, int], None] = lambda place, count: None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.seen, self.kill = seen, kill
        self.counts: dict[str, int] = {}

    def reach(self, place: str) -> None:
        self.counts[place] = self.counts.get(place, 0) + 1
        self.kill(place, self.counts[place])

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.reach("train")
        self.seen.append((self.trainer.current_epoch, batch.tolist()))
        features = torch.stack([torch.sin(batch * scale) for scale in (0.1, 0.3, 0.7, 1.1)], dim=1)
        loss = self.net(features).square().mean()
        self.log("train/loss", loss.detach())
        return loss

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.reach("val")

    def on_validation_epoch_end(self) -> None:
        score = torch.sin(1e3 * next(self.parameters()).sum()).item()
        self.log("val/miou", score)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        steps = int(self.trainer.estimated_stepping_batches)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": poly_schedule(optimizer, steps, 0.9), "interval": "step"},
        }


def fit(
    folder: Path,
    *,
    resume: Path | None = None,
    kill: Callable[[str, int], None] = lambda place, count: None,
    data: Data | None = None,
    minutes: float = 0.0,
    **trainer: Any,
) -> tuple[Task, RunCheckpoint]:
    """Train; `trainer` are arguments of Lightning's."""
    callback = RunCheckpoint(dirpath=folder / "checkpoints", monitor="val/miou", every_n_minutes=minutes)
    learning_rate = L.pytorch.callbacks.LearningRateMonitor("step")
    arguments: dict[str, Any] = {"max_epochs": -1, "max_steps": 15, "num_sanity_val_steps": 0} | trainer
    task = Task([], kill)
    one = L.Trainer(
        accelerator="cpu", logger=CsvLogger(folder), callbacks=[learning_rate, callback], log_every_n_steps=1,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, **arguments,
    )  # fmt: skip
    if signals.are_handled():
        leave_sigterm_alone(one)
    one.fit(task, datamodule=data or Data(), ckpt_path=resume)
    return task, callback
