from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hdmnet.models import trunk as trunk_module
from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.base_learner import BaseLearner
from hdmnet.models.trunk import FrozenTrunk

FIELDS = ("layer2", "layer3", "layer4", "base_feature")


def make_learner(name="resnet_narrow"):
    torch.manual_seed(0)
    learner = BaseLearner(backbone=build_backbone(name), num_base=4, feature_channels=16).eval()
    for module in learner.modules():  # normalisations that do something
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    return learner


@pytest.mark.parametrize("size", [(3, 4), (6, 6), (9, 13)])
def test_pooling_in_float64_is_exact_at_any_size(size):
    learner = make_learner().double()
    layer4 = torch.randn(2, 128, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = learner.reduce(learner.pyramid_pooling(layer4))
        ours = trunk_module.PreparedTrunk(learner, torch.float64).pooling(layer4)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)


def test_no_normalisation_is_left_and_the_state_dict_is_the_base_learners():
    learner = make_learner("mobilenet_v2")
    trunk = FrozenTrunk(learner)
    trunk(torch.randn(1, 3, 33, 33))
    prepared = trunk._prepared[0][1]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in prepared.backbone.modules())
    assert set(trunk.state_dict()) == {f"base_learner.{key}" for key in learner.state_dict()}
    assert any(isinstance(m, nn.BatchNorm2d) for m in learner.modules())


def test_chunks_change_nothing_but_rounding(monkeypatch):
    trunk, images = FrozenTrunk(make_learner()), torch.randn(5, 3, 33, 41)
    whole = trunk(images)
    monkeypatch.setattr(trunk_module, "CHUNK_CPU", 2 * 33 * 41)
    assert [len(part.layer4) for part in trunk.encode(images)] == [2, 2, 1]
    for field in FIELDS:
        torch.testing.assert_close(getattr(trunk(images), field), getattr(whole, field), rtol=1e-4, atol=1e-4)


def test_new_weights_are_noticed():
    trunk, images = FrozenTrunk(make_learner()), torch.randn(1, 3, 33, 33)
    before = trunk(images).layer4
    assert trunk(images).layer4.equal(before)
    state = copy.deepcopy(trunk.state_dict())
    state["base_learner.backbone.parts.0.0.weight"] *= 2
    trunk.load_state_dict(state)
    assert not trunk(images).layer4.equal(before)
    assert copy.deepcopy(trunk)(images).layer4.equal(trunk(images).layer4)


def test_precision_follows_autocast_and_inference_mode_leaves_no_trace():
    trunk, images = FrozenTrunk(make_learner()), torch.randn(1, 3, 33, 33)
    exact = trunk(images).layer4
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        rough = trunk(images)
    assert rough.base_feature.dtype == torch.bfloat16
    assert 0 < (rough.layer4.float() - exact).abs().max() < 0.05 * exact.abs().max()
    layer = nn.Conv2d(128, 1, 1)
    layer(trunk(images).layer4).sum().backward()  # features of weights prepared in inference mode would refuse
    assert trunk(images).layer4.dtype == torch.float32


def test_features_of_pictures_that_come_again_are_kept_within_the_memory(monkeypatch):
    encoded = []
    run = trunk_module.PreparedTrunk.__call__
    monkeypatch.setattr(
        trunk_module.PreparedTrunk, "__call__", lambda self, images: encoded.append(len(images)) or run(self, images)
    )
    trunk, images = FrozenTrunk(make_learner()), torch.randn(4, 3, 33, 41)
    alone = [trunk(image[None]) for image in images]
    one = sum(getattr(alone[0], field).nbytes for field in FIELDS)
    encoded.clear()
    trunk.keep_features(2.5 * one)
    for expected in ([1, 1, 1, 1], [1, 1]):  # two of them are kept
        found = list(trunk.encode(images))
        assert encoded == expected
        assert all(
            torch.equal(getattr(a, field), getattr(b, field))
            for a, b in zip(found, alone, strict=True)
            for field in FIELDS
        )
        encoded.clear()
    assert trunk._kept.num_bytes == 2 * one
    with torch.no_grad():
        next(trunk.base_learner.parameters()).mul_(2)  # other weights: nothing kept is right any more
    assert not torch.equal(next(trunk.encode(images)).layer4, alone[0].layer4)
    assert encoded == [1]
    list(trunk.encode(images[:1].reshape(1, 3, 41, 33)))  # the same numbers are another picture in another shape
    assert encoded == [1, 1]
