from __future__ import annotations

import copy
import pickle

import pytest
import torch

from hdmnet.models.backbones.base import Backbone, FeatureInfo, encode
from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.backbones.prepare import prepare_trunk
from hdmnet.models.base_learner import BaseLearner
from hdmnet.models.frozen_backbone import FrozenBackbone
from tests.contracts import random_norms


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return random_norms(build_backbone("resnet_narrow", dilation=None)).eval()


@pytest.fixture
def images():
    return torch.randn(3, 3, 65, 49, generator=torch.Generator().manual_seed(1))


def test_all_levels_come_at_the_size_of_the_finest(backbone, images):
    frozen = FrozenBackbone(copy.deepcopy(backbone)).train()
    found = frozen(images)
    expected = encode(backbone, images, size_of=0)
    assert [info.channels for info in frozen.feature_info] == [64, 96, 128]
    assert {info.stride for info in frozen.feature_info} == {8}
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape[2:] == (9, 7)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert not ours.requires_grad
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not any(module.training for module in frozen.modules())


def test_levels_of_their_own_sizes_by_stage(backbone, images):
    prepare_trunk(backbone, layers=[1, 2, 4], every_block=True, trainable=[])
    frozen = FrozenBackbone(copy.deepcopy(backbone), one_size=False)
    for one in (frozen, copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
        for ours, theirs in zip(one(images), encode(backbone, images), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert [[info.stride for info in stage] for stage in frozen.stages] == [[4], [8], [32]]
    assert frozen.by_stage("abc") == [["a"], ["b"], ["c"]]


def test_one_that_was_meant_to_learn_is_refused(backbone):
    prepare_trunk(backbone, trainable=[4])
    with pytest.raises(ValueError, match=r"model\.trunk\.trainable: nothing of this method's trunk learns"):
        FrozenBackbone(backbone)


def test_without_normalisation_nothing_is_copied(images):
    backbone = build_backbone("vgg16_plain", dilation=None)
    frozen = FrozenBackbone(backbone, one_size=False)
    for ours, theirs in zip(frozen(images), encode(backbone, images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert frozen._prepared[0][1] is backbone


def test_some_levels(backbone, images):
    frozen = FrozenBackbone(copy.deepcopy(backbone), levels=[-2, -1])
    assert frozen.levels == (1, 2)
    found, expected = frozen(images), encode(backbone, images, size_of=1)[1:]
    assert {info.stride for info in frozen.feature_info} == {16}
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("number", "expected"), [(1, (2,)), (2, (1, 2)), (5, (0, 1, 2))])
def test_the_last_so_many_levels(backbone, number, expected):
    assert FrozenBackbone(backbone, levels=number).levels == expected


@pytest.mark.parametrize("number", [0, -1, True])
def test_numbers_of_levels_that_there_are_not(backbone, number):
    with pytest.raises(ValueError, match=r"^model\.levels=.*: expected an integer of 1 to 10000$"):
        FrozenBackbone(backbone, levels=number)


@pytest.mark.parametrize("levels", [[], [3], [-4], [2, 0], [1, 1], [True], ["last"], [-1, 2]])
def test_levels_that_there_are_not(backbone, levels):
    with pytest.raises(ValueError, match=r"^model\.levels=\[.*: the backbone has 3 levels; expected some of them"):
        FrozenBackbone(backbone, levels=levels)


def test_that_of_a_base_learner(backbone):
    learner = BaseLearner(backbone=backbone, num_base=2, feature_channels=8)
    assert set(FrozenBackbone(learner).state_dict()) == {f"backbone.{key}" for key in backbone.state_dict()}


class Counting(Backbone):
    """Counts the pictures that it encodes."""

    feature_info = (FeatureInfo(2, 1),)

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 2, 1)
        self.seen = []

    def forward(self, images):
        self.seen += [len(images)]
        return (self.layer(images),)

    def __deepcopy__(self, memo):
        copied = Counting()
        copied.load_state_dict(self.state_dict())
        copied.seen = self.seen
        return copied


def test_pictures_that_come_again_are_encoded_once():
    backbone, images = Counting(), torch.rand(4, 3, 5, 5)
    frozen = FrozenBackbone(backbone, cache_gb=1)
    (first,) = frozen(images[:3], keep=True)
    assert backbone.seen == [1, 1, 1]
    (again,) = frozen(images[[2, 3, 0]], keep=True)
    assert backbone.seen == [1] * 4
    assert torch.equal(again[0], first[2])
    torch.testing.assert_close(again, frozen(images[[2, 3, 0]])[0])
    frozen(images[:1].flip(-1), keep=True)  # another picture
    assert backbone.seen == [1] * 4 + [3, 1]


def test_what_is_kept_is_forgotten_with_the_weights_and_not_written_away():
    backbone, images = Counting(), torch.rand(1, 3, 5, 5)
    frozen = FrozenBackbone(backbone, cache_gb=1)
    (before,) = frozen(images, keep=True)
    assert pickle.loads(pickle.dumps(frozen))._kept == copy.deepcopy(frozen)._kept == {}
    with torch.no_grad():
        backbone.layer.bias.add_(1)
    torch.testing.assert_close(frozen(images, keep=True)[0], before + 1)


def test_no_more_is_kept_than_there_is_room_for():
    backbone, images = Counting(), torch.rand(3, 3, 5, 5)
    frozen = FrozenBackbone(backbone, cache_gb=2 * 2 * 25 * 4 / 1e9)  # two pictures of two channels, float32
    frozen(images, keep=True)
    frozen(images, keep=True)
    assert len(backbone.seen) == 3 + 1


def test_kept_features_are_told_apart_by_precision():
    frozen, images = FrozenBackbone(Counting(), cache_gb=1), torch.rand(1, 3, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert frozen(images, keep=True)[0].dtype == torch.bfloat16
    assert frozen(images, keep=True)[0].dtype == torch.float32
