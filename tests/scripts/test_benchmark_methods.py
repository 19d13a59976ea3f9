"""The plain forms of methods compute what ours compute, and the table of both."""

from __future__ import annotations

import pytest
import torch

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.backbones.prepare import prepare_trunk
from hdmnet.models.dcama.model import DCAMA
from hdmnet.models.hsnet.model import HSNet
from scripts.benchmarks import benchmark_methods
from scripts.benchmarks.benchmark_plain import PLAIN
from tests.contracts import random_norms

METHODS = {"hsnet": (HSNet, [2, 3, 4]), "dcama": (DCAMA, [1, 2, 3, 4])}


def make_model(method, layers):
    torch.manual_seed(0)
    trunk = random_norms(build_backbone("resnet_narrow", dilation=None))
    return method(encoder=prepare_trunk(trunk, layers=layers, every_block=True, before_relu=True, trainable=[])).eval()


@pytest.mark.parametrize("shots", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_the_plain_form_is_the_same(method, shots):
    model = make_model(*METHODS[method])
    query, supports = torch.randn(1, 3, 64, 96), torch.randn(1, shots, 3, 64, 96)
    masks = torch.zeros(1, shots, 64, 96)
    masks[..., 16:40, 20:70] = 1
    with torch.no_grad():
        ours, plain = model(query, supports, masks), PLAIN[method](model)(query, supports, masks)
    different = (ours.logits - plain).abs() > 1e-4
    assert different.float().mean() <= (0 if shots == 1 or method == "dcama" else 1e-3)


def test_the_table(capsys, monkeypatch):
    monkeypatch.setattr(benchmark_methods, "build", lambda method, backbone: make_model(*METHODS[method]))
    monkeypatch.setattr(benchmark_methods, "memory_apart", lambda words: 123.4)
    assert benchmark_methods.main(["hsnet", "--side", "64", "--cases", "train", "eval5", "--repeats", "1"]) == 0
    rows = capsys.readouterr().out.strip().splitlines()[4:]
    assert [row.split(" | ")[1:3] for row in rows] == [["resnet50 at 64", "train"], ["resnet50 at 64", "eval5"]]
    assert all(row.endswith("| 123 | 123 |") for row in rows)
    assert benchmark_methods.main(["pfenet"]) == 1
    assert "method 'pfenet' is unknown, expected hsnet, dcama" in capsys.readouterr().err
