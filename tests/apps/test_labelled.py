"""What is labelled already as supports: what `predict` writes comes back, and each format is told by its content."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from hdmnet.apps.label_writers import LabelWriters
from hdmnet.apps.labelled import read_labels
from hdmnet.apps.segmenter import Prediction
from hdmnet.apps.supports import leave_out_vanishing, parse_supports
from hdmnet.data.io.user_pictures import LabelledMask, read_user_mask, read_user_picture
from tests.helpers.random_masks import random_masks

CLASSES = ("cat", "big dog")
FORMATS = ("coco", "labelme", "yolo", "voc")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Masks, and what was written of them: by whether as polygons."""
    root = tmp_path_factory.mktemp("labels")
    (root / "pictures").mkdir()
    masks = {}
    for number, mask in enumerate(random_masks(48, len(CLASSES), seed=3)):
        path = root / "pictures" / f"p{number:02}.png"
        Image.fromarray(np.repeat(mask[..., None], 3, axis=2)).save(path)
        masks[path] = mask
    for polygons in (False, True):
        settings = {"polygons": polygons, "tolerance": 0.0, "instances": polygons}
        labels = LabelWriters(root / str(polygons), FORMATS, CLASSES, list(masks), **settings)
        for path, mask in masks.items():
            shares = {name: (mask == value).astype(np.float32) for value, name in enumerate(CLASSES, 1)}
            labels.add(path, path.stem, Prediction(mask, shares))
        labels.close()
    return root, masks


@pytest.mark.long
@pytest.mark.parametrize("polygons", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_what_was_written_comes_back(written, name, polygons):
    root, masks = written
    supports = parse_supports(str(root / str(polygons) / name))
    assert set(supports) == set(CLASSES)
    for value, label in enumerate(CLASSES, start=1):
        with_class = {path: mask for path, mask in masks.items() if (mask == value).any()}
        found = {picture.resolve(): mask.values for picture, mask in supports[label]}
        assert found.keys() == with_class.keys()
        for path, mask in with_class.items():
            assert (found[path] == (mask == value)).all()


def test_one_file_and_one_class_of_several(written):
    root, masks = written
    file = next(path for path, mask in masks.items() if {1, 2} <= set(np.unique(mask)))
    for labels in (f"labelme/{file.stem}.json", f"yolo/labels/{file.stem}.txt"):
        supports = parse_supports([str(root / "False" / labels)])
        assert {name: len(pairs) for name, pairs in supports.items()} == {"cat": 1, "big dog": 1}
    everything = root / "False" / "coco" / "annotations.json"
    supports = parse_supports({"cat": [str(everything), f"{file}:1,2,3,4"]})
    assert set(supports) == {"cat"}
    assert supports["cat"][-1] == (file, (1.0, 2.0, 3.0, 4.0))
    assert len(supports["cat"]) == 1 + sum((mask == 1).any() for mask in masks.values())
    joined = parse_supports([str(everything), f"{file}:1,2,3,4", str(root / "False" / "yolo" / "data.yaml")])
    assert set(joined) == {*CLASSES, "object"}
    assert len(joined["cat"]) == 2 * (len(supports["cat"]) - 1)
    with pytest.raises(ValueError, match=r"support names class 'fox', and .* has labels of big dog, cat"):
        parse_supports({"fox": [str(everything)]})


def coco(tmp_path, *annotations):
    Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    content = {
        "images": [{"id": 7, "file_name": "a.png", "height": 20, "width": 30}],
        "annotations": [{"id": at, "image_id": 7, "category_id": 3} | one for at, one in enumerate(annotations)],
        "categories": [{"id": 3, "name": "cat"}],
    }
    (tmp_path / "labels.json").write_text(json.dumps(content))
    return tmp_path / "labels.json"


def test_coco_s_regions_of_all_kinds_and_boxes_alone(tmp_path):
    runs = {"size": [20, 30], "counts": [0, 20, 580]}
    file = coco(
        tmp_path,
        {"segmentation": [[2, 3, 6, 3, 6, 9, 2, 9]], "bbox": [0, 0, 30, 20]},
        {"segmentation": [], "bbox": [10, 4, 5.0, 6.0]},
        {"bbox": [20, 10, 2, 2]},
        {"segmentation": runs},
    )
    expected = np.zeros((20, 30), dtype=np.uint8)
    expected[3:9, 2:6] = expected[4:10, 10:15] = expected[10:12, 20:22] = expected[:, 0] = 1
    for place in (file, tmp_path):
        (labels,) = read_labels(place)
        assert (labels.picture, labels.file) == (tmp_path / "a.png", file)
        assert (labels.masks["cat"] == expected).all()


def test_what_is_ignored_stays_so_beside_a_tiny_object(tmp_path):
    """Values alone would tell 255 for the object, see `object_masks`."""
    box = {"segmentation": [[0, 10, 30, 10, 30, 20, 0, 20]], "iscrowd": 1}
    file = coco(tmp_path, {"segmentation": [[2, 3, 3, 3, 3, 4, 2, 4]]}, box)
    large = Image.open(tmp_path / "a.png").resize((3000, 2000))
    ((picture, mask),) = parse_supports(str(file))["cat"]
    assert set(np.unique(mask.values)) == {0, 1, 255}
    values = np.full((2000, 3000), 255, dtype=np.uint8)
    values[5, 5] = 1
    read = read_user_mask(LabelledMask(values, picture), *read_user_picture(large))
    assert (read == values).all()


def test_objects_that_vanish_at_the_network_s_size_are_left_out(tmp_path, caplog):
    sizes = {"large": 40, "tiny": 1}
    supports = {
        name: [(tmp_path / f"{name}.png", LabelledMask(np.pad(np.ones((side, side), np.uint8), 30), tmp_path))]
        for name, side in sizes.items()
    }
    with pytest.raises(ValueError, match="all objects of class 'tiny' vanish at the network's 9x9: set a larger"):
        leave_out_vanishing(supports, (9, 9))
    joined = {"cat": supports["large"] + supports["tiny"], "dog": [(tmp_path / "d.png", (0.0, 0.0, 1.0, 1.0))]}
    assert leave_out_vanishing(joined, (9, 9)) == {"cat": supports["large"], "dog": joined["dog"]}
    assert caplog.messages == [f"support: {tmp_path}/tiny.png (cat): vanishes at the network's 9x9, left out"]


def test_formats_are_told_apart(written, tmp_path):
    root, _ = written
    shutil.copytree(root / "False" / "coco", tmp_path / "coco")
    shutil.copytree(root / "False" / "yolo", tmp_path / "yolo", symlinks=True)
    with pytest.raises(ValueError, match=r"labels of several formats \(coco, yolo\): name the file or folder of one"):
        read_labels(tmp_path)
    for name, content, message in [
        ("a.json", {"a": 1}, "a.json is a JSON of none of the known formats"),
        ("b.json", [{"image": "x.png", "label": []}], "b.json is a JSON of none of the known formats"),
    ]:
        (tmp_path / name).write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            read_labels(tmp_path / name)
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(ValueError, match=r"c.json is no JSON"):
        read_labels(tmp_path / "c.json")
    (tmp_path / "coco" / "annotations.json").unlink()
    with pytest.raises(ValueError, match="has no labelled object"):
        read_labels(coco(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no labels; expected a folder of LabelMe"):
        read_labels(tmp_path / "empty")
