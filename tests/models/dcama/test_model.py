from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.backbones.prepare import prepare_trunk
from hdmnet.models.dcama import attention
from hdmnet.models.dcama.attention import MaskAggregation
from hdmnet.models.dcama.decoder import conv_parts
from hdmnet.models.dcama.model import DCAMA
from hdmnet.models.method import upsample


def make_model(**changes):
    torch.manual_seed(0)
    backbone = build_backbone("resnet_narrow", dilation=None)
    trunk = prepare_trunk(backbone, layers=[1, 2, 3, 4], every_block=True, before_relu=True, trainable=[])
    return DCAMA(encoder=trunk, **changes)


def make_episode(size, shots=1, batch=2):
    torch.manual_seed(shots)
    masks = (torch.rand(batch, shots, *size) > 0.6).to(torch.uint8)
    return torch.randn(batch, 3, *size), torch.randn(batch, shots, 3, *size), masks


@pytest.mark.parametrize("at_once", [1, 2**21])
def test_attention_is_softmax_over_all_support_positions(at_once, monkeypatch):
    monkeypatch.setattr(attention, "SCORES_CPU", at_once)
    torch.manual_seed(0)
    block = MaskAggregation(16, num_heads=4, dropout=0.0)
    queries, keys, masks = torch.randn(2, 35, 16), torch.randn(2, 24, 16), torch.rand(2, 24)
    heads = [
        (q @ k.transpose(1, 2) / 2).softmax(2) @ masks[..., None]
        for q, k in zip(queries.split(4, 2), keys.split(4, 2), strict=True)
    ]
    torch.testing.assert_close(block(queries, keys, masks), torch.stack(heads).mean(0)[..., 0])


def test_of_blocks_of_several_widths_the_last_ones_are_matched():
    """MobileNetV2: three of 32 channels; 64 four times, then three of 96; 160 three times, then one of 320."""
    backbone = build_backbone("mobilenet_v2", weights=None, dilation=None)
    trunk = prepare_trunk(backbone, layers=[1, 2, 3, 4], every_block=True, before_relu=True, trainable=[])
    model = DCAMA(encoder=trunk).eval()
    with torch.no_grad():
        query, supports, masks = make_episode((64, 64))
        assert model.encode_query(query).tokens[-1].shape == (2, 4, 320)
        assert [one.shape[-1] for one in model.encode_query(query).tokens] == [32] * 3 + [96] * 3 + [320]
        assert model(query, supports, masks).logits.shape == (2, 2, 64, 64)


def test_both_projections_begin_alike():
    block = MaskAggregation(16)
    assert torch.equal(block.query.weight, block.key.weight)
    assert block.query.weight is not block.key.weight


def test_convolution_of_upsampled_maps_is_that_of_all_side_by_side():
    torch.manual_seed(0)
    conv = nn.Conv2d(5 + 2 + 3, 4, 3, padding=1)
    coarse = [torch.randn(2, 5, 6, 4, requires_grad=True), torch.randn(2, 2, 6, 4)]
    fine = [torch.randn(2, 3, 11, 8)]
    ours = conv_parts(conv, coarse, fine)
    expected = conv(torch.cat([upsample(torch.cat(coarse, 1), (11, 8)), *fine], 1))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    weights = [coarse[0], *conv.parameters()]
    cotangent = torch.randn_like(expected)
    for one, other in zip(*(torch.autograd.grad(y, weights, cotangent) for y in (ours, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(64, 64), (65, 98)])
def test_any_batch_is_its_episodes(size):
    """The release mixes the supports of a batch of several."""
    model, episode = make_model().eval(), make_episode(size, shots=2)
    with torch.no_grad():
        out = model(*episode)
        for item in range(2):
            alone = model(*(part[item : item + 1] for part in episode))
            torch.testing.assert_close(alone.scores[0], out.scores[item], rtol=1e-4, atol=1e-4)
    h, w = (-(-side // 4) for side in size)
    assert out.scores.shape == (2, 2, 4 * h, 4 * w)
    assert [one.shape[1:] for one in out.maps["aggregated"]] == [
        tuple(-(-side // stride) for side in size) for stride in (8, 16, 32)
    ]


def test_the_same_support_twice_is_one():
    model, (query, supports, masks) = make_model().eval(), make_episode((64, 64))
    with torch.no_grad():
        once = model(query, supports, masks)
        twice = model(query, supports.repeat(1, 2, 1, 1, 1), masks.repeat(1, 2, 1, 1))
    torch.testing.assert_close(once.scores, twice.scores, rtol=1e-4, atol=1e-4)


def test_dropout_is_in_training_only():
    model, episode = make_model(), make_episode((64, 64))
    assert not torch.equal(model.train()(*episode).scores, model(*episode).scores)
    assert torch.equal(model.eval()(*episode).scores, model(*episode).scores)
    quiet = make_model(dropout=0.0)
    assert F.mse_loss(quiet.train()(*episode).scores, quiet.eval()(*episode).scores) < 1e-8


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"model\.num_heads=7: expected a divisor of the features' 64 channels"):
        make_model(num_heads=7)
    with pytest.raises(ValueError, match=r"model\.dropout=1\.5"):
        make_model(dropout=1.5)
    backbone = prepare_trunk(build_backbone("resnet_narrow"), layers=[3])
    with pytest.raises(ValueError, match=r"DCAMA: the backbone's features are of one stage"):
        DCAMA(encoder=backbone)
