"""The method's controls on the same features: what they are, and that the trunk runs once."""

from __future__ import annotations

import pytest
import torch

from hdmnet.data.types import Episode
from hdmnet.models.correlation.model import Correlation
from hdmnet.models.method import FewShotMethod, Segmentation
from hdmnet.models.prototype.model import Prototype
from hdmnet.tasks.controls import ONES, UNTRAINED, Controls, NoTrunkError, untrained_beside
from tests.helpers.coloured import Colours, episode
from tests.helpers.tiny_hdmnet import make_model
from tests.helpers.toy_method import Painter


class Counted(Colours):
    """Notes the size of each batch that it encodes."""

    seen: list[int] = []  # noqa: RUF012  (of the class: the trunk runs on a copy)

    def forward(self, images):
        self.seen.append(len(images))
        return super().forward(images)


class Whole(FewShotMethod):
    """Encodes its pictures together, with a backbone that learns."""

    def __init__(self, backbone):
        super().__init__()
        self.encoder = backbone

    def forward(self, query_image, support_images, support_masks, class_index=None):
        marked = support_masks.float().mean((1, 2, 3))[:, None, None]
        scores = self.encoder(query_image)[0].mean(1) * marked
        return Segmentation(torch.stack([-scores, scores], 1), tuple(query_image.shape[2:]))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    Counted.seen.clear()


def batch(shots=1):
    """Two episodes, of the red and of the green square."""
    (query, supports, red), _ = episode(shots, 0)
    (_, _, green), _ = episode(shots, 1)
    masks = torch.cat([red, green])
    return Episode(
        query_image=query.repeat(2, 1, 1, 1),
        query_mask=torch.zeros(2, 48, 64, dtype=torch.uint8),
        support_images=supports.repeat(2, 1, 1, 1, 1),
        support_masks=masks,
        class_index=torch.tensor([0, 1]),
        query_id=["q", "q"],
        support_ids=[["s"], ["s"]],
        index=torch.tensor([0, 1]),
        seed_index=torch.tensor([0, 0]),
    )


def segment(controls, given, chosen):
    """Through features that are kept one by one, as a test does."""
    queries = controls.encode_query(given.query_image).unbind()
    flat = controls.encode_support(given.support_images.flatten(0, 1), given.support_masks.flatten(0, 1)).unbind()
    shots = given.support_images.shape[1]
    return controls.match(queries, [flat[i * shots : (i + 1) * shots] for i in range(len(queries))], chosen)


@pytest.mark.parametrize("shots", [1, 3])
@pytest.mark.parametrize("kind", ["correlation", "whole"])
def test_they_are_the_prototype_and_the_method_with_masks_of_ones(kind, shots):
    method = (Correlation(encoder=Counted()) if kind == "correlation" else Whole(Counted())).eval()
    controls = Controls(method, untrained=untrained_beside(method))
    given = batch(shots)
    asked = (given.query_image, given.support_images)
    expected = {
        "final": method(*asked, given.support_masks),
        UNTRAINED: Prototype(encoder=Counted())(*asked, given.support_masks),
        ONES: method(*asked, torch.ones_like(given.support_masks)),
    }
    with torch.no_grad():
        for found in (segment(controls, given, [0, 1]), controls.run(given, [0, 1])):
            assert found.keys() == expected.keys()
            for name, one in expected.items():
                assert torch.allclose(found[name].logits, one.logits, atol=1e-5), name
        for found in (segment(controls, given, [1]), controls.run(given, [1])):
            assert len(found["final"].logits) == 2
            assert torch.allclose(found[ONES].logits, expected[ONES].logits[1:], atol=1e-5)


def test_the_trunk_runs_once_for_all_three():
    method = Correlation(encoder=Counted()).eval()
    given = batch()
    with torch.no_grad():
        method(given.query_image, given.support_images, given.support_masks)
        alone = list(Counted.seen)
        Counted.seen.clear()
        found = segment(Controls(method, untrained=untrained_beside(method)), given, [0, 1])
    assert sorted(Counted.seen) == sorted(alone)
    assert found.keys() == {"final", UNTRAINED, ONES}


def test_hdmnet_masks_its_supports_and_the_controls_share_those_that_are_whole():
    method = make_model(ensemble=False)
    controls = Controls(method, untrained=untrained_beside(method))
    calls = []
    prepared = method.trunk.prepare(torch.device("cpu"))
    prepared.backbone.register_forward_hook(lambda module, given, out: calls.append(given[0]))
    with torch.no_grad():
        controls.encode_query(torch.randn(1, 3, 65, 65))
        assert len(calls) == 1
        mask = torch.zeros(1, 65, 65, dtype=torch.uint8)
        mask[:, 20:50, 20:50] = 1
        controls.encode_support(torch.randn(1, 3, 65, 65), mask)
    assert len(calls) == 3  # masked; whole, for masks of ones and for the prototype


def test_what_is_shared_is_kept_once():
    method = Correlation(encoder=Colours()).eval()
    controls = Controls(method, untrained=untrained_beside(method))
    given = batch()
    queries = controls.encode_query(given.query_image)
    supports = controls.encode_support(given.support_images[:, 0], given.support_masks[:, 0])
    units = supports.parts["final"].units.nbytes
    assert queries.num_bytes == queries.parts["final"].units.nbytes
    assert units < supports.num_bytes < 1.5 * units
    one, other = supports.unbind()
    assert one.parts[ONES].units is one.parts["final"].units is one.parts[UNTRAINED].units
    assert one.num_bytes + other.num_bytes == supports.num_bytes


def test_they_run_on_the_first_episodes_of_the_first_seed():
    controls = Controls(Painter(), untrained=None, limit=3)
    assert controls.chosen(torch.tensor([0, 2, 3, 1]), torch.tensor([0, 0, 0, 1])) == [0, 1]
    assert Controls(Painter(), untrained=None).chosen(torch.tensor([9, 2]), torch.tensor([0, 1])) == [0]


def test_a_backbone_that_learns_still_does():
    method = Whole(Colours())
    untrained_beside(method)
    assert method.encoder.gain.requires_grad


def test_a_method_without_a_backbone_has_no_prototype():
    with pytest.raises(NoTrunkError, match="keeps no backbone"):
        untrained_beside(Painter())


def test_one_that_takes_too_much_memory_is_given_up():
    method = Correlation(encoder=Colours()).eval()
    controls = Controls(method, untrained=untrained_beside(method))

    def fail(*arguments, **named):
        raise torch.OutOfMemoryError

    controls.untrained.match = fail
    found = segment(controls, batch(), [0, 1])
    assert found.keys() == {"final", ONES}
    assert "memory" in controls.missing[UNTRAINED]
