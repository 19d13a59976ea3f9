from __future__ import annotations

import copy
from functools import partial

import pytest
import torch

from hdmnet.runtime.private_api import fuse_optimizer, leave_step_out, steps_by_flag
from hdmnet.tasks.optimizers import OptimizerPerGroup
from hdmnet.tasks.schedule import poly_schedule

PARTS = {"head": partial(torch.optim.SGD, momentum=0.9), "body": partial(torch.optim.AdamW, weight_decay=0.3)}


def make_groups():
    torch.manual_seed(0)
    a, b, c = (torch.nn.Parameter(torch.randn(3)) for _ in range(3))
    return [
        {"params": [a], "lr": 0.1, "name": "head"},
        {"params": [b], "lr": 0.01, "name": "body"},
        {"params": [c], "lr": 0.02, "name": "body_bias", "weight_decay": 0.0},
    ]


def give_gradients(groups):
    for group in groups:
        for parameter in group["params"]:
            parameter.grad = torch.randn(3)


def values(groups):
    return [p.detach().clone() for group in groups for p in group["params"]]


def test_steps_are_those_of_the_parts_alone():
    ours, alone = make_groups(), make_groups()
    together = OptimizerPerGroup(ours, parts=PARTS, weight_decay=0.2)
    apart = [torch.optim.SGD(alone[:1], momentum=0.9, weight_decay=0.2), torch.optim.AdamW(alone[1:], weight_decay=0.3)]
    for seed in range(3):
        for groups in (ours, alone):
            torch.manual_seed(seed)
            give_gradients(groups)
        assert together.step(lambda: torch.tensor(7.0)) == 7
        for one in apart:
            one.step()
    assert all(map(torch.equal, values(ours), values(alone)))


def test_a_state_that_is_loaded_goes_on():
    groups = make_groups()
    optimizer = OptimizerPerGroup(groups, parts=PARTS)
    give_gradients(groups)
    optimizer.step()
    others = copy.deepcopy([{k: v for k, v in g.items() if k in ("params", "lr", "name")} for g in groups])
    again = OptimizerPerGroup(others, parts=PARTS)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert len(optimizer.state_dict()["state"]) == 3
    for one in (groups, others):
        torch.manual_seed(1)
        give_gradients(one)
    optimizer.step()
    again.step()
    assert all(map(torch.equal, values(groups), values(others)))


def test_a_step_is_left_out_by_a_flag():
    groups = make_groups()
    optimizer = OptimizerPerGroup(groups, parts=PARTS)
    fuse_optimizer(optimizer)
    assert not steps_by_flag(optimizer)  # not at the first step
    give_gradients(groups)
    optimizer.step()
    assert steps_by_flag(optimizer)
    before = values(groups)
    leave_step_out(optimizer, torch.tensor(True))
    optimizer.step()
    assert all(map(torch.equal, values(groups), before))
    leave_step_out(optimizer, torch.tensor(False))
    optimizer.step()
    assert not any(map(torch.equal, values(groups), before))


def test_some_rates_stay():
    optimizer = OptimizerPerGroup(make_groups(), parts=PARTS)
    schedule = poly_schedule(optimizer, 10, 0.9, constant=["body"])
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1 * 0.9**0.9, 0.01, 0.02])
    for _ in range(9):
        optimizer.step()
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0, 0.01, 0.02])


@pytest.mark.parametrize("names", [("head",), ("head", "body", "neck"), ("head", "body", "body_bias")])
def test_groups_that_are_nobodys_or_of_two(names):
    parts = dict.fromkeys(names, partial(torch.optim.SGD))
    with pytest.raises(ValueError, match=r"optim\.optimizer\.parts of head.*: expected each of the groups head, body,"):
        OptimizerPerGroup(make_groups(), parts=parts)
