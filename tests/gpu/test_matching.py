"""The matching on a GPU, forward and backward, against a dense one in float64 that shares no code with it."""

from __future__ import annotations

import copy

import pytest
import torch

from hdmnet.models.hdmnet.matching import CorrelationMatching
from tests.helpers import reference

pytestmark = pytest.mark.gpu


def relative(found, expected):
    return ((found.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()


@pytest.mark.parametrize("foreground", [0.2, 1.0])
@pytest.mark.parametrize("shots", [1, 5])
def test_it_equals_the_dense_one(device, foreground, shots, record_property):
    side = 60 if device == "cuda" else 12  # as of 473 pixels, so that the supports come in several blocks
    torch.manual_seed(0)
    layer = CorrelationMatching(64, dropout=0.0).eval().to(device)
    dense = copy.deepcopy(layer).double()
    query, support = torch.randn(1, 64, side, side), torch.randn(1, shots, 64, side, side)
    mask = (torch.rand(1, shots, side, side) < foreground).float()
    prior, weight = torch.rand(1, 2, side, side), torch.randn(1, 64, side, side)

    def run(module, function, dtype):
        tensors = [x.to(device, dtype) for x in (query, support, mask, prior)]
        leaves = [x.requires_grad_() for x in tensors[:2]]
        out, correlation = function(module, *tensors)
        objective = (out * weight.to(device, dtype)).sum() + (correlation * weight[:, 0].to(device, dtype)).sum()
        gradients = torch.autograd.grad(objective, [*leaves, *module.parameters()])
        return [out.detach(), correlation.detach(), *gradients]

    found = run(layer, lambda module, *tensors: module(*tensors), torch.float32)
    expected = run(dense, reference.dense_matching, torch.float64)
    worst = {"output": relative(found[0], expected[0]), "map": relative(found[1], expected[1])}
    worst["gradients"] = max(map(relative, found[2:], expected[2:]))
    for name, value in worst.items():
        record_property(f"matching_{name}", value)
    assert max(worst.values()) <= 1e-5, worst
