"""Depthwise convolutions that pad first, and timm's normalisations folded: the same numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hdmnet.models.backbones.padding import PaddedFirst, pad_first
from hdmnet.models.backbones.timm import TimmBackbone
from hdmnet.models.folding import FoldedBackbone, fold_batch_norm
from tests.contracts import random_norms


def test_only_wide_depthwise_convolutions_pad_first_and_give_the_same():
    torch.manual_seed(0)
    network = nn.ModuleList(
        [
            nn.Conv2d(4, 4, 5, padding=8, dilation=4, groups=4),
            nn.Conv2d(4, 4, (3, 5), stride=2, padding=(2, 8), dilation=(2, 4), groups=4, bias=False),
            nn.Conv2d(4, 8, 5, padding=8, dilation=4, groups=4),
            nn.Conv2d(4, 4, 5, padding=4, dilation=2, groups=4),
            nn.Conv2d(4, 4, 5, padding=8, dilation=4),
            nn.Conv2d(4, 4, 5, padding="same", dilation=4, groups=4),
            nn.Conv2d(4, 4, 5, padding=8, dilation=4, groups=4, padding_mode="reflect"),
        ]
    ).double()
    plain = copy.deepcopy(network)
    pad_first(network)
    assert [type(conv) is PaddedFirst for conv in network] == [True, True, True, False, False, False, False]
    assert network.state_dict().keys() == plain.state_dict().keys()
    images = torch.randn(2, 4, 19, 22, dtype=torch.float64, requires_grad=True)
    for ours, theirs in zip(network, plain, strict=True):
        torch.testing.assert_close(ours(images), theirs(images))
        expected = torch.autograd.grad(theirs(images).square().sum(), [images, theirs.weight])
        torch.testing.assert_close(torch.autograd.grad(ours(images).square().sum(), [images, ours.weight]), expected)


def make(name, **options):
    torch.manual_seed(0)
    return random_norms(TimmBackbone(name, **options)).double().eval()


@pytest.mark.parametrize(
    ("name", "options", "padded"),
    [("tf_efficientnet_lite0", {"output_stride": 8}, 3), ("convnext_atto", {"output_stride": 8}, 8)],
)
def test_a_trunk_prepared_gives_what_timms_own_network_gives(name, options, padded):
    backbone = make(name, **options)
    plain = copy.deepcopy(backbone)
    convs = [module for module in plain.modules() if type(module) is PaddedFirst]
    assert len(convs) == padded
    for conv in convs:
        conv.__class__ = nn.Conv2d
    images = torch.randn(1, 3, 64, 72, dtype=torch.float64)
    with torch.no_grad():
        expected = plain(images)
        torch.testing.assert_close(FoldedBackbone(backbone)(images), expected)
        torch.testing.assert_close(tuple(fold_batch_norm(backbone)(images)), expected)


def test_a_folded_trunk_of_timms_that_learns_has_its_own_gradients():
    plain = make("tf_efficientnet_lite0", output_stride=8, frozen=False).eval()
    ours = copy.deepcopy(plain)
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    for run in (plain, FoldedBackbone(ours)):
        sum(level.square().mean() for level in run(images)).backward()
    expected = {name: parameter.grad for name, parameter in plain.named_parameters()}
    torch.testing.assert_close({name: parameter.grad for name, parameter in ours.named_parameters()}, expected)
    assert all(grad is not None for grad in expected.values())


def test_of_an_efficientnet_every_normalisation_is_folded_but_those_whose_output_is_asked_for():
    whole = fold_batch_norm(make("tf_efficientnet_lite0"))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in whole.modules())
    levels = ["blocks.2.0.conv_dw", "blocks.3.0.bn2", "blocks.4"]
    backbone = make("tf_efficientnet_lite0", levels=levels)
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = backbone(images)
        found = fold_batch_norm(copy.deepcopy(backbone))(images)
    torch.testing.assert_close(found, expected)
    assert not torch.equal(found[2], expected[2])  # something was folded
