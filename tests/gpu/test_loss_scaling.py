"""float16's loss scaling with the guard against what is not finite, on a GPU and on the CPU."""

from __future__ import annotations

import math

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from hdmnet.callbacks.non_finite import NonFiniteGuard
from hdmnet.runtime.warnings import silence_known_warnings
from tests.helpers.toy_method import random_episode, toy_task


@pytest.fixture(params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def where(request):
    return "cpu" if request.param == "cpu" else request.getfixturevalue("device")


class Spoiler(L.Callback):
    """Makes a gradient infinite, as an overflow does, in some batches; keeps weight and scale after each."""

    def __init__(self, batches=()):
        self.batches, self.weights, self.scales = batches, [], []

    def on_after_backward(self, trainer, pl_module):
        if trainer.fit_loop.batch_idx in self.batches:
            pl_module.model.scale.grad.fill_(math.inf)

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.weights.append(float(pl_module.model.scale.detach()))
        self.scales.append(trainer.precision_plugin.scaler.get_scale())


def fit(device, folder, episodes, spoiler):
    silence_known_warnings()
    plugin = MixedPrecision("16-mixed", device, torch.amp.GradScaler(device))
    trainer = L.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu", devices=1, plugins=[plugin], max_epochs=1, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, limit_val_batches=0,
        callbacks=[NonFiniteGuard(policy="stop", directory=folder), spoiler],
    )  # fmt: skip
    trainer.fit(toy_task(), *[torch.utils.data.DataLoader(list(episodes), batch_size=None)] * 2)


def test_an_overflow_is_the_loss_scalings_and_costs_one_step(where, tmp_path):
    spoiler = Spoiler({1})
    fit(where, tmp_path, map(random_episode, range(4)), spoiler)
    assert spoiler.weights[1] == spoiler.weights[0] != spoiler.weights[2]
    assert spoiler.scales[1:] == [spoiler.scales[0] / 2] * 3
    assert not list(tmp_path.iterdir())  # no dump


def test_a_loss_that_is_nan_stops_the_run(where, tmp_path):
    spoiler = Spoiler()
    episodes = [random_episode(1), random_episode(2, spoilt=True), random_episode(3)]
    with pytest.raises(ValueError, match=r"the loss is nan in stage 2, step 1 .* episode 20"):
        fit(where, tmp_path, episodes, spoiler)
    assert len(spoiler.weights) == 1
    assert (tmp_path / "nonfinite_stage2_step1_rank0.pt").is_file()


def test_gradients_that_are_never_finite_stop_the_run(where, tmp_path):
    """Loss scaling alone would skip every step for ever."""
    spoiler = Spoiler(range(3, 60))
    with pytest.raises(ValueError, match="after 20 skipped steps in a row: the gradient is not finite in stage 2"):
        fit(where, tmp_path, map(random_episode, range(60)), spoiler)
    assert len(spoiler.weights) == 3 + 20
    assert len(set(spoiler.weights[2:])) == 1
