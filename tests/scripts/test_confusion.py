from __future__ import annotations

import csv
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from hdmnet.data.datasets.base import LabelMapDataset
from hdmnet.data.types import Episode, EvaluationBatch, FeatureKey
from scripts.inspect import confusion

COUNTS = np.array([[30, 0, 20], [0, 10, 0]], dtype=np.int64)
PREDICTED = np.array([100, 40], dtype=np.int64)
ROWS, COLUMNS = ("cat", "car"), ("background", "truck", "dog")


def test_csv_holds_every_pixel():
    rows = list(csv.reader(io.StringIO(confusion.to_csv(COUNTS, PREDICTED, ROWS, COLUMNS))))
    assert rows[0] == ["class", "predicted_pixels", "false_positive_pixels", "background", "truck", "dog"]
    assert rows[1:] == [["cat", "100", "50", "30", "0", "20"], ["car", "40", "10", "0", "10", "0"]]


def test_summary_gives_shares_of_the_prediction_largest_first():
    lines = confusion.summarise(COUNTS, PREDICTED, ROWS, COLUMNS).splitlines()
    assert lines[1:] == ["cat   50.0: background 30.0, dog 20.0", "car   25.0: truck 25.0"]


def test_a_class_that_was_never_predicted_has_no_share():
    lines = confusion.summarise(np.zeros_like(COUNTS), np.array([0, 0]), ROWS, COLUMNS).splitlines()
    assert lines[1] == "cat    0.0: nothing"


@pytest.mark.long
def test_picture_is_drawn_also_without_any_false_positive(tmp_path):
    for name, counts in (("some", COUNTS), ("none", np.zeros_like(COUNTS))):
        confusion.draw(counts, PREDICTED, ROWS, COLUMNS, tmp_path / name, "title")
    some, none = (np.asarray(Image.open(tmp_path / name)) for name in ("some", "none"))
    assert some.shape[1] > none.shape[1]  # only classes that are hit have a column
    assert len(np.unique(some.reshape(-1, some.shape[2]), axis=0)) > 10


# ------------------------------------------------------------------------------------------------- the callback

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
NONE = torch.empty(0)


def planned():
    """Two episodes to compute; the first stands for two of the manifests."""
    keys = [FeatureKey("q"), FeatureKey("r")]
    return EvaluationBatch(
        drop=[], new_queries=[], query_images=NONE, new_supports=[], support_images=NONE, support_masks=NONE,
        queries=keys, supports=[[], []], query_masks_original=[truth(1), truth(2)], mask_index=[0, 1],
        class_index=torch.tensor([0, 1]), item=[0, 0, 1], index=torch.tensor([4, 2, 1]),
        seed_index=torch.tensor([1, 0, 0]),
    )  # fmt: skip


def plain():
    return Episode(
        query_image=NONE, query_mask=NONE, support_images=NONE, support_masks=NONE,
        class_index=torch.tensor([0, 1]), query_id=["q", "r"], support_ids=[[], []], index=torch.tensor([2, 1]),
        seed_index=torch.tensor([0, 0]), query_mask_original=[truth(1), truth(2)],
    )  # fmt: skip


@pytest.mark.parametrize(("batch", "times"), [(planned(), 2), (plain(), 1)], ids=["reuse", "plain"])
def test_false_positives_by_hand(batch, times):
    callback = confusion.FalsePositives(Pictures(), 2)
    for _ in range(2):  # a second test forgets the first
        callback.on_test_start(None, None)
        callback.on_test_batch_end(None, None, {"episode": batch, "output": SimpleNamespace(logits=logits(ALL, SOME))})
    # background, a, b, c; the ignored pixel counts nowhere
    assert callback.counts.tolist() == [[times * pixels for pixels in (2, 0, 2, 1)], [0, 1, 0, 1]]


def test_the_comparison_is_at_the_original_size():
    small = torch.nn.functional.avg_pool2d(logits(ALL, ALL), 2)  # (B, 2, 1, 2)
    callback = confusion.FalsePositives(Pictures(), 2)
    callback.add({"episode": plain(), "output": SimpleNamespace(logits=small)})
    assert callback.counts[0].tolist() == [2, 0, 2, 1]
