from __future__ import annotations

import pytest
import torch
from torch import nn

from hdmnet.models import center_pivot
from hdmnet.models.center_pivot import CenterPivotConv4d, center_pivot_block, over_query


def plain(conv, x):
    """Every position's own convolution, one after the other."""
    stride = conv.support.stride[0]
    batch, _, h, w, m, n = x.shape
    kept_rows, kept_columns = range(0, m, stride), range(0, n, stride)
    out = x.new_zeros(batch, conv.query.out_channels, h, w, len(kept_rows), len(kept_columns))
    for i, row in enumerate(kept_rows):
        for j, column in enumerate(kept_columns):
            out[..., i, j] += conv.query(x[..., row, column])
    for row in range(h):
        for column in range(w):
            out[:, :, row, column] += conv.support(x[:, :, row, column])
    return out


@pytest.mark.parametrize(
    ("kernel", "stride", "support"),
    [(3, 1, (3, 6)), (3, 2, (7, 6)), (5, 4, (9, 10)), (5, 1, (5, 5)), (3, 2, (1, 1)), (3, 1, (2, 2)), (3, 2, (3, 2))],
)
def test_it_is_two_convolutions(kernel, stride, support):
    torch.manual_seed(0)
    conv = CenterPivotConv4d(3, 4, kernel, stride)
    x = torch.randn(2, 3, 5, 4, *support, requires_grad=True)
    ours, expected = conv(x), plain(conv, x)
    assert ours.shape[4:] == tuple(-(-side // stride) for side in support)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    weights = [x, *conv.parameters()]
    cotangent = torch.randn_like(expected)
    for one, other in zip(*(torch.autograd.grad(y, weights, cotangent) for y in (ours, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_few_positions_are_one_product(monkeypatch):
    """The product is taken where it is meant to be, and nowhere else."""
    taken = []
    monkeypatch.setattr(center_pivot, "_on_few", lambda conv, maps: taken.append(maps.shape) or maps[..., :1, :1, :4])
    for support in ((3, 3), (4, 3), (2, 2)):
        conv = CenterPivotConv4d(4, 4, 3, 4)
        conv(torch.randn(1, 4, 2, 2, *support))
    assert [shape[1:3] for shape in taken] == [(3, 3), (2, 2)]


def test_normalisation_is_over_all_positions():
    torch.manual_seed(0)
    block = center_pivot_block((2, 8), (3,), (1,))
    nn.init.normal_(block[1].weight), nn.init.normal_(block[1].bias)
    x = torch.randn(2, 2, 5, 4, 3, 6)
    made = plain(block[0], x)
    expected = nn.functional.group_norm(made.flatten(2), 4, block[1].weight, block[1].bias, 1e-5).relu().view_as(made)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)


def test_what_runs_over_the_query():
    x = torch.randn(2, 3, 5, 4, 2, 3)
    found = over_query(lambda maps: maps[:, :2, ::2] * 2, x)
    torch.testing.assert_close(found, x[:, :2, ::2] * 2)
