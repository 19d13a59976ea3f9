from __future__ import annotations

import copy
import pickle

import pytest
import torch

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.backbones.prepare import prepare_trunk
from hdmnet.models.folding import FoldedBackbone, fold_batch_norm
from tests.contracts import random_norms


def make(name, **trunk):
    torch.manual_seed(0)
    return prepare_trunk(random_norms(build_backbone(name)), **trunk)


@pytest.mark.long
@pytest.mark.parametrize("name", ["resnet_narrow", "vgg16", "vgg16_plain"])
@pytest.mark.parametrize("before_relu", [True, False])
def test_values_and_gradients_are_the_backbones_own(name, before_relu):
    plain = make(name, layers=[2, 3], before_relu=before_relu, trainable=[2, 3]).double()
    folded = FoldedBackbone(copy.deepcopy(plain))
    images = torch.randn(2, 3, 41, 34, dtype=torch.float64)
    for ours, theirs in zip(folded(images), plain(images), strict=True):
        torch.testing.assert_close(ours, theirs)
        ours.square().sum().backward(retain_graph=True)
        theirs.square().sum().backward(retain_graph=True)
    for ours, theirs in zip(folded.backbone.parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad)


def test_weights_that_change_are_followed_and_so_is_a_copy():
    folded = FoldedBackbone(make("resnet_narrow", layers=[3], trainable=[3]))
    images = torch.randn(1, 3, 33, 33)
    copies = [copy.deepcopy(folded), pickle.loads(pickle.dumps(folded))]
    before = folded(images)[0].detach()
    with torch.no_grad():
        for module in folded.backbone.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.mul_(0.5)
            elif isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.add_(0.1)
    torch.testing.assert_close(folded(images), folded.backbone(images), rtol=1e-4, atol=1e-5)
    assert (folded(images)[0] - before).abs().max() > 1e-2
    for other in copies:
        torch.testing.assert_close(other(images)[0], before, rtol=0, atol=0)


def test_nothing_is_folded_while_a_normalisation_learns_its_statistics():
    backbone = build_backbone("resnet_narrow").train()
    folded = FoldedBackbone(backbone)
    before = backbone.parts[0][1].running_mean.clone()
    folded(torch.randn(2, 3, 33, 33))
    assert not torch.equal(backbone.parts[0][1].running_mean, before)


def test_who_only_watches_a_module_does_not_keep_it_from_being_folded():
    backbone = build_backbone("resnet_narrow").eval()
    for module in backbone.modules():
        module.register_forward_hook(lambda *_: None)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fold_batch_norm(backbone).modules())
