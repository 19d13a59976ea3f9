from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hdmnet.models.class_prototypes import ClassPrototypes, cosines, weighted_means
from hdmnet.models.panet.model import pool


def test_cosines_are_those_of_torch():
    torch.manual_seed(0)
    features, vectors = torch.randn(2, 5, 3, 4), torch.randn(2, 2, 5)
    vectors[1, 0] = 0
    expected = torch.stack([F.cosine_similarity(features, vectors[:, m, :, None, None], dim=1) for m in (0, 1)], 1)
    torch.testing.assert_close(cosines(features, vectors), expected)


def test_the_mean_over_shots_is_that_of_each_query():
    vectors = torch.arange(12.0).reshape(6, 2, 1)
    assert ClassPrototypes(vectors).average(3)[..., 0].tolist() == [[2, 3], [8, 9]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_over_a_picture_are_kept_in_32_bits(dtype):
    torch.manual_seed(0)
    features, masks = 50 + torch.randn(1, 4, 8, 8), torch.ones(1, 400, 400, dtype=torch.uint8)
    weights = torch.ones(1, 2, 8, 8)
    expected = pool(features, masks), weighted_means(features, weights, weights.sum((2, 3)))
    with torch.autocast("cpu", dtype=dtype):
        found = pool(features, masks), weighted_means(features, weights, weights.sum((2, 3)))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
    torch.testing.assert_close(found[0][:, 1], features.mean((2, 3)), rtol=1e-4, atol=0)
