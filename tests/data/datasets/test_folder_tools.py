"""Folders as annotation tools export them: Roboflow, Label Studio, LVIS and CVAT."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from hdmnet.data.datasets.coco import parse_line
from hdmnet.data.datasets.files import strip_path
from hdmnet.data.datasets.folder.dataset import FolderDataset


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


COLOURS = {"bird": (48, 112, 32), "cat": (176, 112, 32), "dog": (250, 50, 83)}


def coco_content(names=("cat", "dog", "bird")):
    """Pictures of 10 x 12 px, one object each; categories from 1 on."""
    box = [2, 3, 7, 3, 7, 8, 2, 8]
    pictures = [{"id": n, "file_name": f"{n}.png", "width": 12, "height": 10} for n in range(1, 1 + len(names))]
    annotations = [
        {"id": n, "image_id": n, "category_id": n, "segmentation": [box], "iscrowd": 0}
        for n in range(1, 1 + len(names))
    ]
    return {
        "images": pictures,
        "annotations": annotations,
        "categories": [{"id": n, "name": name} for n, name in enumerate(names, start=1)],
    }


def write_coco(root, content, folder="images"):
    for image in content["images"]:
        save(root / folder / f"{image['id']}.png", np.zeros((10, 12, 3), dtype=np.uint8))
    (root / "annotations.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("name", ["animals", "cat"])
def test_a_category_without_annotations_is_left_out_and_named(tmp_path, name):
    """Roboflow's category 0 is the project; it may be called as a class is."""
    content = coco_content()
    content["categories"].insert(0, {"id": 0, "name": name, "supercategory": "none"})
    content["categories"].append({"id": 9, "name": "fish", "supercategory": name})
    dataset = FolderDataset(write_coco(tmp_path, content), num_folds=3)
    assert dataset.class_names == ("cat", "dog", "bird")
    assert dataset.folds == ((1,), (2,), (3,))
    (line,) = (one.tell() for one in dataset.left_out())
    assert line == f"0 ({name!r}), 9 ('fish'): category without an annotation, no class"
    dataset.check()
    chosen = FolderDataset(tmp_path, classes=["fish", "cat"])
    assert (chosen.class_names, chosen.left_out()) == (("fish", "cat"), [])
    assert chosen.class_areas("1") == {2: 25}


def test_of_two_jsons_a_category_is_left_out_that_neither_uses(tmp_path):
    """One that only the training's has annotations of is a class of both."""
    for split, names in (("train", ("cat", "dog")), ("val", ("cat",))):
        content = coco_content(names)
        for image in content["images"]:
            image["file_name"] = f"{split}{image['file_name']}"
            save(tmp_path / "images" / image["file_name"], np.zeros((10, 12, 3), dtype=np.uint8))
        content["categories"] = [{"id": n, "name": name} for n, name in enumerate(("animals", "cat", "dog", "emu"))]
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    dataset = FolderDataset(tmp_path)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.tree.unused == ((0, "animals"), (3, "emu"))
    assert dataset.ids("val") == ["val1"]
    assert FolderDataset(tmp_path, classes=["dog"]).tree.unused == ()


def test_two_categories_of_one_name_are_refused_if_both_are_used(tmp_path):
    content = coco_content(("cat", "cat"))
    with pytest.raises(ValueError, match=r"categories of .*annotations.json holds id 'cat' more than once"):
        FolderDataset(write_coco(tmp_path, content))


def test_annotations_of_no_category_leave_the_categories(tmp_path):
    content = coco_content()
    for annotation in content["annotations"]:
        annotation["category_id"] = "one"
    dataset = FolderDataset(write_coco(tmp_path, content))
    assert dataset.class_names == ("cat", "dog", "bird")
    assert len(dataset.tree.problems) == 3


@pytest.mark.parametrize("prefix", ["images\\", "deep\\er\\", ".\\images\\"])
def test_file_names_of_windows(tmp_path, prefix):
    content = coco_content()
    for image in content["images"]:
        image["file_name"] = prefix + image["file_name"]
    dataset = FolderDataset(write_coco(tmp_path, content, folder=prefix.replace("\\", "/")))
    dataset.check()
    folder = prefix.removeprefix(".\\").replace("\\", "/")
    assert dataset.ids("val") == [f"{folder}{n}" for n in (1, 2, 3)]
    assert dataset.read_image(f"{folder}1").shape == (10, 12, 3)


