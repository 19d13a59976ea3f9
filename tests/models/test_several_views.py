"""Test-time augmentation: the mean answer over scales and mirror images."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.prototype.model import Prototype
from hdmnet.models.several_views import ViewAverage, add_views
from tests.contracts import MethodContract


def make(**views):
    torch.manual_seed(0)
    return ViewAverage(Prototype(encoder=build_backbone("resnet_narrow")), **views).eval()


class TestTwoScalesAndFlips(MethodContract):
    @pytest.fixture
    def method(self):
        return make(scales=[1.0, 0.5], flip=True)


def episode(shots=2):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 1 + shots, 3, 65, 65, generator=generator)
    masks = torch.zeros(2, shots, 65, 65, dtype=torch.uint8)
    masks[:, :, 10:40, 20:50] = 1
    masks[:, :, 0:4] = 255
    return images[:, 0], images[:, 1:], masks


@torch.no_grad()
def test_the_answer_is_the_mean_of_those_to_each_view():
    method = make(scales=[1.0, 0.5], flip=True)
    query, supports, masks = episode()
    small = [F.interpolate(x, (33, 33), mode="bilinear", antialias=True) for x in (query, supports.flatten(0, 1))]
    small_masks = F.interpolate(masks.float(), (33, 33), mode="nearest-exact")
    expected = torch.zeros(2, 2, 65, 65)
    for own, others, own_masks in (
        (query, supports, masks),
        (small[0], small[1].unflatten(0, (2, 2)), small_masks),
    ):
        for mirrored in (False, True):
            view = own.flip(3) if mirrored else own
            scores = method.method(view, others, own_masks).scores
            found = F.interpolate(scores, (65, 65), mode="bilinear", align_corners=True).softmax(1)
            expected += (found.flip(3) if mirrored else found) / 4
    output = method(query, supports, masks)
    assert output.is_probability
    torch.testing.assert_close(output.scores, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_one_view_is_the_method_itself():
    inner = make().method
    assert add_views(inner, [1.0], False) is inner
    assert isinstance(add_views(inner, [1.0], True), ViewAverage)
    output = make()(*episode())
    assert torch.equal(output.prediction, make().method(*episode()).prediction)


@torch.no_grad()
def test_a_mirrored_query_gives_the_mirrored_answer():
    method = make(flip=True)
    query, supports, masks = episode()
    there, back = method(query, supports, masks).scores, method(query.flip(3), supports, masks).scores
    torch.testing.assert_close(back.flip(3), there, rtol=0, atol=1e-6)


@torch.no_grad()
def test_likeness_is_the_mean_over_the_views():
    method = make(flip=True)
    query, supports, masks = episode()
    views = [method.method(view, supports, masks).likeness for view in (query, query.flip(3))]
    torch.testing.assert_close(method(query, supports, masks).likeness, torch.stack(views).mean(0))


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ({"scales": []}, r"^test_scales=\[\]: expected numbers above 0"),
        ({"scales": [1.0, 0.0]}, r"^test_scales=0\.0: expected a number above 0$"),
        ({"flip": "yes"}, r"^test_flip=yes: expected true or false$"),
    ],
)
def test_bad_values(views, message):
    with pytest.raises(ValueError, match=message):
        make(**views)
