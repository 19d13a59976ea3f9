from __future__ import annotations

import pytest
import torch
from torch import nn

from hdmnet.models.attention import FeedForward, merge_heads, split_heads, to_map, to_tokens
from hdmnet.models.hdmnet.pyramid import Pyramid, PyramidStage, SelfAttention

torch.manual_seed(0)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((60, 60), [(60, 60), (30, 30), (15, 15), (8, 8)]),
        ((13, 17), [(13, 17), (7, 9), (4, 5), (2, 3)]),
        ((3, 2), [(3, 2), (2, 1), (1, 1), (1, 1)]),  # smaller than the reduction: none is done
    ],
)
@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
def test_sizes_finest_first(size, expected, num_stages):
    features = Pyramid(16, num_stages=num_stages).eval()(torch.randn(2, 16, *size))
    assert [tuple(f.shape) for f in features] == [(2, 16, *s) for s in expected[:num_stages]]


@pytest.mark.parametrize("num_stages", [0, 5])
def test_number_of_stages_is_checked(num_stages):
    with pytest.raises(ValueError, match=f"model.num_stages={num_stages}: expected an integer of 1 to 4"):
        Pyramid(16, num_stages=num_stages)


def test_constants_of_the_release():
    pyramid = Pyramid(64, num_stages=3)
    embeds = [(s.embed.kernel_size, s.embed.stride, s.embed.padding) for s in pyramid.stages]
    assert embeds == [((1, 1), (1, 1), (0, 0)), ((3, 3), (2, 2), (1, 1)), ((3, 3), (2, 2), (1, 1))]
    assert [s.layers[0].attention.num_heads for s in pyramid.stages] == [2, 4, 8]
    assert [s.layers[0].attention.reduction for s in pyramid.stages] == [4, 2, 1]
    assert [len(s.layers) for s in pyramid.stages] == [2, 2, 2]
    assert {m.eps for m in pyramid.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}
    assert {m.p for m in pyramid.modules() if isinstance(m, nn.Dropout)} == {0.1}
    assert all(m.bias is None for m in pyramid.modules() if isinstance(m, nn.Linear))


@pytest.mark.parametrize("reduction", [1, 2])
def test_self_attention_equals_dense(reduction):
    attention = SelfAttention(8, num_heads=2, reduction=reduction, dropout=0.1).double().eval()
    size = (5, 4)
    x = torch.randn(2, 20, 8, dtype=torch.float64)
    source = x
    if reduction == 2:  # without padding: the odd row is dropped
        reduced = attention.reduce(x.transpose(1, 2).reshape(2, 8, *size)[:, :, :4])
        source = attention.norm(reduced.flatten(2).transpose(1, 2))
        assert source.shape == (2, 4, 8)
    heads = []
    for head in range(2):
        rows = slice(4 * head, 4 * head + 4)
        q, k, v = (
            t @ m.weight[rows].T for t, m in ((x, attention.query), (source, attention.key), (source, attention.value))
        )
        heads.append((q @ k.transpose(1, 2) / (2 + 1e-9)).softmax(2) @ v)
    expected = torch.cat(heads, 2) @ attention.output.weight.T
    torch.testing.assert_close(attention(x, size), expected, rtol=0, atol=1e-12)


def test_a_stage_mixes_positions_of_one_picture_only():
    stage = PyramidStage(8, stage=0, depth=1, dropout=0.0)
    x = torch.randn(2, 8, 6, 6)
    changed = x.clone()
    changed[1] += 1.0
    assert torch.equal(stage(x)[0], stage(changed)[0])


def test_query_and_support_share_weights_and_do_not_meet():
    pyramid = Pyramid(16, num_stages=2).eval()
    query, support = torch.randn(1, 16, 8, 8), torch.randn(1, 16, 8, 8)
    together = pyramid(torch.cat([query, support]))
    for f, q, s in zip(together, pyramid(query), pyramid(support), strict=True):
        torch.testing.assert_close(f, torch.cat([q, s]), rtol=0, atol=1e-5)


def test_tokens_and_heads_round_trip():
    x = torch.arange(2 * 6 * 3 * 4.0).view(2, 6, 3, 4)
    tokens = to_tokens(x)
    assert torch.equal(tokens[1, 5], x[1, :, 1, 1])  # position 5 of a 3 x 4 map
    assert torch.equal(to_map(tokens, (3, 4)), x)
    heads = split_heads(tokens, 2)
    assert torch.equal(heads[0, 1, 5], x[0, 3:, 1, 1])
    assert torch.equal(merge_heads(heads), tokens)


def test_feed_forward_has_the_releases_layers():
    layers = FeedForward(64).layers
    assert [tuple(m.weight.shape) for m in layers if isinstance(m, nn.Conv2d)] == [
        (256, 64, 1, 1), (256, 1, 3, 3), (64, 256, 1, 1),
    ]  # fmt: skip
    assert layers[2].approximate == "none"  # the erf GELU
