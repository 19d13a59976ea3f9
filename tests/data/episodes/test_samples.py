"""The truth of an episode of several classes: their masks in one."""

from __future__ import annotations

import numpy as np

from hdmnet.data.datasets.base import SegmentationDataset
from hdmnet.data.episodes.samples import read_labels
from tests.helpers.datasets import MemoryDataset

# Three classes whose masks overlap, the first two with pixels of their own to ignore.
MASKS = {
    1: [[1, 1, 1, 1, 1, 0, 255, 255]],
    2: [[0, 1, 1, 0, 0, 255, 1, 0]],
    3: [[0, 0, 1, 0, 0, 0, 0, 0]],
}


class Overlapping(SegmentationDataset):
    name, class_names, min_area = "overlapping", ("a", "b", "c"), 1

    def ids(self, split):
        return ["one"]

    def read_image(self, image_id):
        return np.zeros((1, 8, 3), np.uint8)

    def read_class_mask(self, image_id, class_value):
        return np.array(MASKS[class_value], np.uint8)


def test_by_hand():
    """The smaller of two lies on top; what any class ignores is ignored, unless it is another one's."""
    assert read_labels(Overlapping(), "one", (1, 2, 3)).tolist() == [[1, 2, 3, 1, 1, 255, 2, 255]]
    assert read_labels(Overlapping(), "one", (3, 1)).tolist() == [[2, 2, 1, 2, 2, 0, 255, 255]]


def test_of_one_class_it_is_its_mask():
    for value, mask in MASKS.items():
        assert read_labels(Overlapping(), "one", (value,)).tolist() == mask


def test_of_a_label_map_it_is_what_the_data_set_gives():
    dataset = MemoryDataset()
    for image_id in dataset.ids("val"):
        for classes in ((1, 2), (3, 8, 5), tuple(range(1, 9))):
            assert (read_labels(dataset, image_id, classes) == dataset.read_label_map(image_id, classes)).all()