def test_lists_of_windows(tmp_path):
    for name in ("a/1", "a/2"):
        save(tmp_path / f"images/{name}.png", np.zeros((4, 4, 3), dtype=np.uint8))
        save(tmp_path / f"masks/{name}.png", np.ones((4, 4), dtype=np.uint8))
    (tmp_path / "classes.txt").write_text("cat\n")
    (tmp_path / "val.txt").write_text("a\\1.png\r\na\\2\r\n")
    assert FolderDataset(tmp_path, val_list="val.txt").ids("val") == ["a/1", "a/2"]
    assert strip_path("JPEGImages\\1.jpg SegmentationClass\\1.png") == "1"
    assert parse_line("train2014\\COCO_1.jpg", "val2014") == "train2014/COCO_1"


def test_files_that_bear_a_whole_path_of_windows(tmp_path):
    content = coco_content()
    for image in content["images"]:
        image["file_name"] = "images\\" + image["file_name"]
        save(tmp_path / image["file_name"], np.zeros((10, 12, 3), dtype=np.uint8))
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    dataset = FolderDataset(tmp_path)
    dataset.check()
    assert dataset.read_image("images/1").shape == (10, 12, 3)


@pytest.mark.parametrize(
    "name", ["..\\..\\a.png", "/a.png", "C:\\pictures\\a.png", "c:/a.png", "a\\..\\..\\b.png", "..", "\\\\host\\a.png"]
)
def test_file_names_never_lead_outside(tmp_path, name):
    content = coco_content()
    content["images"][0]["file_name"] = name
    with pytest.raises(ValueError, match=r"leads outside, expected a path below .*: write it as"):
        FolderDataset(write_coco(tmp_path, content))


