from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hdmnet.models.hdmnet import matching
from hdmnet.models.hdmnet.matching import CorrelationMatching
from tests.helpers.reference import dense_matching

QUERY, SUPPORT, INPUT = (5, 7), (6, 4), (29, 23)


def make_layer(**changes):
    torch.manual_seed(0)
    layer = CorrelationMatching(16, **changes).double().eval()
    for norm in (layer.norm1, layer.norm2, layer.merge[1]):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.uniform_(norm.bias, -0.5, 0.5)
    layer.merge[1].running_mean.uniform_(-1, 1)
    layer.merge[1].running_var.uniform_(0.5, 2)
    return layer


def make_inputs(shots, foreground):
    generator = torch.Generator().manual_seed(shots)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    batch = len(foreground)
    mask = (torch.rand(batch, shots, *INPUT, generator=generator) < 0.3).double()
    for item, kind in enumerate(foreground):
        if kind in ("none", "all"):
            mask[item] = float(kind == "all")
        if kind == "one shot without":
            mask[item, 0] = 0.0
    return normal(batch, 16, *QUERY), normal(batch, shots, 16, *SUPPORT), mask, normal(batch, 2, 9, 9)


CASES = [
    (1, ["some"]),
    (1, ["none"]),
    (1, ["all"]),
    (1, ["none", "some", "all"]),
    (5, ["some", "one shot without"]),
    (5, ["all", "none"]),
    (10, ["some", "none", "all"]),
]


@pytest.mark.parametrize("num_heads", [1, 2, 4])
@pytest.mark.parametrize(("shots", "foreground"), CASES, ids=lambda value: str(value).replace(" ", ""))
def test_fast_equals_dense_forward_and_backward(shots, foreground, num_heads):
    layer = make_layer(num_heads=num_heads)
    inputs = make_inputs(shots, foreground)
    leaves = [x for x in inputs if x.requires_grad]
    parameters = list(layer.parameters())
    results = []
    for forward in (layer, lambda *args: dense_matching(layer, *args)):
        out, correlation = forward(*inputs)
        weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)
        loss = (out * weights).sum() + (correlation * weights[:, 0]).sum()
        results.append((out, correlation, *torch.autograd.grad(loss, [*leaves, *parameters])))
    for fast, dense in zip(*results, strict=True):
        torch.testing.assert_close(fast, dense, rtol=0, atol=1e-9)


@pytest.mark.parametrize("changes", [{"merge_kernel": 1}, {"temperature": 0.37}, {"num_priors": 1}])
def test_switches_equal_dense(changes):
    layer = make_layer(**changes)
    query, support, mask, prior = make_inputs(2, ["some"])
    prior = prior[:, : changes.get("num_priors", 2)]
    for fast, dense in zip(
        layer(query, support, mask, prior), dense_matching(layer, query, support, mask, prior), strict=True
    ):
        torch.testing.assert_close(fast, dense, rtol=0, atol=1e-9)


def test_merge_kernel_is_the_papers_projection_or_the_releases_convolution():
    assert CorrelationMatching(8, merge_kernel=1).merge[0].weight.shape == (8, 10, 1, 1)
    assert CorrelationMatching(8).merge[0].weight.shape == (8, 10, 3, 3)


def test_no_foreground_adds_nothing():
    layer = make_layer()
    tokens = torch.randn(2, 12, 16, dtype=torch.float64)
    message, correlation = layer.attend(tokens, tokens[:, :3], torch.zeros(2, 3, dtype=torch.bool))
    assert not message.any()
    assert not correlation.any()


def test_correlation_is_within_the_bounds_of_a_cosine_over_t():
    layer = make_layer(temperature=0.1)
    _, correlation = layer(*make_inputs(3, ["some", "all"]))
    assert correlation.abs().max() <= 10


def test_an_item_does_not_depend_on_its_batch():
    layer = make_layer()
    inputs = make_inputs(2, ["some", "all", "none"])
    whole = layer(*inputs)
    for i in range(3):
        alone = layer(*(x[i : i + 1] for x in inputs))
        for a, b in zip(alone, whole, strict=True):
            torch.testing.assert_close(a[0], b[i], rtol=0, atol=1e-12)


def test_order_of_shots_does_not_matter():
    layer = make_layer()
    query, support, mask, prior = make_inputs(3, ["some"])
    order = [2, 0, 1]
    for a, b in zip(
        layer(query, support, mask, prior), layer(query, support[:, order], mask[:, order], prior), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.long
@pytest.mark.parametrize("scores", [1, 100])
@pytest.mark.parametrize("temperature", [0.1, 0.01])  # bounded by 1/t; by the largest score
def test_blocks_and_recomputation_change_nothing(monkeypatch, scores, temperature):
    layer = make_layer(temperature=temperature)
    inputs = make_inputs(3, ["some", "all"])
    monkeypatch.setattr(matching, "BLOCK_SCORES_CPU", scores * 2 * 2 * 35)  # at least 16 support positions at once
    assert len(matching._blocks(torch.empty(4, 35, 8), torch.empty(4, 72, 8))) == {1: 5, 100: 1}[scores]
    for fast, dense in zip(layer(*inputs), dense_matching(layer, *inputs), strict=True):
        torch.testing.assert_close(fast, dense, rtol=0, atol=1e-9)
    torch.autograd.gradcheck(
        lambda q, k, v: matching.InverseSoftmaxAttention.apply(F.normalize(q, dim=2), F.normalize(k, dim=2), v, 0.1),
        [torch.randn(2, n, 4, dtype=torch.float64, requires_grad=True) for n in (7, 40, 40)],
    )


def test_no_score_outlives_its_block():
    """Nothing of the size N·M is kept for the backward pass."""
    layer = CorrelationMatching(16)
    query, support, prior = torch.randn(1, 16, 20, 20), torch.randn(1, 2, 16, 20, 20), torch.randn(1, 2, 20, 20)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        layer(query.requires_grad_(), support, torch.ones(1, 2, 20, 20), prior)
    assert max(kept) < 400 * 800 / 2


def test_a_backward_pass_under_mixed_precision_is_that_without():
    """`torch.compile` traces it there."""
    q, k, v = (torch.randn(2, n, 8) for n in (9, 12, 12))
    leaves = [x.requires_grad_() for x in (F.normalize(q, dim=2), F.normalize(k, dim=2), v)]
    message = matching.InverseSoftmaxAttention.apply(*leaves, 0.1)
    expected = torch.autograd.grad(message.square().sum(), leaves, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(message.square().sum(), leaves)
    assert all(map(torch.equal, found, expected))
