"""The written trees are what PIL and pycocotools take for VOC and COCO, and agree with the pictures they came from."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from hdmnet.data.class_split import split_classes
from hdmnet.data.datasets.folder.dataset import FolderDataset
from hdmnet.data.datasets.shapes.dataset import ShapesDataset
from hdmnet.data.io.masks import voc_palette

# pycocotools 2.0's compiled decoder has an __array__ without numpy 2's copy keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

SCRIPT = Path(__file__).parents[2] / "scripts" / "data" / "write_shapes.py"
COCO_IDS = [
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    10,
    11,
    13,
    14,
    15,
    16,
    17,
    18,
    19,
    20,
    21,
    22,
    23,
    24,
    25,
    27,
    28,
    31,
    32,
    33,
    34,
]
COCO_IDS += [35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62]
COCO_IDS += [63, 64, 65, 67, 70, 72, 73, 74, 75, 76, 77, 78, 79, 80, 81, 82, 84, 85, 86, 87, 88, 89, 90]


def load_script():
    spec = importlib.util.spec_from_file_location("write_shapes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["write_shapes"] = module
    spec.loader.exec_module(module)
    return module


script = load_script()


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    root = tmp_path_factory.mktemp("trees") / "voc"
    arguments = [
        "--format",
        "voc",
        "--output",
        str(root),
        "--num-train",
        "6",
        "--num-val",
        "4",
        "--image-size",
        "100",
        "140",
    ]
    assert script.main([*arguments, "--seed", "3"]) == 0
    return root


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    root = tmp_path_factory.mktemp("trees") / "coco"
    arguments = ["--format", "coco", "--output", str(root), "--num-train", "48", "--num-val", "16"]
    assert script.main([*arguments, "--image-size", "160"]) == 0
    return root


@pytest.fixture(scope="module")
def coco_dataset():
    return ShapesDataset(
        picture_size=160,
        num_train=48,
        num_val=16,
        num_classes=80,
        split_rule="interleaved",
        object_scale=1.2,
        vary_size=True,
    )


def test_voc_tree_holds_lists_pictures_and_palette_masks(voc):
    dataset = ShapesDataset(
        generator_seed=3, picture_size=(100, 140), num_train=6, num_val=4, object_scale=1.2, vary_size=True
    )
    lists = {
        name: (voc / f"ImageSets/Segmentation/{name}.txt").read_text().split() for name in ("train", "val", "trainval")
    }
    assert lists["train"] == [f"2011_{i:06d}" for i in range(1, 7)]
    assert lists["val"] == [f"2012_{i:06d}" for i in range(1, 5)]
    assert lists["trainval"] == lists["train"] + lists["val"]
    for name, image_id in zip(lists["trainval"], dataset.ids("train") + dataset.ids("val"), strict=True):
        for folder in ("SegmentationClass", "SegmentationClassAug"):
            mask = Image.open(voc / folder / f"{name}.png")
            assert mask.mode == "P"
            assert mask.getpalette()[:6] == [0, 0, 0, 128, 0, 0]
            assert mask.getpalette() == list(voc_palette())
            assert np.array_equal(np.asarray(mask), dataset.read_mask(image_id))
        picture = np.asarray(Image.open(voc / f"JPEGImages/{name}.jpg")).astype(int)
        difference = np.abs(picture - dataset.read_image(image_id))
        assert difference.mean() < 12  # JPEG, colours at half the resolution


def test_coco_categories_and_names_are_those_of_coco(coco):
    assert len(COCO_IDS) == 80
    content = json.loads((coco / "annotations/instances_train2014.json").read_text())
    assert [category["id"] for category in content["categories"]] == COCO_IDS
    assert content["categories"][11]["name"] == "speckled mushroom"
    assert content["images"][0]["file_name"] == "COCO_train2014_000000000009.jpg"
    for image in content["images"]:
        with Image.open(coco / "train2014" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])


@pytest.mark.parametrize("split", ["train", "val"])
def test_polygons_cover_the_visible_objects(coco, coco_dataset, split):
    reader = COCO(coco / f"annotations/instances_{split}2014.json")
    assert len({annotation["id"] for annotation in reader.dataset["annotations"]}) == len(reader.anns)
    for index, image_id in enumerate(reader.getImgIds()):
        sample = coco_dataset.sample(coco_dataset.ids(split)[index])
        objects = {}  # class → its pixels, visible or not
        for position, value in enumerate(sample.classes):
            objects[value] = objects.get(value, False) | (sample.instances == position + 1)
        drawn = {}
        for annotation in reader.loadAnns(reader.getAnnIds(imgIds=image_id)):
            mask = reader.annToMask(annotation).astype(bool)
            assert mask.shape == sample.mask.shape
            if annotation["iscrowd"]:
                assert mask.sum() == annotation["area"]
                continue
            x, y, width, height = coco_mask.toBbox(reader.annToRLE(annotation))
            assert np.allclose([x, y, width, height], annotation["bbox"], atol=3)
            value = COCO_IDS.index(annotation["category_id"]) + 1
            drawn[value] = drawn.get(value, False) | mask
        crowded = index % script.CROWD_EVERY == script.CROWD_EVERY - 1
        for value in () if crowded else drawn:
            # Holes are filled in polygons: all of the object is covered, and little else of the background.
            missed = objects[value] & ~drawn[value]
            assert missed.sum() <= 0.06 * objects[value].sum() + 12
            assert (drawn[value] & ~objects[value] & (sample.instances == 0)).sum() <= 0.45 * objects[value].sum() + 12


def test_coco_tree_holds_cut_objects_and_crowds(coco):
    content = json.loads((coco / "annotations/instances_train2014.json").read_text())
    polygons = [a["segmentation"] for a in content["annotations"] if not a["iscrowd"]]
    assert any(len(parts) > 1 for parts in polygons)
    assert all(len(part) >= 6 and len(part) % 2 == 0 for parts in polygons for part in parts)
    crowds = [a for a in content["annotations"] if a["iscrowd"]]
    assert len(crowds) == 48 // script.CROWD_EVERY
    for crowd in crowds:
        assert sum(crowd["segmentation"]["counts"]) == np.prod(crowd["segmentation"]["size"])
        others = [a for a in content["annotations"] if a["image_id"] == crowd["image_id"] and not a["iscrowd"]]
        size = crowd["segmentation"]["size"]
        region = coco_mask.decode(coco_mask.frPyObjects(crowd["segmentation"], *size)).astype(bool)
        overlaps = [
            (coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(a["segmentation"], *size))) & region).sum()
            for a in others
        ]
        assert max(overlaps) > 50  # it covers an object that has its own entry
        assert region.sum() > max(overlaps)  # and one that has none


def test_encode_counts_by_hand():
    mask = np.array([[0, 1], [1, 1]], dtype=bool)
    assert script.encode_counts(mask) == [1, 3]
    assert script.encode_counts(~mask) == [0, 1, 3]
    assert script.encode_counts(np.zeros((2, 3), dtype=bool)) == [6]
    assert script.encode_counts(np.ones((2, 3), dtype=bool)) == [0, 6]
    assert script.bounding_box(np.array([[0, 0, 0], [0, 1, 1]], dtype=bool)) == [1.0, 1.0, 2.0, 1.0]


def test_trace_finds_both_parts_of_a_cut_square():
    mask = np.zeros((20, 30), dtype=bool)
    mask[4:16, 5:25] = True
    mask[:, 12:16] = False
    parts = script.trace(mask)
    assert len(parts) == 2
    decoded = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, 20, 30)))
    assert np.count_nonzero(decoded != mask) <= 4


@pytest.mark.long
@pytest.mark.parametrize("format_name", ["voc", "coco"])
def test_defaults_leave_enough_pictures_for_five_shots(format_name):
    num_train, num_val = script.NUM_PICTURES[format_name]
    classes, rule = (20, "contiguous") if format_name == "voc" else (80, "interleaved")
    dataset = ShapesDataset(
        picture_size=(240, 320), num_train=num_train, num_val=num_val, num_classes=classes, split_rule=rule,
        object_scale=1.2, vary_size=True,
    )  # fmt: skip
    areas = {
        split: np.stack(
            [np.bincount(dataset.read_mask(i).ravel(), minlength=256)[1 : classes + 1] for i in dataset.ids(split)]
        )
        for split in ("train", "val")
    }
    assert (areas["val"] >= 2048).sum(axis=0).min() >= 7
    for fold in (split_classes(classes, 4, index, rule) for index in range(4)):
        kept = areas["train"][areas["train"][:, np.array(fold.novel) - 1].sum(axis=1) == 0]
        assert (kept[:, np.array(fold.train) - 1] >= 2048).sum(axis=0).min() >= 7


FOLDER = ["--num-train", "6", "--num-val", "3", "--num-classes", "4", "--image-size", "48", "64"]


@pytest.mark.parametrize("layout", ["index", "binary", "coco"])
def test_a_folder_holds_the_pictures_and_their_lists(tmp_path, layout):
    root = tmp_path / "tree"
    assert script.main(["--format", f"folder-{layout}", "--output", str(root), *FOLDER]) == 0
    dataset = ShapesDataset(
        picture_size=(48, 64), num_train=6, num_val=3, num_classes=4, object_scale=1.2, vary_size=True
    )
    written = FolderDataset(root, train_list="train.txt", val_list="val.txt")
    written.check()
    assert written.tree.layout == layout
    assert written.class_names == tuple(sorted(dataset.class_names))
    lookup = np.array([0, *(written.class_names.index(name) + 1 for name in dataset.class_names), *[0] * 251])
    for split in ("train", "val"):
        assert written.ids(split) == dataset.ids(split)
        for image_id in dataset.ids(split):
            np.testing.assert_array_equal(written.read_mask(image_id), lookup[dataset.read_mask(image_id)])
            assert written.image_size(image_id) == dataset.read_mask(image_id).shape
            assert np.abs(written.read_image(image_id).astype(int) - dataset.read_image(image_id)).mean() < 12


def test_with_one_class_a_picture_all_folders_hold_the_same(tmp_path):
    trees = {}
    for layout in ("index", "binary", "coco", "fss"):
        options = ["--format", f"folder-{layout}", "--output", str(tmp_path / layout), *FOLDER, "--one-class"]
        assert script.main(options) == 0
        trees[layout] = FolderDataset(tmp_path / layout, val_list="val.txt")
    first = trees["fss"]
    assert first.ids("val") == (tmp_path / "fss/val.txt").read_text().splitlines()
    assert len(first.ids("train")) == 6
    for other in trees.values():
        for image_id in first.ids("train") + first.ids("val"):
            mask = first.read_mask(image_id)
            assert set(np.unique(mask)) == {0, first.class_names.index(image_id.split("/")[0]) + 1}
            np.testing.assert_array_equal(other.read_mask(image_id), mask)
            np.testing.assert_array_equal(other.read_image(image_id), first.read_image(image_id))


def test_an_output_that_holds_something_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("keep")
    assert script.main(["--format", "voc", "--output", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("write_shapes: --output")
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--format", "ade"], "invalid choice"),
        (["--format", "voc", "--image-size", "10"], "expected sides of 48"),
        (["--format", "voc", "--image-size", "100", "100", "3"], "has 3 numbers"),
        (["--format", "voc", "--num-train", "0"], "num_train=0"),
        (["--format", "voc", "--one-class"], "are for --format folder-…, got --format voc: leave them out"),
        (["--format", "folder-fss", "--num-classes", "5"], "num_classes"),
    ],
)
def test_wrong_arguments_end_in_one_line(tmp_path, capsys, extra, message):
    assert script.main([*extra, "--output", str(tmp_path / "tree")]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_stopped_run_leaves_no_tree(tmp_path, monkeypatch):
    def stop(image):
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "encode_jpeg", stop)
    assert script.main(["--format", "voc", "--output", str(tmp_path / "tree"), "--image-size", "96"]) == 1
    assert not any(tmp_path.iterdir())
