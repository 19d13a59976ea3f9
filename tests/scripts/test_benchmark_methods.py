"""The plain forms of methods compute what ours compute, and the table of both."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.backbones.prepare import prepare_trunk
from hdmnet.models.bam.model import BAM
from hdmnet.models.base_learner import BaseLearner
from hdmnet.models.cyctr.model import CyCTR
from hdmnet.models.dcama.model import DCAMA
from hdmnet.models.hsnet.model import HSNet
from hdmnet.models.panet.model import PANet
from hdmnet.models.ssp.model import SSP
from scripts.benchmarks import benchmark_methods
from scripts.benchmarks.benchmark_plain import PLAIN
from tests.contracts import random_norms

BLOCKS = {"every_block": True, "before_relu": True, "trainable": []}
METHODS = {
    "hsnet": (HSNet, {"layers": [2, 3, 4], **BLOCKS}),
    "dcama": (DCAMA, {"layers": [1, 2, 3, 4], **BLOCKS}),
    "cyctr": (partial(CyCTR, channels=64, num_taken=20), {}),
    "ssp": (SSP, {"layers": [3], "before_relu": True, "trainable": [2, 3]}),
    "panet": (PANet, {"layers": [4], "before_relu": True, "trainable": "all"}),
}


def make_model(name):
    torch.manual_seed(0)
    if name == "bam":
        learner = BaseLearner(backbone=build_backbone("resnet_narrow"), num_base=3, feature_channels=8, dropout=0.0)
        return BAM(encoder=random_norms(learner), channels=16, mid_dropout=0.0, dropout=0.0).eval()
    method, trunk = METHODS[name]
    return method(encoder=prepare_trunk(random_norms(build_backbone("resnet_narrow", dilation=None)), **trunk)).eval()


@pytest.mark.long
@pytest.mark.parametrize("shots", [1, 3])
@pytest.mark.parametrize("name", PLAIN)
def test_the_plain_form_is_the_same(name, shots):
    model = make_model(name)
    query, supports = torch.randn(1, 3, 64, 96), torch.randn(1, shots, 3, 64, 96)
    masks = torch.zeros(1, shots, 64, 96)
    masks[..., 16:40, 20:70] = 1
    with torch.no_grad():
        ours, plain = (run(query, supports, masks).logits for run in (model, PLAIN[name](model)))
    assert ((ours - plain).abs() > 1e-4).float().mean() <= (1e-3 if name == "hsnet" and shots > 1 else 0)


@pytest.mark.parametrize("name", ["ssp", "panet", "bam"])
def test_a_training_step_is_the_same(name, monkeypatch):
    monkeypatch.setattr(benchmark_methods, "build", lambda method, backbone: make_model(method))
    ours, plain = (benchmark_methods.prepare(name, "", form, "train", 49) for form in ("ours", "plain"))
    for _ in range(2):  # the second one after a step
        assert ours().item() == pytest.approx(plain().item(), abs=1e-4)


def test_the_table(capsys, monkeypatch):
    monkeypatch.setattr(benchmark_methods, "build", lambda method, backbone: make_model(method))
    monkeypatch.setattr(benchmark_methods, "memory_apart", lambda words: 123.4)
    assert benchmark_methods.main(["hsnet", "--side", "64", "--cases", "train", "eval5", "--repeats", "1"]) == 0
    rows = capsys.readouterr().out.strip().splitlines()[4:]
    assert [row.split(" | ")[1:3] for row in rows] == [["resnet50 at 64", "train"], ["resnet50 at 64", "eval5"]]
    assert all(row.endswith("| 123 | 123 |") for row in rows)
    assert benchmark_methods.main(["pfenet"]) == 1
    assert "method 'pfenet' is unknown, expected hsnet, dcama, cyctr, ssp, panet, bam" in capsys.readouterr().err
