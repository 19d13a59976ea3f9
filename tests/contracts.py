"""What every class of a kind has to do, as test classes: a subclass gives the fixture, the tests come with it."""

from __future__ import annotations

import copy
import io

import pytest
import torch

from hdmnet.models.backbones.base import encode
from hdmnet.models.base_learner import BaseLearner
from hdmnet.models.trunk import FrozenTrunk


class BackboneContract:
    """Give the fixture `backbone`: one with random weights, small enough for a CPU."""

    @pytest.fixture
    def backbone(self):
        raise NotImplementedError

    @pytest.mark.parametrize("size", [(65, 65), (64, 96), (71, 105)])
    def test_features_are_as_declared_at_any_size(self, backbone, size):
        with torch.no_grad():
            levels = encode(backbone.eval(), torch.randn(1, 3, *size))
        strides = [info.stride for info in backbone.feature_info]
        assert strides == sorted(strides)
        assert [tuple(level.shape[1:]) for level in levels] == [
            (info.channels, -(-size[0] // info.stride), -(-size[1] // info.stride)) for info in backbone.feature_info
        ]

    def test_a_trunk_of_it_computes_what_the_plain_modules_compute(self, backbone):
        """Folding, channels-last and a copy change nothing; frozen and deterministic whatever `train()` says."""
        learner = BaseLearner(backbone=backbone, num_base=3, feature_channels=8).eval()
        for module in learner.modules():  # normalisations that do something
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.uniform_(module.bias, -0.5, 0.5)
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2)
        images = torch.randn(2, 3, 71, 89)
        with torch.no_grad():
            *expected, layer4 = encode(backbone, images, size_of=-2)[-3:]
            expected += [layer4, learner.reduce(learner.pyramid_pooling(layer4))]
            logits = learner(images)
        before = copy.deepcopy(learner.state_dict())
        trunk = FrozenTrunk(learner).train()
        features = trunk(images)
        found = [features.layer2, features.layer3, features.layer4, features.base_feature]
        assert len({level.shape[2:] for level in found}) == 1
        for ours, theirs in zip(found, expected, strict=True):
            assert (ours - theirs).abs().max() <= 2e-5 * theirs.abs().max()
            assert not ours.requires_grad
        assert torch.equal(trunk(images).base_feature, features.base_feature)
        upsampled = torch.nn.functional.interpolate(
            trunk.classify(features.base_feature), images.shape[2:], mode="bilinear", align_corners=True
        )
        assert (upsampled - logits).abs().max() <= 1e-4 * logits.abs().max()
        assert all(torch.equal(value, before[key]) for key, value in learner.state_dict().items())

    def test_it_is_copied_and_pickled(self, backbone):
        images = torch.randn(1, 3, 65, 65)
        file = io.BytesIO()
        torch.save(backbone.eval(), file)
        file.seek(0)
        with torch.no_grad():
            expected = encode(backbone, images)
            for other in (copy.deepcopy(backbone), torch.load(file, weights_only=False)):
                assert other.feature_info == backbone.feature_info
                for ours, theirs in zip(encode(other, images), expected, strict=True):
                    assert torch.equal(ours, theirs)

    def test_all_of_it_learns_in_stage_1(self, backbone):
        learner = BaseLearner(backbone=backbone, num_base=3, feature_channels=8).train()
        learner(torch.randn(2, 3, 65, 65)).sum().backward()
        without = [name for name, p in learner.named_parameters() if p.requires_grad and p.grad is None]
        assert not without, "these would stop a training on several devices"
