from __future__ import annotations

import pytest
import torch

from hdmnet.models.hdmnet import matching_variants
from hdmnet.models.hdmnet.matching import CorrelationMatching
from hdmnet.models.hdmnet.matching_variants import NORMALISATIONS, SCORES, attend

VALID = torch.tensor([[True] * 7 + [False] * 2, [True] * 3 + [False] * 6, [False] * 9])


def make_inputs(num_valid=VALID):
    torch.manual_seed(0)
    shapes = ((3, 2, 5, 4), (3, 2, num_valid.shape[1], 4), (3, 2, num_valid.shape[1], 4))
    return [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def dense(q, k, v, valid, score, normalise, temperature):
    """The module's tables written out for each item and head, over the valid columns only."""
    message, correlation = torch.zeros_like(q), torch.zeros_like(q[..., 0])
    for item in range(q.shape[0]):
        for head in range(q.shape[1]):
            a, b, c = q[item, head], k[item, head][valid[item]], v[item, head][valid[item]]
            if not len(b):
                continue
            scores = torch.einsum("nd,md->nm", a, b)
            if score == "cosine":
                scores = scores / a.norm(dim=1)[:, None] / b.norm(dim=1)[None] / temperature
            else:
                scores = scores / a.shape[1] ** 0.5
            exponentials = scores.exp()
            weights = {
                "query": exponentials / exponentials.sum(0, keepdim=True),
                "support": exponentials / exponentials.sum(1, keepdim=True),
                "none": scores / len(b),
            }[normalise]
            message[item, head] = weights @ c
            correlation[item, head] = scores.mean(1)
    return message, correlation


@pytest.mark.parametrize("block", [2, 512])
@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("score", SCORES)
def test_equals_dense_forward_and_backward(monkeypatch, score, normalise, block):
    monkeypatch.setattr(matching_variants, "BLOCK", block)
    leaves = make_inputs()
    results = []
    for function in (
        lambda: attend(*leaves, VALID, score=score, normalise=normalise, temperature=0.3),
        lambda: dense(*leaves, VALID, score, normalise, 0.3),
    ):
        message, correlation = function()
        loss = (message * torch.linspace(-1, 1, message.numel()).view_as(message)).sum() + correlation.pow(2).sum()
        results.append((message, correlation, *torch.autograd.grad(loss, leaves, allow_unused=True)))
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-8, atol=1e-9)


def test_every_variant_gives_another_message():
    inputs = make_inputs()
    messages = [
        attend(*inputs, VALID, score=score, normalise=normalise)[0] for score in SCORES for normalise in NORMALISATIONS
    ]
    for i, one in enumerate(messages):
        for other in messages[:i]:
            assert (one - other).abs().max() > 0.01


@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_the_map_depends_on_the_score_only(normalise):
    inputs = make_inputs()
    for score in SCORES:
        expected = attend(*inputs, VALID, score=score, normalise="query")[1]
        assert torch.equal(attend(*inputs, VALID, score=score, normalise=normalise)[1], expected)


@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_padding_counts_nowhere_and_no_foreground_gives_zeros(normalise):
    q, k, v = make_inputs()
    for score in SCORES:
        once = attend(q, k, v, VALID, score=score, normalise=normalise)
        spoilt = [torch.where(VALID[:, None, :, None], x, 1e3) for x in (k, v)]
        again = attend(q, *spoilt, VALID, score=score, normalise=normalise)
        for a, b in zip(once, again, strict=True):
            torch.testing.assert_close(a, b)
            assert not a[2].any()
        gradients = torch.autograd.grad(again[0].sum() + again[1].sum(), [q, k, v])
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_cosine_ignores_the_length_of_query_and_key():
    q, k, v = make_inputs()
    for normalise in NORMALISATIONS:
        once = attend(q, k, v, VALID, score="cosine", normalise=normalise)
        longer = attend(q * 3, k * 0.2, v, VALID, score="cosine", normalise=normalise)
        for a, b in zip(once, longer, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("score", SCORES)
def test_with_other_shots_than_in_training_the_message_keeps_its_size(score, normalise):
    torch.manual_seed(0)
    layer = CorrelationMatching(16, score=score, normalise=normalise, num_shots=1).eval()
    query, support, prior = torch.randn(2, 16, 5, 7), torch.randn(2, 1, 16, 6, 4), torch.randn(2, 2, 5, 7)
    mask = (torch.rand(2, 1, 12, 8) > 0.5).float()
    once = layer(query, support, mask, prior)
    often = layer(query, support.expand(-1, 5, -1, -1, -1), mask.expand(-1, 5, -1, -1), prior)
    for a, b in zip(once, often, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": "euclid"}, r"model.matching.score=euclid: expected cosine or dot"),
        ({"normalise": "both"}, r"model.matching.normalise=both: expected query or support or none"),
    ],
)
def test_unknown_variant(changes, message):
    with pytest.raises(ValueError, match=message):
        attend(*make_inputs(), VALID, **({"score": "dot", "normalise": "query"} | changes))
