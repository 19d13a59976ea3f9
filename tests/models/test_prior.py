from __future__ import annotations

import pytest
import torch

from hdmnet.models import prior
from hdmnet.models.packed import find_foreground
from tests.helpers import official_recipe as recipe


def prior_mask(query, support, mask, **switches):
    """Of whole support maps (B, K, C, h, w) and masks (B, K, H, W)."""
    foreground = find_foreground(mask.flatten(0, 1), support.shape[-2:])
    keys = foreground.gather(support.flatten(0, 1))
    return prior.prior_mask(query, keys, shots=support.shape[1], **switches)


@pytest.fixture(params=["one by one", "at once", "at once, in blocks"], autouse=True)
def way(request, monkeypatch):
    """What a CPU and what a GPU does."""
    if request.param != "one by one":
        monkeypatch.setattr(prior, "_best_one_by_one", prior._best_at_once)
    if request.param == "at once, in blocks":
        monkeypatch.setattr(prior, "PRODUCTS_GPU", 1)


def dense_prior(query, support, mask):
    """One shot: the largest cosine over all support positions, background features multiplied by 0."""
    batch, _, height, width = query.shape
    out = torch.zeros(batch, 1, height, width, dtype=query.dtype)
    step = mask.shape[-2] / support.shape[-2], mask.shape[-1] / support.shape[-1]
    for b in range(batch):
        keys = [
            support[b, :, i, j] * mask[b, int(i * step[0]), int(j * step[1])]
            for i in range(support.shape[2])
            for j in range(support.shape[3])
        ]
        for y in range(height):
            for x in range(width):
                q = query[b, :, y, x]
                out[b, 0, y, x] = max(float(q @ k / (q.norm() * k.norm() + 1e-7)) for k in keys)
    return out


@pytest.fixture
def features():
    torch.manual_seed(3)
    return torch.randn(3, 6, 4, 5, dtype=torch.float64), torch.randn(3, 2, 6, 4, 5, dtype=torch.float64)


def test_equals_the_release(golden):
    query, support, mask = map(torch.from_numpy, recipe.similarity_inputs())
    ours = prior_mask(query, support[:, None], (mask == 1).float())
    torch.testing.assert_close(ours, torch.from_numpy(golden("unit_small.npz")["similarity"]), rtol=0, atol=2e-6)


def test_equals_dense_and_averages_the_shots_after_the_maximum(features):
    query, support = features
    mask = torch.zeros(3, 2, 20, 25, dtype=torch.float64)
    mask[0, 0, 3:14, 2:19] = 1
    mask[0, 1] = 1  # no background: negative cosines count
    mask[1, 0, 19, 24] = 1  # lost by the nearest neighbour
    mask[1, 1, 5, 5] = 1
    mask[2, :, ::2] = 1
    expected = (dense_prior(query, support[:, 0], mask[:, 0]) + dense_prior(query, support[:, 1], mask[:, 1])) / 2
    torch.testing.assert_close(prior_mask(query, support, mask), expected, rtol=0, atol=1e-9)


def test_background_counts_as_exactly_zero():
    query = -torch.ones(1, 3, 2, 2)
    support = torch.ones(1, 1, 3, 2, 2)
    half = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    assert prior_mask(query, support, half).tolist() == [[[[0, 0], [0, 0]]]]
    torch.testing.assert_close(prior_mask(query, support, torch.ones(1, 1, 2, 2)), -torch.ones(1, 1, 2, 2))
    assert not prior_mask(-query, support, torch.zeros(1, 1, 2, 2)).any()


def test_normalised_each_shot_before_the_mean(features):
    query, support = features
    mask = torch.ones(3, 2, 4, 5, dtype=torch.float64)
    shots = []
    for k in range(2):
        best = dense_prior(query, support[:, k], mask[:, k])
        low, high = best.amin((2, 3), keepdim=True), best.amax((2, 3), keepdim=True)
        shots.append((best - low) / (high - low + 1e-7))
    ours = prior_mask(query, support, mask, normalise=True)
    torch.testing.assert_close(ours, (shots[0] + shots[1]) / 2, rtol=0, atol=1e-6)
    assert ours.min() >= 0
    assert ours.max() <= 1
