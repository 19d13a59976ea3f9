"""How an evaluation resizes and scores, on masks small enough to count."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hdmnet.data.episodes.rules import EvaluationRules
from hdmnet.data.episodes.samples import EvalEpisodes
from hdmnet.data.transforms import padded_size
from hdmnet.data.vanished import vanished_classes
from hdmnet.metrics import count_pixels
from hdmnet.models.method import Segmentation
from hdmnet.tasks.feature_store import count_predictions
from tests.helpers.datasets import MemoryDataset, few_shot


@pytest.mark.parametrize(
    ("original", "size", "expected"),
    [
        ((375, 500), (473, 473), (352, 472)),  # 473 · 375 / 500 = 354.75, cut to 352 and 472: PFENet's find_new_hw
        ((500, 375), (473, 473), (472, 352)),
        ((480, 640), (641, 641), (480, 640)),  # 480.75 and 641
        ((300, 300), (473, 473), (472, 472)),
        ((500, 500), (640, 640), (640, 640)),  # a multiple of 8 stays, whatever floats say
        ((4, 400), (80, 80), (8, 80)),  # never nothing
        ((100, 100), (40, 64), (40, 40)),
    ],
)
def test_padded_pictures_keep_their_aspect(original, size, expected):
    assert padded_size(original, size) == expected


def test_a_padded_picture_stands_at_the_top_left_on_black_and_its_mask_on_255():
    image, mask = np.full((8, 16, 3), 200, np.uint8), np.ones((8, 16), np.uint8)
    rules = EvaluationRules(resize="pad")
    wide, labels = rules.image(image, (16, 16)), rules.mask(mask, (16, 16))
    assert np.unique(wide[:8]).tolist() == [200]
    assert not wide[8:].any()
    assert labels[:, 0].tolist() == [1] * 8 + [255] * 8
    assert not EvaluationRules(resize="pad", padding="background").mask(mask, (16, 16))[8:].any()


@pytest.mark.parametrize(
    ("rules", "shape", "pixels"),
    [
        ({}, (8, 16), {0: 96, 1: 32}),  # as it is
        ({"score_at": "network"}, (16, 16), {0: 192, 1: 64}),  # every row twice
        ({"resize": "pad"}, (16, 16), {0: 96, 1: 32, 255: 128}),  # the lower half is no picture
        ({"resize": "pad", "padding": "background"}, (16, 16), {0: 224, 1: 32}),
        ({"resize": "pad", "score_at": "network"}, (16, 16), {0: 96, 1: 32, 255: 128}),
    ],
)
def test_what_predictions_are_compared_with(rules, shape, pixels):
    mask = np.zeros((8, 16), np.uint8)
    mask[:, :4] = 1
    target = EvaluationRules(**rules).target(mask, (16, 16))
    assert target.shape == shape
    assert dict(zip(*np.unique(target, return_counts=True), strict=True)) == pixels


def test_a_padded_prediction_meets_its_own_pixels():
    """The whole input is taken for a square of the longer side, as PFENet does: row 5 of it is row 5 of the picture."""
    mask = np.zeros((20, 40), np.uint8)
    mask[:10] = 1
    target = torch.from_numpy(EvaluationRules(resize="pad").target(mask, (16, 16)))
    scores = torch.zeros(1, 2, 16, 16)
    scores[:, 1, :4], scores[:, 1, 4:] = 1, -1  # a quarter of the 40 rows
    pixels = count_predictions(Segmentation(scores, (16, 16)), "final", [target], mask_index=[0])[0]
    assert pixels.sum() == 20 * 40  # nothing of the padding counts
    assert int(pixels[1, 0]) + int(pixels[0, 1]) <= 40  # a row at most
    assert count_pixels(torch.ones(1, 40, 40, dtype=torch.bool), target[None]).tolist() == [[[0, 400], [0, 400]]]


@pytest.mark.parametrize(("key", "value"), [("resize", "crop"), ("score_at", "half"), ("queries", "all")])
def test_other_values_are_refused(key, value):
    with pytest.raises(ValueError, match=f"^{key}='{value}'; expected one of "):
        EvaluationRules(**{key: value})


def test_episodes_follow_the_rules_with_reuse_and_without():
    rules = EvaluationRules(resize="pad", score_at="network")
    module = few_shot(setup="test", image_size=(32, 40), rules=rules)
    episodes = EvalEpisodes(
        module.dataset, module.test_manifests, classes=module.class_split.test, image_size=(32, 40), rules=rules
    )
    for index in range(len(episodes)):
        episode = episodes[index]
        spec = episodes.locate(index)[1]
        assert episode.query_mask_original.shape == (32, 40)
        assert (episode.query_image == episodes.query_picture(spec.query_id)).all()
        assert (episode.query_mask_original == episodes.query_mask_original(spec.query_id, spec.class_value)).all()
        image, mask = episodes.support_pair(spec.support_ids[0], spec.class_value)
        assert (episode.support_images[0] == image).all()
        assert (episode.support_masks[0] == mask).all()
    assert module.train_manifest is None
    module.setup("fit")
    assert module.train_manifest.protocol == "uniform"  # rules are of evaluation


def test_what_vanishes_is_looked_for_at_the_padded_size():
    class Thin(MemoryDataset):
        """A row of one pixel in a wide picture: a square of 16 rows has it, of 8 none."""

        def image_size(self, image_id):
            return (16, 32)

        def read_class_mask(self, image_id, class_value):
            mask = np.zeros((16, 32), np.uint8)
            mask[3] = 1
            return mask

    assert vanished_classes(Thin(), "0", {1: 32}, (16, 16)) == []
    assert vanished_classes(Thin(), "0", {1: 32}, (16, 16), pad=True) == [1]
