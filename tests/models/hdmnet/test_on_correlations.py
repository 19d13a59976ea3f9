"""`model=hdmnet_correlation`: HDMNet's meta learner on correlation maps alone."""

from __future__ import annotations

import pytest
import torch

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.hdmnet.on_correlations import HDMNetOnCorrelations
from hdmnet.models.prototype.model import Prototype
from tests.contracts import MethodContract


def make(**switches):
    torch.manual_seed(0)
    return HDMNetOnCorrelations(encoder=build_backbone("resnet_narrow"), **switches)


class TestHDMNetOnCorrelations(MethodContract):
    @pytest.fixture
    def method(self):
        return make()


class TestOneStage(MethodContract):
    @pytest.fixture
    def method(self):
        return make(num_stages=1, levels=[-2, -1], untrained_share=0.0, matching={"normalise": "support"})


def episode(shots=1):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 1 + shots, 3, 65, 65, generator=generator)
    masks = torch.zeros(2, shots, 65, 65)
    masks[:, :, 10:40, 20:50] = 1
    return images[:, 0], images[:, 1:], masks


@torch.no_grad()
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_before_training_it_answers_as_the_prototype(share):
    """The map is that of `model=prototype`; its threshold has no say of the supports here."""
    method = make(untrained_share=share).eval()
    prior = Prototype(encoder=build_backbone("resnet_narrow")).eval()
    prior.trunk = method.trunk
    output = method(*episode())
    expected = prior(*episode()).maps["prior"][0]
    torch.testing.assert_close(output.maps["prior"][0], expected, rtol=0, atol=1e-5)
    margin = output.scores[:, 1] - output.scores[:, 0]
    torch.testing.assert_close(margin, 20 * (expected - 0.75), rtol=0, atol=0.05)


def test_nothing_that_learns_sees_a_feature():
    """Features of other lengths in other axes: the same maps, the same answer."""
    method = make(levels=1).eval()
    rotation = torch.linalg.qr(
        torch.randn(method.widths[0], method.widths[0], generator=torch.Generator().manual_seed(2))
    )[0]
    images, supports, masks = episode()
    with torch.no_grad():
        expected = method(images, supports, masks).scores
        inner = method.trunk.forward
        method.trunk.forward = lambda x, keep=False: [
            3 * torch.einsum("bchw,cd->bdhw", level, rotation) for level in inner(x, keep=keep)
        ]
        torch.testing.assert_close(method(images, supports, masks).scores, expected, rtol=0, atol=1e-3)


@torch.no_grad()
def test_the_share_of_the_untrained_answer_counts_in_tests_only():
    method = make(untrained_share=0.5, dropout=0.0)
    torch.nn.init.normal_(method.decoder.head[-1].weight, std=0.5)
    trained = method.train()(*episode()).scores
    method.eval()
    blended = method(*episode()).scores.softmax(1)
    method.untrained_share = 0.0
    own = method(*episode()).scores
    torch.testing.assert_close(trained, own, rtol=0, atol=1e-3)
    start = (10 * (method(*episode()).maps["prior"][0] - 0.75))[:, None]
    start = torch.cat([-start, start], dim=1).softmax(1)
    torch.testing.assert_close(blended, (own.softmax(1) + start) / 2, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"untrained_share": 1.0}, r"^model\.untrained_share=1\.0: expected a number in \[0, 1\)$"),
        ({"num_stages": 5}, r"^model\.num_stages=5"),
        ({"matching": {"num_heads": 3}}, r"^model\.matching\.num_heads=3: expected a divisor of 64$"),
        ({"training_cache_gb": -1}, r"^model\.training_cache_gb=-1"),
    ],
)
def test_bad_values(switches, message):
    with pytest.raises(ValueError, match=message):
        make(**switches)
