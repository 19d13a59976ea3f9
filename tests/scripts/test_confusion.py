from __future__ import annotations

import csv
import io

import numpy as np
from PIL import Image

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


def test_picture_is_drawn_also_without_any_false_positive(tmp_path):
    for name, counts in (("some", COUNTS), ("none", np.zeros_like(COUNTS))):
        confusion.draw(counts, PREDICTED, ROWS, COLUMNS, tmp_path / name, "title")
    some, none = (np.asarray(Image.open(tmp_path / name)) for name in ("some", "none"))
    assert some.shape[1] > none.shape[1]  # only classes that are hit have a column
    assert len(np.unique(some.reshape(-1, some.shape[2]), axis=0)) > 10
