"""Contact sheets: which pictures are shown, where, and what is painted on them."""

from __future__ import annotations

import numpy as np
from PIL import Image

from hdmnet.data.datasets.base import LabelMapDataset
from hdmnet.visual.colours import TRUTH
from hdmnet.visual.contact_sheet import draw_contact_sheets, spread


class Squares(LabelMapDataset):
    """Black pictures (112, 150): class v of picture v-n is a square of side 20 + n from (10 v, 10 v) on."""

    name = "squares"

    def __init__(self, num_classes):
        self.class_names = tuple(f"class {value}" for value in range(1, num_classes + 1))

    def ids(self, split):
        return [f"{value}-{number}" for value in range(1, len(self.class_names) + 1) for number in range(value)]

    def read_image(self, image_id):
        return np.zeros((112, 150, 3), np.uint8)

    def read_mask(self, image_id):
        value, number = map(int, image_id.split("-"))
        mask = np.zeros((112, 150), np.uint8)
        mask[10 * value :, 10 * value :][: 20 + number, : 20 + number] = value
        return mask


def areas(dataset):
    return {image_id: dataset.class_areas(image_id) for image_id in dataset.ids("train")}


def test_each_class_is_shown_by_three_pictures_with_its_mask_beside_its_name(tmp_path):
    dataset = Squares(4)
    (file,) = draw_contact_sheets(dataset, areas(dataset), tmp_path / "deep" / "sheet.png")
    sheet = np.asarray(Image.open(file).convert("RGB"))
    cells = [(14 + row * (22 + 112 + 14), 14 + column * (3 * 156 + 14)) for row in range(2) for column in range(3)]
    for value, (top, left) in enumerate(cells[:4], start=1):
        assert (sheet[top : top + 20, left : left + 200] < 100).any()  # the name
        for number in range(3):
            place = sheet[top + 22 : top + 134, left + number * 156 : left + number * 156 + 150]
            if number >= value:
                assert (place == 255).all()
                continue
            painted = np.argwhere((place == TRUTH).all(axis=2))  # the outline
            side = 20 + [value - 1, *({2: [0], 3: [1, 0], 4: [2, 1]}.get(value, []))][number]
            assert np.abs(painted.min(0) - 10 * value).max() <= 1
            assert np.abs(painted.max(0) - (10 * value + side - 1)).max() <= 1


def test_of_many_pictures_large_and_small_objects_are_shown():
    assert spread(list("abc")) == ["a", "b", "c"]
    assert spread([str(number) for number in range(9)]) == ["0", "3", "6"]


def test_many_classes_take_several_sheets_and_those_of_before_go(tmp_path):
    many, few = Squares(40), Squares(2)
    many.read_mask = lambda image_id: np.full((112, 150), int(image_id.split("-")[0]), np.uint8)
    shown = {f"{value}-0": {value: 1} for value in range(1, 41)}
    files = draw_contact_sheets(many, shown, tmp_path / "sheet.png")
    assert [file.name for file in files] == ["sheet_1.png", "sheet_2.png"]
    assert draw_contact_sheets(few, areas(few), tmp_path / "sheet.png") == [tmp_path / "sheet.png"]
    assert [file.name for file in tmp_path.iterdir()] == ["sheet.png"]


def test_names_of_any_length_stay_in_their_cell(tmp_path):
    dataset = Squares(2)
    dataset.class_names = ("a very long name " * 20, "dog")
    (file,) = draw_contact_sheets(dataset, areas(dataset), tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(file).convert("L"))
    assert (sheet[14:34, 482 - 13 : 482 + 13] == 255).all()
