from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hdmnet.metrics import FewShotIoU, SegmentationIoU
from hdmnet.tasks.schedule import poly_factor, poly_schedule, step_schedule

RECORDED = json.loads((Path(__file__).parents[1] / "models" / "hdmnet" / "golden" / "unit_misc.json").read_text())


@pytest.mark.parametrize("case", RECORDED["poly"], ids=lambda c: f"{c['iter']}of{c['max']}{'_warmup' * c['warmup']}")
def test_rates_of_the_release(case):
    warmup = case["warmup_step"] if case["warmup"] else 0
    factor = poly_factor(case["iter"], case["max"], 0.9, warmup)
    assert 1e-4 * factor == pytest.approx(case["lr_group0"], rel=1e-12, abs=0)
    assert 1e-3 * factor == pytest.approx(case["lr_group1"], rel=1e-12, abs=0)


def test_scheduler_starts_at_iteration_1_and_keeps_the_groups_ratio():
    a, b = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([{"params": [a], "lr": 1e-4}, {"params": [b], "lr": 1e-3}])
    scheduler = poly_schedule(optimizer, 1000, 0.9)
    rates = []
    for _ in range(1000):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    by_iteration = {c["iter"]: [c["lr_group0"], c["lr_group1"]] for c in RECORDED["poly"] if not c["warmup"]}
    assert set(by_iteration) == {1, 500, 999, 1000}
    for iteration, expected in by_iteration.items():
        assert rates[iteration - 1] == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize("length", [6000, 50, 2])
def test_steps_of_equal_length_however_long_the_run(length):
    """SSP: a tenth after 2,000 and 4,000 of 6,000 iterations."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = step_schedule(optimizer, length, 3)
    rates = []
    for _ in range(length):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    expected = [1e-3 * 0.1 ** (3 * step // length) for step in range(length)]
    assert rates == pytest.approx(expected, rel=1e-12)
    if length == 6000:
        assert rates[1999:2001] == pytest.approx([1e-3, 1e-4])
        assert rates[3999:4001] == pytest.approx([1e-4, 1e-5])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)  # after the last one as in the last part


def test_steps_after_a_warm_up():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    factor = step_schedule(optimizer, 100, 2, 0.5, warmup_iterations=10).lr_lambdas[0]
    assert [factor(step) for step in (0, 5, 10, 49, 50, 99)] == pytest.approx([0.1, 0.55, 1.0, 1.0, 0.5, 0.5])


def recorded_labels():
    """Random labels as the release's IoU was measured on; 255 in the first rows or columns of the targets."""

    from tests.helpers.official_recipe import metric_inputs

    return [torch.from_numpy(np.asarray(x)) for x in metric_inputs()]


def test_iou_counts_of_the_release():
    out, target, out_base, target_base = recorded_labels()
    intersection, union, _ = RECORDED["iou"]["binary"]  # background, foreground
    metric = FewShotIoU(2)
    metric.update(out, target, torch.tensor([0]))
    values = metric.compute()
    assert values["intersection"].tolist() == [intersection[1], 0]
    assert values["union"].tolist() == [union[1], 0]
    assert values["fb_iou"].item() == pytest.approx((intersection[0] / union[0] + intersection[1] / union[1]) / 2)
    base = SegmentationIoU(16)
    base.update(out_base, target_base)
    intersection, union, _ = RECORDED["iou"]["base16"]
    expected = [i / u for i, u in zip(intersection, union, strict=True)]
    assert base.compute()["miou"].item() == pytest.approx(sum(expected[1:]) / 15)
