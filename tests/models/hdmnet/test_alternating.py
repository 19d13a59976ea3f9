from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hdmnet.models.hdmnet.alternating import AlternatingTransformer, CrossAttentionLayer
from hdmnet.models.packed import find_foreground


def make_transformer(num_rounds=3):
    """On query (B, C, h, w), support (B, K, C, h_s, w_s) and masks (B, K, H, W)."""
    torch.manual_seed(0)
    transformer = AlternatingTransformer(16, num_rounds=num_rounds, num_heads=2, dropout=0.1).double().eval()

    def mix(query, support, mask):
        foreground = find_foreground(mask.flatten(0, 1), support.shape[-2:])
        mixed_query, mixed = transformer(query, support.flatten(0, 1), foreground, shots=support.shape[1])
        return mixed_query, mixed.view_as(support)

    return mix


def make_inputs(shots=2, batch=2):
    torch.manual_seed(shots)
    query = torch.randn(batch, 16, 9, 7, dtype=torch.float64, requires_grad=True)
    support = torch.randn(batch, shots, 16, 8, 6, dtype=torch.float64, requires_grad=True)
    return query, support, (torch.rand(batch, shots, 32, 24, dtype=torch.float64) > 0.6).double()


def gradient(output, source):
    """Of a weighted sum: the plain sum and the sum of squares of normed features are constant."""
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return torch.autograd.grad((output * weights).sum() + 0 * source.sum(), source, retain_graph=True)[0]


def test_cross_attention_equals_torchs():
    torch.manual_seed(0)
    layer = CrossAttentionLayer(16, num_heads=2, dropout=0.1).double().eval()
    x, source = torch.randn(2, 6, 16, dtype=torch.float64), torch.randn(2, 5, 16, dtype=torch.float64)
    valid = torch.tensor([[True] * 5, [True, False, True, False, False]])
    weight = torch.cat([layer.query.weight, layer.key.weight, layer.value.weight])
    normed, normed_source = layer.norm1(x), layer.norm1(source)
    expected, _ = F.multi_head_attention_forward(
        *(t.transpose(0, 1) for t in (normed, normed_source, normed_source)),
        *(16, 2, weight, None, None, None, False, 0.0, layer.output.weight, None),
        training=False,
        key_padding_mask=~valid,
    )
    attended = x + expected.transpose(0, 1)
    expected = attended + layer.feed_forward(layer.norm2(attended), (2, 3))
    torch.testing.assert_close(layer(x, source, valid, (2, 3)), expected)


@pytest.mark.parametrize("shots", [1, 3])
def test_shapes_are_kept(shots):
    query, support, mask = make_inputs(shots)
    mixed_query, mixed_support = make_transformer()(query, support, mask)
    assert mixed_query.shape == query.shape
    assert mixed_support.shape == support.shape


@pytest.mark.parametrize("num_rounds", [1, 2, 3])
def test_query_and_supports_are_mixed_between_the_rounds(num_rounds):
    """What the paper holds against it; the last cross-attention is the matching, so one round mixes nothing."""
    query, support, mask = make_inputs()
    mixed_query, mixed_support = make_transformer(num_rounds)(query, support, mask)
    for output, source in ((mixed_query, support), (mixed_support, query)):
        assert (gradient(output, source).abs().max() > 1e-4) == (num_rounds > 1)


def test_the_query_takes_nothing_from_supports_without_foreground():
    query, support, mask = make_inputs()
    mask[0] = 0
    mixed_query, _ = make_transformer()(query, support, mask)
    assert not gradient(mixed_query[0], support).any()
    assert gradient(mixed_query[1], support)[1].abs().max() > 1e-4


def test_an_item_does_not_depend_on_its_batch_nor_the_shots_on_their_order():
    transformer = make_transformer()
    query, support, mask = make_inputs(3)
    whole = transformer(query, support, mask)
    for i in range(2):
        alone = transformer(query[i : i + 1], support[i : i + 1], mask[i : i + 1])
        for a, b in zip(alone, whole, strict=True):
            torch.testing.assert_close(a[0], b[i])
    order = [2, 0, 1]
    turned = transformer(query, support[:, order], mask[:, order])
    torch.testing.assert_close(turned[0], whole[0])
    torch.testing.assert_close(turned[1], whole[1][:, order])