@pytest.mark.parametrize("folder", ["images", "train2017", "images/train2017"])
def test_pictures_of_lvis_are_named_by_a_url(tmp_path, folder):
    """No file_name, no iscrowd, ids with gaps, names with parentheses."""
    content = coco_content(("bow_(weapon)", "cat"))
    for image in content["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{image.pop('file_name')}"
    for one in (*content["annotations"], *content["categories"]):
        one.pop("iscrowd", None)
        key = "category_id" if "category_id" in one else "id"
        one[key] = 17 * one[key]
    dataset = FolderDataset(write_coco(tmp_path, content, folder=folder))
    dataset.check()
    assert dataset.class_names == ("bow_(weapon)", "cat")
    assert [image_id.rpartition("/")[2] for image_id in dataset.ids("val")] == ["1", "2"]
    assert dataset.class_areas(dataset.ids("val")[1]) == {2: 25}


def test_pictures_without_any_name(tmp_path):
    content = coco_content()
    del content["images"][0]["file_name"]
    with pytest.raises(
        ValueError, match=r"is no COCO-style annotation file \(KeyError: 'file_name'\): export it again"
    ):
        FolderDataset(write_coco(tmp_path, content))


@pytest.mark.parametrize("num_folds", [2, 5])
def test_a_single_class_is_for_tests(tmp_path, num_folds):
    save(tmp_path / "images/a.png", np.zeros((8, 8, 3), dtype=np.uint8))
    save(tmp_path / "masks/a.png", np.ones((8, 8), dtype=np.uint8))
    (tmp_path / "classes.txt").write_text("erosion\n")
    with pytest.raises(
        ValueError,
        match=rf"dataset.num_folds={num_folds}: mine has a single class, 'erosion', and a training",
    ):
        FolderDataset(tmp_path, name="mine", num_folds=num_folds)
    assert (
        FolderDataset(tmp_path).class_split(0).test == FolderDataset(tmp_path, num_folds=1).class_split(0).test == (1,)
    )


# -------------------------------------------------------------------------------------------------- masks in colours


@pytest.fixture(params=["colours", "palette", "places"])
def cvat(request, tmp_path):
    """CVAT's "Segmentation mask 1.1": one class a picture, `labelmap.txt`; the classes as (8, 8) values by id."""
    order, expected = ["background", *COLOURS], {}
    for number, name in enumerate(("cat", "dog", "bird"), start=1):
        mask = np.zeros((8, 8), dtype=np.uint8)
        mask[2:5, 1 : 3 + number] = 1
        expected[name] = mask * np.uint8(order.index(name))
        colours = np.zeros((8, 8, 3), dtype=np.uint8)
        colours[mask == 1] = COLOURS[name]
        saved = {"colours": colours, "palette": None, "places": expected[name]}[request.param]
        save(tmp_path / f"JPEGImages/{name}.jpg", np.zeros((8, 8, 3), dtype=np.uint8))
        if saved is None:
            (tmp_path / "SegmentationClass").mkdir(exist_ok=True)
            Image.fromarray(colours).quantize(8).save(tmp_path / f"SegmentationClass/{name}.png")
        else:
            save(tmp_path / f"SegmentationClass/{name}.png", saved)
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::"]
    lines += [f"{name}:{','.join(map(str, colour))}::" for name, colour in COLOURS.items()]
    (tmp_path / "labelmap.txt").write_text("\n".join(lines) + "\n")
    return tmp_path, expected


@pytest.mark.parametrize("given", [{}, {"classes": "labelmap.txt"}, {"colours": "labelmap.txt"}])
def test_cvats_masks(cvat, given):
    root, expected = cvat
    dataset = pickle.loads(pickle.dumps(FolderDataset(root, **given)))
    dataset.check()
    assert (dataset.tree.layout, dataset.class_names) == ("index", ("bird", "cat", "dog"))
    for image_id, mask in expected.items():
        np.testing.assert_array_equal(dataset.read_mask(image_id), mask)
        assert dataset.class_areas(image_id) == {int(mask.max()): int((mask > 0).sum())}


def test_some_of_the_classes_of_a_list_of_colours(cvat):
    root, expected = cvat
    dataset = FolderDataset(root, classes=["dog", "bird"])
    assert dataset.class_names == ("dog", "bird")
    for name, value in (("dog", 1), ("bird", 2), ("cat", 0)):
        np.testing.assert_array_equal(dataset.read_mask(name), (expected[name] > 0) * value)
    with pytest.raises(ValueError, match=r"class 'fish' of the list of classes is not in .*labelmap.txt, which has"):
        FolderDataset(root, classes=["fish"])


def test_another_list_of_colours_changes_the_fingerprint(cvat):
    root, _ = cvat
    before = FolderDataset(root).fingerprint("val")
    (root / "labelmap.txt").write_text((root / "labelmap.txt").read_text() + "fish:1,2,3::\n")
    assert FolderDataset(root).fingerprint("val") != before


def test_a_folders_own_classes_say_what_the_values_of_index_masks_are(tmp_path):
    """Whatever a list of colours beside it has for its lines."""
    save(tmp_path / "images/a.png", np.zeros((2, 3, 3), dtype=np.uint8))
    save(tmp_path / "masks/a.png", np.array([[0, 1, 2], [0, 0, 255]], dtype=np.uint8))
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    (tmp_path / "labelmap.txt").write_text("background:0,0,0::\ncat:10,0,0::\ndog:20,0,0::\n")
    np.testing.assert_array_equal(FolderDataset(tmp_path).read_mask("a"), [[0, 1, 2], [0, 0, 255]])
    np.testing.assert_array_equal(FolderDataset(tmp_path, classes=["cat"]).read_mask("a"), [[0, 0, 1], [0, 0, 255]])


def test_lists_of_colours_that_are_wrong(tmp_path):
    save(tmp_path / "images/a.png", np.zeros((2, 3, 3), dtype=np.uint8))
    save(tmp_path / "masks/a.png", np.zeros((2, 3, 3), dtype=np.uint8))
    with pytest.raises(FileNotFoundError, match=r"for masks in colours write labelmap.txt, NAME:R,G,B in each line"):
        FolderDataset(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"list of colours 'none.txt' is in neither .* nor "):
        FolderDataset(tmp_path, colours="none.txt")
    (tmp_path / "names.txt").write_text("cat\n")
    with pytest.raises(ValueError, match=r"names.txt holds no colour, expected NAME:R,G,B in each line: correct"):
        FolderDataset(tmp_path, colours="names.txt")
