"""What to look at first: the score by hand, the list's order, what the sheet shows."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from hdmnet.apps import review
from hdmnet.apps.review import ReviewWriter, certainty, class_certainty, refuse_review
from hdmnet.apps.segmenter import Prediction
from hdmnet.visual import mask_sheet
from hdmnet.visual.colours import PREDICTION


def predicted(**probabilities):
    """A picture of 2x2 pixels, labelled by its likeliest class above 0.5."""
    values = {name: np.array(one, np.float32).reshape(2, 2) for name, one in probabilities.items()}
    several = np.stack(list(values.values()))
    mask = np.where(several.max(0) > 0.5, several.argmax(0) + 1, 0).astype(np.uint8)
    return Prediction(mask, values)


SURE, UNSURE, NOTHING = (predicted(cat=one) for one in ([1, 1, 0, 0], [0.9, 0.6, 0.4, 0.1], [0.4, 0.2, 0.2, 0.2]))


def test_the_score_is_the_iou_that_the_probabilities_lead_to_expect():
    assert class_certainty(UNSURE.probability, UNSURE.mask == 1) == pytest.approx(1.5 / 2.5)
    assert certainty(UNSURE) == pytest.approx(0.6)
    assert certainty(SURE) == 1
    assert certainty(NOTHING) == 0


def test_of_several_classes_the_least_sure_one_that_was_found_counts():
    both = predicted(cat=[0.9, 0, 0, 0], dog=[0, 0.6, 0, 0], cow=[0.1, 0.1, 0.1, 0.1])
    assert certainty(both) == pytest.approx(0.6)
    assert [one.share for one in review.review(both)] == [0.25, 0.25, 0]


def read(folder):
    with (folder / "review.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def picture(grey):
    return np.full((2, 2, 3), grey, np.uint8)


def test_the_list_begins_with_what_is_least_certain(tmp_path):
    writer = ReviewWriter(tmp_path)
    both = predicted(cat=[0.9, 0, 0, 0], dog=[0, 0.7, 0, 0])
    none = predicted(cat=[0, 0, 0, 0], dog=[0, 0, 0, 0.1])
    for name, one in {"sure, a.jpg": predicted(cat=[1, 1, 0, 0], dog=[0, 0, 0, 0]), "b": both, "c": none}.items():
        writer.add(tmp_path / name, picture(0), one)
    (line,) = writer.close()
    assert "review.csv" in line
    assert [tuple(row.values()) for row in read(tmp_path)] == [
        ("1", str(tmp_path / "c"), "", "0.0000", "0.0000"),
        ("2", str(tmp_path / "b"), "dog", "0.7000", "0.2500"),
        ("2", str(tmp_path / "b"), "cat", "0.9000", "0.2500"),
        ("3", str(tmp_path / "sure, a.jpg"), "cat", "1.0000", "0.5000"),
    ]


def test_of_one_class_not_found_its_name_is_told(tmp_path):
    writer = ReviewWriter(tmp_path)
    for one in (SURE, NOTHING):
        writer.add(tmp_path / "a.jpg", picture(0), one)
    writer.close()
    assert [(row["class"], row["share"]) for row in read(tmp_path)] == [("cat", "0.0000"), ("cat", "0.5000")]


def test_the_sheet_shows_the_least_certain_in_order_with_what_was_found(tmp_path, monkeypatch):
    monkeypatch.setattr(review, "MOST_SHOWN", 2)
    writer = ReviewWriter(tmp_path)
    for grey, one in ((50, SURE), (100, UNSURE), (200, NOTHING)):
        writer.add(tmp_path / f"{grey}.png", picture(grey), one)
    writer.close()
    assert len(read(tmp_path)) == 3
    with Image.open(tmp_path / "review.png") as opened:
        sheet = np.asarray(opened).astype(int)
    width = mask_sheet._WIDTH + mask_sheet._GAP
    assert sheet.shape[1] == 2 * width + mask_sheet._GAP
    row = 30 + mask_sheet._GAP + mask_sheet._HEIGHT // 4  # a quarter down the pictures: of UNSURE in what was found
    nothing, unsure = (sheet[row, mask_sheet._GAP + place * width + mask_sheet._WIDTH // 2 - 20] for place in (0, 1))
    assert (nothing == 200).all()
    assert unsure == pytest.approx(0.55 * 100 + 0.45 * np.array(PREDICTION), abs=1.5)


def test_of_a_single_picture_there_is_nothing_to_put_in_order(tmp_path):
    writer = ReviewWriter(tmp_path)
    writer.add(tmp_path / "a.png", picture(0), SURE)
    assert writer.close() == []
    assert not list(tmp_path.iterdir())


def test_an_input_is_never_replaced(tmp_path):
    refuse_review(tmp_path / "other", [tmp_path / "review.png"])
    with pytest.raises(ValueError, match=r"holds review\.png, which is read and might be replaced"):
        refuse_review(tmp_path, [tmp_path / "a.png", tmp_path / "review.png"])
