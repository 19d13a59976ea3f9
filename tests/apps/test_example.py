"""The first try: pictures that are drawn, and what the packaged segmenter finds in them."""

from __future__ import annotations

import numpy as np
from PIL import Image

from hdmnet.apps.example import CLASS, NUM_QUERIES, SIDE
from hdmnet.data.datasets.shapes.dataset import ShapesDataset
from tests.helpers import commands


def test_the_object_is_found_in_each_picture(tmp_path):
    out = tmp_path / "out"
    answer = commands.call("predict", tmp_path, "example=true", f"output={out}", "device=cpu")
    assert answer.code == 0, answer.err
    dataset = ShapesDataset(picture_size=SIDE)
    value = dataset.class_names.index(CLASS) + 1
    drawn = {dataset.read_image(one).tobytes(): dataset.read_class_mask(one, value) for one in dataset.ids("val")[:60]}
    for number in range(1, 1 + NUM_QUERIES):
        truth = drawn[np.asarray(Image.open(out / "example" / f"query_{number}.png")).tobytes()] == 1
        found = np.asarray(Image.open(out / f"query_{number}_mask.png")) == 255
        assert truth.any()
        assert (found & truth).sum() / truth.sum() > 0.7


def test_pictures_of_ones_own_beside_it_are_refused(tmp_path):
    answer = commands.call("predict", tmp_path, "example=true", "query=[a.jpg]", f"output={tmp_path / 'out'}")
    assert answer.refusal() == "example=true draws its own pictures, and query is given; expected one of them"
    assert not (tmp_path / "out" / "example").exists()
