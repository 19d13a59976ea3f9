"""What a GPU runs (queries and supports in one pass, every item of as many rows) against what a CPU runs."""

from __future__ import annotations

import pytest
import torch

from hdmnet.models import prior
from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.base_learner import BaseLearner
from hdmnet.models.hdmnet.baseline import build_baseline
from hdmnet.models.hdmnet.model import HDMNet
from tests.helpers.tiny_hdmnet import make_episode, make_model

CLASSES = torch.tensor([1, 3])


def make(**changes):
    if "num_rounds" in changes:
        torch.manual_seed(0)
        learner = BaseLearner(backbone=build_backbone("resnet_narrow"), num_base=4, feature_channels=16)
        model = build_baseline(learner, ensemble=True, dropout=0.0, mid_dropout=0.0, **changes)
    else:
        model = make_model(dropout=0.0, mid_dropout=0.0, **changes)
    return model.train()


def outcome(model, episode):
    """Outputs, and the gradient of a loss of all of them that need one."""
    model.zero_grad()
    out = model(*episode, CLASSES)
    values = [out.scores, *out.auxiliary.values(), *(x for several in out.maps.values() for x in several)]
    sum((x * torch.linspace(-1, 2, x.numel()).view_as(x)).sum() for x in values if x.requires_grad).backward()
    return [x.detach() for x in values], {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.long
@pytest.mark.parametrize(
    ("shots", "changes"),
    [
        (1, {}),
        (3, {"prior_norm": True, "num_stages": 4}),
        (2, {"ensemble": False, "matching": {"score": "dot", "normalise": "support"}}),
        (2, {"num_rounds": 2}),
    ],
    ids=str,
)
@pytest.mark.parametrize("capacity", ["measured", "all", "in blocks"])
def test_it_computes_the_same_with_the_same_gradients(shots, changes, capacity, monkeypatch):
    model = make(num_shots=shots, **changes)
    query, supports, masks = make_episode(shots, (113, 97))
    masks[0, 0, 30:] = 0
    if shots > 1:
        masks[0, 1], masks[1, 0] = 1, 255  # all foreground; none
    expected, gradients = outcome(model, (query, supports, masks))
    monkeypatch.setattr(HDMNet, "_goes_at_once", lambda *_: True)
    if capacity == "all":
        plan = HDMNet._plan
        monkeypatch.setattr(HDMNet, "_plan", lambda *args, coarse: plan(*args, coarse=True))
    elif capacity == "in blocks":
        monkeypatch.setattr(prior, "PRODUCTS_GPU", 2**12)
    found, own = outcome(model, (query, supports, masks))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    assert own.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(own[name], gradient, rtol=1e-3, atol=1e-5 * largest)


def test_pictures_of_two_sizes_are_not_put_into_one_batch():
    model = make_model()
    query, (_, supports, masks) = make_episode(1, (49, 65))[0], make_episode(1, (65, 65))
    assert not model._goes_at_once(query.to("meta"), supports.flatten(0, 1).to("meta"))
    assert model._goes_at_once(query.to("meta"), query.to("meta"))
    assert not model._goes_at_once(query, query)
    assert model(query, supports, masks).logits.isfinite().all()


@pytest.mark.slow
def test_it_is_one_graph_for_the_compiler_and_recompiled_for_few_sizes():
    model, graphs = make(num_shots=2), []
    query, supports, masks = make_episode(2, (65, 65))
    expected, gradients = outcome(model, (query, supports, masks))

    def backend(graph, _):
        graphs.append(sum(node.op.startswith("call") for node in graph.graph.nodes))
        return graph

    model.compile(backend=backend, dynamic=False)
    found, own = outcome(model, (query, supports, masks))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(own[name], gradient, rtol=1e-3, atol=1e-5 * largest)
    assert len(graphs) == 2  # what comes before the plan, and all that comes after it
    assert graphs[0] < 10 < 300 < graphs[1]
    outcome(model, (query, supports, masks * (torch.rand_like(query[:, :1]) > 0.1).to(torch.uint8)))
    assert len(graphs) == 2  # about as much foreground
    masks[..., 20:] = 0
    outcome(model, (query, supports, masks))
    assert len(graphs) == 3
