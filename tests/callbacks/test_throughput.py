"""The speed that is logged, by a clock that the test turns; the gradient's norm, by a gradient known beforehand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from hdmnet.callbacks import throughput
from hdmnet.callbacks.curves import _choose, read_metrics


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: clock.now)
    return clock


class _Loop:
    """Calls the callback's hooks as Lightning does, each part of a step taking the seconds that are given."""

    def __init__(self, clock, world_size=1, every=2, accumulate=1):
        self.clock, self.every, self.accumulate, self.batches = clock, every, accumulate, 0
        self.callback, self.logged = throughput.Throughput(), []
        self.trainer: Any = SimpleNamespace(world_size=world_size, loggers=[1], global_step=0)
        self.module: Any = SimpleNamespace(device=torch.device("cpu"), log=lambda *item: self.logged.append(item))
        self.callback.on_train_epoch_start(self.trainer, self.module)

    def step(self, wait, compute, episodes=4):
        batch: Any = SimpleNamespace(query_image=torch.zeros(episodes, 1))
        self.clock.now += wait
        self.callback.on_train_batch_start(self.trainer, self.module, batch, 0)
        self.clock.now += compute
        self.batches += 1
        due = (self.trainer.global_step + 1) % self.every == 0  # asked before the step is counted, as in Lightning
        self.trainer.global_step = self.batches // self.accumulate
        self.trainer._logger_connector = SimpleNamespace(should_update_logs=due)
        self.callback.on_train_batch_end(self.trainer, self.module, None, batch, 0)


def test_rate_and_wait_are_of_the_steps_since_the_last_ones(clock):
    loop = _Loop(clock)
    loop.step(wait=50, compute=50)  # the workers start
    loop.step(wait=1, compute=3)
    loop.step(wait=2, compute=2)
    loop.step(wait=0, compute=4, episodes=12)
    rate, wait = "throughput/episodes_per_second", "throughput/data_wait"
    assert loop.logged == [(rate, 1.0), (wait, 0.25), (rate, 2.0), (wait, 0.25)]


def test_validation_and_checkpoint_are_not_training(clock):
    loop = _Loop(clock, world_size=4, every=4)
    loop.step(0, 1)
    loop.step(1, 1)
    loop.callback.on_validation_start(loop.trainer, loop.module)
    clock.now += 1000
    loop.step(wait=10, compute=100)
    loop.step(wait=1, compute=1)
    assert loop.logged == [("throughput/episodes_per_second", 4 * 8 / 4), ("throughput/data_wait", 0.5)]


def test_accumulated_batches_are_one_figure(clock):
    loop = _Loop(clock, every=1, accumulate=3)
    for _ in range(6):
        loop.step(wait=1, compute=1)
    rate = "throughput/episodes_per_second"
    assert [item for item in loop.logged if item[0] == rate] == [(rate, 2.0), (rate, 2.0)]


class _Task(LightningModule):
    """Loss 3 a + 4 b, summed over the batch: its gradient is (3, 4) times the batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.nn.Parameter(torch.zeros(2))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = (batch.query_image @ self.weights).sum()
        self.log("train/loss", loss.detach(), batch_size=1)
        return loss

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")  # nothing is read from disk
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # Lightning 2.6.6 under torch 2.15
def test_the_csv_log_gets_the_columns_and_the_curves_stay_losses(tmp_path):
    data = [torch.tensor([3.0, 4.0])] * 12
    loader: Any = DataLoader(data, batch_size=2, collate_fn=lambda rows: SimpleNamespace(query_image=torch.stack(rows)))
    bare: Any = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        log_every_n_steps=2,
        gradient_clip_val=1.0,
        logger=CSVLogger(tmp_path, name="", version=""),
        callbacks=[throughput.Throughput()],
        **bare,
    )
    trainer.fit(_Task(), loader)
    series = read_metrics(tmp_path / "metrics.csv")
    assert series["optim/grad_norm"] == ([1.0, 3.0, 5.0], [10.0] * 3)  # before clipping to 1
    assert series["throughput/episodes_per_second"][0] == [1.0, 3.0, 5.0]
    assert all(0 < share < 1 for share in series["throughput/data_wait"][1])
    assert "throughput/gpu_memory_gib" not in series
    assert list(_choose(series)[0]) == ["loss"]
