"""Private interfaces of other libraries: a test that fails here says which of them a new release has changed."""

from __future__ import annotations

import math
import signal
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from hydra.utils import get_class
from lightning.pytorch.loops.loop import _Loop
from omegaconf import OmegaConf

from hdmnet.runtime import private_api


@pytest.fixture
def trainer():
    return pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", barebones=False)


def test_hydras_parser_knows_its_flags():
    parser = private_api.hydra_parser()
    assert parser.parse_args(["-m", "fold=1"]).overrides == ["fold=1"]


def test_hydras_sweeper_is_where_its_config_says():
    assert get_class(private_api.BASIC_SWEEPER).__name__ == "BasicSweeper"


def test_omegaconf_tells_a_nodes_key():
    cfg = OmegaConf.create({"a": {"b": {"c": 1}}})
    assert (private_api.full_key(cfg), private_api.full_key(cfg.a.b)) == ("", "a.b")


def test_lightning_tells_when_it_logs(trainer):
    assert private_api.writes_log(trainer) in (True, False)


def test_lightnings_answer_to_sigterm_is_replaced(trainer):
    connector = trainer._signal_connector
    assert callable(connector._sigterm_notifier_fn)  # else ours would be set beside it, unheard
    private_api.leave_sigterm_alone(trainer)
    connector._sigterm_notifier_fn(signal.SIGTERM, None)
    assert not trainer.received_sigterm


def test_lightnings_loops_forget_a_restart(trainer):
    loop = trainer.fit_loop
    _Loop.restarting.fset(loop, True)
    private_api.begin_epoch(trainer)
    assert not loop.restarting
    assert private_api.STEPS_KEY in loop.epoch_loop.on_save_checkpoint() | loop.epoch_loop.state_dict()["state_dict"]


def test_tensors_count_their_changes():  # hdmnet/models/trunk.py prepares weights again when they have changed
    tensor = torch.zeros(2)
    before = tensor._version
    tensor.add_(1)
    assert tensor._version > before


@pytest.mark.parametrize("kind", [partial(torch.optim.SGD, momentum=0.9), torch.optim.AdamW])
def test_fused_optimisers_leave_a_step_out_by_a_flag(kind):
    def train(flags):
        weight = torch.nn.Parameter(torch.ones(3))
        optimizer = kind([weight], lr=0.1, weight_decay=0.1)
        assert not private_api.steps_by_flag(optimizer)
        private_api.fuse_optimizer(optimizer)
        for number, flag in enumerate(flags):
            weight.grad = torch.full((3,), math.nan if flag else float(number + 1))
            assert private_api.steps_by_flag(optimizer) == (number > 0)
            private_api.leave_step_out(optimizer, torch.tensor(flag))
            optimizer.step()
        return [weight.detach(), *(x for x in optimizer.state[weight].values() if isinstance(x, torch.Tensor))]

    with_flag, without = train([False, False, True]), train([False, False])
    assert all(map(torch.equal, with_flag, without))
    assert not torch.equal(without[0], train([False])[0])


def test_an_optimiser_that_was_told_how_to_step_keeps_to_it():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], foreach=True)
    private_api.fuse_optimizer(optimizer)
    assert not optimizer.param_groups[0]["fused"]
