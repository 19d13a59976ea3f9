from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hdmnet.data.datasets.base import LabelMapDataset
from hdmnet.data.types import Episode, EvaluationBatch, FeatureKey
from scripts.inspect.episode_scores import EpisodeScores

MASK = np.array([[1, 1, 0, 3], [2, 2, 0, 255]], dtype=np.uint8)


class Pictures(LabelMapDataset):
    name, class_names = "two", ("a", "b", "c")

    def ids(self, split):
        return ["q", "r"]

    def read_image(self, image_id):
        return np.zeros((*MASK.shape, 3), np.uint8)

    def read_mask(self, image_id):
        return MASK


def logits(*masks):
    """(B, 2, 2, 4): foreground where the masks are 1."""
    foreground = torch.tensor(masks, dtype=torch.float32)
    return torch.stack([0.5 * torch.ones_like(foreground), foreground], dim=1)


def truth(value):
    return torch.from_numpy(np.where(MASK == 255, 255, (value == MASK).astype(np.uint8)))


ALL = [[1, 1, 1, 1], [1, 1, 1, 1]]
SOME = [[1, 0, 0, 1], [1, 0, 0, 1]]


def planned():
    """Two episodes to compute; the first stands for two of the manifests."""
    none = torch.empty(0)
    keys = [FeatureKey("q"), FeatureKey("r")]
    return EvaluationBatch(
        drop=[], new_queries=[], query_images=none, new_supports=[], support_images=none, support_masks=none,
        queries=keys, supports=[[], []], query_masks_original=[truth(1), truth(2)], mask_index=[0, 1],
        class_index=torch.tensor([0, 1]), item=[0, 0, 1], index=torch.tensor([4, 2, 1]),
        seed_index=torch.tensor([1, 0, 0]),
    )  # fmt: skip


def plain():
    none = torch.empty(0)
    return Episode(
        query_image=none, query_mask=none, support_images=none, support_masks=none,
        class_index=torch.tensor([0, 1]), query_id=["q", "r"], support_ids=[[], []], index=torch.tensor([2, 1]),
        seed_index=torch.tensor([0, 0]), query_mask_original=[truth(1), truth(2)],
    )  # fmt: skip


@pytest.mark.parametrize("batch", [planned(), plain()], ids=["reuse", "plain"])
def test_scores_by_hand(batch):
    callback = EpisodeScores(Pictures())
    outputs = {"episode": batch, "output": SimpleNamespace(logits=logits(ALL, SOME))}
    callback.on_test_start(None, None)
    callback.on_test_batch_end(None, None, outputs, batch, 0)
    callback.on_test_end(None, None)
    scores = {(one.seed_index, one.index): one for one in callback.scores}
    assert list(scores) == sorted(scores)
    first, second = scores[0, 2], scores[0, 1]
    assert (first.query_id, first.class_index, first.true_positives) == ("q", 0, 2)
    assert first.iou == pytest.approx(2 / 7)
    assert first.false_positives.tolist() == [2, 0, 2, 1]  # background, a, b, c; the ignored pixel counts nowhere
    assert (second.query_id, second.class_index, second.true_positives) == ("r", 1, 1)
    assert second.iou == pytest.approx(1 / 4)
    assert second.false_positives.tolist() == [0, 1, 0, 1]
    if len(scores) == 3:
        assert scores[1, 4].false_positives.tolist() == first.false_positives.tolist()


def test_the_comparison_is_at_the_original_size():
    batch = plain()
    small = torch.nn.functional.avg_pool2d(logits(ALL, ALL), 2)  # (B, 2, 1, 2)
    scores = EpisodeScores(Pictures()).score({"episode": batch, "output": SimpleNamespace(logits=small)})
    assert scores[0].iou == pytest.approx(2 / 7)


def test_a_second_test_forgets_the_first():
    callback = EpisodeScores(Pictures())
    for _ in range(2):
        callback.on_test_start(None, None)
        outputs = {"episode": plain(), "output": SimpleNamespace(logits=logits(ALL, SOME))}
        callback.on_test_batch_end(None, None, outputs, None, 0)
    assert len(callback.scores) == 2
