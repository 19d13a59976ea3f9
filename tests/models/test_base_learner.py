from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.base_learner import BaseLearner, PyramidPooling
from hdmnet.models.hdmnet.model import build_hdmnet
from hdmnet.models.losses import segmentation_loss
from hdmnet.models.trunk import FrozenTrunk


def make_learner(name="resnet_narrow"):
    torch.manual_seed(0)
    return BaseLearner(backbone=build_backbone(name), num_base=4, feature_channels=16)


def train_steps(model, steps=3, size=(49, 65)):
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameter_groups(lr=1e-2))
    for _ in range(steps):
        query, support = torch.randn(2, 3, *size), torch.randn(2, 1, 3, *size)
        mask = (torch.rand(2, 1, *size) > 0.5).long()
        out = model(query, support, mask, torch.tensor([0, 1]))
        target = (torch.rand(2, *size) > 0.5).long()
        loss = segmentation_loss(out.logits, target) + segmentation_loss(out.logits_of("meta"), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def is_running_statistic(key):
    return "running" in key or "num_batches" in key


@pytest.mark.parametrize("norm", ["fixed", "bn"])
def test_frozen_stays_frozen(norm):
    model = build_hdmnet(make_learner(), norm=norm).train()
    model.requires_grad_(True)
    model.trunk.base_learner.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    train_steps(model)
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert not [key for key in moved if key.startswith("trunk.")]
    statistics = {key for key in before if is_running_statistic(key) and key.startswith("meta_learner.")}
    assert statistics
    assert moved & statistics == (set() if norm == "fixed" else statistics)
    learnable = {key for key, p in model.named_parameters() if p.requires_grad}
    assert {key for key in learnable if key.startswith(("meta_learner.decoder", "meta_learner.matching.0"))} <= moved


def test_trunk_gives_no_gradient_and_stays_in_evaluation_mode():
    trunk = FrozenTrunk(make_learner())
    assert not trunk.train().training
    assert not any(m.training for m in trunk.modules())
    assert not any(p.requires_grad for p in trunk.parameters())
    images = torch.randn(1, 3, 33, 33, requires_grad=True)
    features = trunk(images)
    for x in (
        features.layer2,
        features.layer3,
        features.layer4,
        features.base_feature,
        trunk.classify(features.base_feature),
    ):
        assert not x.requires_grad


def test_trunk_agrees_with_the_base_learner_it_was_made_of():
    learner = make_learner().eval()
    images = torch.randn(2, 3, 41, 57)
    expected = learner(images)
    trunk = FrozenTrunk(learner)
    logits = trunk.classify(trunk(images).base_feature)
    torch.testing.assert_close(F.interpolate(logits, (41, 57), mode="bilinear", align_corners=True), expected)


def test_feature_5_is_before_the_relu():
    trunk = FrozenTrunk(make_learner())
    assert trunk(torch.randn(1, 3, 33, 33)).base_feature.min() < 0


def test_vggs_layer_2_is_resized_to_layer_3():
    trunk = FrozenTrunk(make_learner("vgg16"))
    images = torch.randn(1, 3, 65, 97)
    features = trunk(images)
    layer2, layer3, _ = trunk.base_learner.backbone(images)
    assert layer2.shape[-2:] == (9, 13)
    assert features.layer2.shape[-2:] == layer3.shape[-2:] == (5, 7)
    torch.testing.assert_close(features.layer2, F.interpolate(layer2, (5, 7), mode="bilinear", align_corners=True))


def test_pyramid_pooling_means():
    pooling = PyramidPooling(8).eval()
    for branch in pooling.branches:
        branch[1].weight.data = torch.eye(2, 8).view(2, 8, 1, 1)
    x = torch.rand(1, 8, 6, 6)
    out = pooling(x)
    assert pooling.out_channels == 16
    assert torch.equal(out[:, :8], x)
    scale = (1 + 1e-5) ** -0.5  # batch normalisation at mean 0 and variance 1
    expected = x[:, :2].mean((2, 3), keepdim=True).expand(-1, -1, 6, 6) * scale
    torch.testing.assert_close(out[:, 8:10], expected)
    torch.testing.assert_close(out[:, 14:16], x[:, :2] * scale)  # six bins on six positions


def test_all_of_the_base_learner_trains_in_stage_1():
    learner = make_learner().train()
    segmentation_loss(learner(torch.randn(2, 3, 33, 33)), torch.randint(0, 5, (2, 33, 33))).backward()
    assert all(p.grad is not None for p in learner.parameters())
    assert isinstance(learner.classifier[1], nn.Dropout2d)
    assert learner.classifier[1].p == 0.1
