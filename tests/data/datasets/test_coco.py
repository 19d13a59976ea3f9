from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hdmnet.data.catalog import load_catalog
from hdmnet.data.datasets.coco import CLASS_NAMES, CocoDataset, parse_line
from hdmnet.data.io.masks import write_mask
from scripts.data import prepare_coco
from tests.helpers.datasets import few_shot
from tests.helpers.trees import MIN_AREA

NUMBERS = {"train2014": (9, 25, 30), "val2014": (42, 73)}


def image_id(folder, number):
    return f"{folder}/COCO_{folder}_{number:012d}"


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "coco"
    for folder, numbers in NUMBERS.items():
        (root / folder).mkdir(parents=True)
        (root / "masks" / folder).mkdir(parents=True)
        for number in numbers:
            # COCO has grey pictures; one without a mask (no annotation) must not count.
            Image.fromarray(np.full((6, 8), number, dtype=np.uint8)).save(root / f"{image_id(folder, number)}.jpg")
            write_mask(root / "masks" / f"{image_id(folder, number)}.png", np.full((6, 8), number, dtype=np.uint8))
        shutil.copy(root / f"{image_id(folder, numbers[0])}.jpg", root / f"{image_id(folder, 99)}.jpg")
    return root


def test_class_names_are_cocos_in_order():
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == 80
    # Position of some category ids of COCO: 1, 13 (stop sign), 44 (bottle), 64 (potted plant), 90.
    assert [CLASS_NAMES[i - 1] for i in (1, 12, 40, 59, 80)] == [
        *("person", "stop sign", "bottle", "potted plant", "toothbrush")
    ]


def test_ids_are_the_masks_there_in_order(tree):
    dataset = CocoDataset(tree)
    assert (dataset.name, dataset.num_folds, dataset.split_rule, dataset.min_area) == ("coco", 4, "interleaved", 2048)
    (tree / "masks/train2014/.COCO_train2014_000000000001.png.ab12.tmp").touch()
    (tree / "masks/train2014/._COCO_train2014_000000000009.png").touch()  # macOS leaves such on copying
    assert dataset.ids("train") == [image_id("train2014", number) for number in NUMBERS["train2014"]]
    assert dataset.ids("val") == [image_id("val2014", number) for number in NUMBERS["val2014"]]
    assert CocoDataset(tree, split_rule="contiguous").split_rule == "contiguous"


def test_reads_grey_pictures_as_rgb_and_masks_as_indices(tree):
    dataset = pickle.loads(pickle.dumps(CocoDataset(tree)))
    name = image_id("val2014", 73)
    assert dataset.read_image(name).shape == (6, 8, 3)
    assert dataset.image_size(name) == (6, 8)
    np.testing.assert_array_equal(dataset.read_mask(name), np.full((6, 8), 73))
    assert dataset.mask_location(name) == str(tree / "masks" / f"{name}.png")


@pytest.mark.parametrize(
    "line",
    [
        "COCO_train2014_000000000009",
        "COCO_train2014_000000000009.jpg",
        "train2014/COCO_train2014_000000000009",
        "/data/coco/train2014/COCO_train2014_000000000009.jpg annotations/train2014/COCO_train2014_000000000009.png",
    ],
)
def test_lines_of_lists(line):
    assert parse_line(line, "train2014") == "train2014/COCO_train2014_000000000009"


def test_lists_restrict_a_split(tree):
    (tree / "few.txt").write_text("COCO_train2014_000000000025.jpg\nval2014/COCO_val2014_000000000042\n")
    dataset = CocoDataset(tree, train_list="few.txt")
    assert dataset.ids("train") == [image_id("train2014", 25), image_id("val2014", 42)]
    with pytest.raises(ValueError, match=r"1 id is in the train list and in the val list: 'val2014/"):
        dataset.check()
    (tree / "few.txt").write_text(f"{image_id('train2014', 25)}\n{image_id('train2014', 99)}\n")
    with pytest.raises(FileNotFoundError, match=r"by list 'few\.txt': 1 of 2 ids have no mask, first 'train2014/.*99'"):
        dataset.check()
    with pytest.raises(FileNotFoundError, match=r"list of ids 'no\.txt'"):
        CocoDataset(tree, val_list="no.txt").ids("val")


def test_fingerprint_follows_list_and_masks(tree):
    dataset = CocoDataset(tree)
    first = dataset.fingerprint("train")
    assert dataset.fingerprint("train") == first != dataset.fingerprint("val")
    write_mask(tree / "masks" / f"{image_id('val2014', 42)}.png", np.zeros((9, 9), dtype=np.uint8))
    assert dataset.fingerprint("train") == first
    write_mask(tree / "masks" / f"{image_id('train2014', 9)}.png", np.zeros((9, 9), dtype=np.uint8))
    assert dataset.fingerprint("train") != first


def test_check_names_what_lacks(tree, tmp_path):
    dataset = CocoDataset(tree)
    dataset.check()
    (tree / f"{image_id('val2014', 42)}.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"val images of .*: 1 of 2 ids have no picture, first 'val2014/.*42'"):
        dataset.check()
    for path in (tree / "masks/val2014").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no mask in masks/val2014: run scripts/data/prepare_coco\.py"):
        dataset.check()
    shutil.rmtree(tree / "masks")
    with pytest.raises(FileNotFoundError, match=r"masks/train2014 is missing: .*scripts/data/prepare_coco\.py --root"):
        dataset.check()
    with pytest.raises(FileNotFoundError, match=r"nowhere is missing: put train2014/"):
        CocoDataset(tmp_path / "nowhere").check()


def test_the_folders_of_2017(tree):
    for folder in NUMBERS:
        for place in (tree, tree / "masks"):
            (place / folder).rename(place / folder.replace("2014", "2017"))
            for path in (place / folder.replace("2014", "2017")).iterdir():
                path.rename(path.with_name(path.name.removeprefix(f"COCO_{folder}_")))
    with pytest.raises(
        FileNotFoundError,
        match=r"train2014 is missing: this is a tree of COCO 2017: set dataset.year=2017",
    ):
        CocoDataset(tree).check()
    dataset = CocoDataset(tree, year=2017)
    dataset.check()
    assert dataset.ids("train") == [f"train2017/{number:012d}" for number in NUMBERS["train2014"]]
    assert dataset.ids("val") == [f"val2017/{number:012d}" for number in NUMBERS["val2014"]]
    np.testing.assert_array_equal(dataset.read_mask("val2017/000000000073"), np.full((6, 8), 73))
    (tree / "list.txt").write_text("000000000042.jpg\ntrain2017/000000000009\n")
    listed = CocoDataset(tree, val_list="list.txt", year=2017)
    assert listed.ids("val") == ["val2017/000000000042", "train2017/000000000009"]
    with pytest.raises(ValueError, match=r"^dataset.year=2015: expected 2014 or 2017$"):
        CocoDataset(tree, year=2015)


@pytest.fixture
def unpainted(raw_data_dir, tmp_path):
    """A tree of 2017 without masks, of which things may be removed."""
    root = tmp_path / "coco"
    shutil.copytree(raw_data_dir / "coco", root, copy_function=os.link)
    return root


@pytest.mark.long
def test_without_masks_the_jsons_say_the_same(unpainted, tmp_path):
    """Ids, masks, areas and episodes are those of the tree whose masks scripts/data/prepare_coco.py has painted."""
    direct = CocoDataset(unpainted, year=2017, min_area=MIN_AREA, cache_dir=tmp_path)
    direct.check()
    found = {split: load_catalog(direct, split, None, num_workers=0, progress=False) for split in ("train", "val")}
    masks = {image_id: direct.read_mask(image_id) for split in ("train", "val") for image_id in direct.ids(split)[:25]}
    assert any((mask == 255).any() for mask in masks.values())
    manifests = few_shot(direct, setup="test", fold=2, shot=1).test_manifests
    assert prepare_coco.main(["--root", str(unpainted), "--year", "2017", "--workers", "1"]) == 0
    painted = CocoDataset(unpainted, year=2017, min_area=MIN_AREA)
    for split, catalog in found.items():
        assert painted.ids(split) == catalog.ids.tolist()
        again = load_catalog(painted, split, None, num_workers=0, progress=False)
        for name in ("image_index", "class_value", "area"):
            np.testing.assert_array_equal(getattr(again, name), getattr(catalog, name))
    for image_id, mask in masks.items():
        np.testing.assert_array_equal(painted.read_mask(image_id), mask)
    again = few_shot(painted, setup="test", fold=2, shot=1).test_manifests
    assert [one.sha256() for one in again] == [one.sha256() for one in manifests]


def test_an_unpainted_tree_is_checked_and_followed(unpainted, tmp_path):
    dataset = CocoDataset(unpainted, year=2017, cache_dir=tmp_path)
    first, image_id = dataset.fingerprint("val"), dataset.ids("val")[0]
    path = unpainted / "annotations" / "instances_val2017.json"
    assert dataset.mask_location(image_id) == f"{path}, image {image_id!r}"
    assert not dataset.left_out()
    (unpainted / f"{image_id}.jpg").rename(unpainted / "val2017" / "beside.jpg")
    assert dataset.left_out()[0].tell() == "val2017/beside: not named by its JSON, left out"
    with pytest.raises(FileNotFoundError, match=rf"1 of 200 ids have no picture, first '{image_id}'"):
        dataset.check()
    listed = CocoDataset(unpainted, val_list=str(tmp_path / "list.txt"), year=2017, cache_dir=tmp_path)
    (tmp_path / "list.txt").write_text("\n".join(dataset.ids("val")[1:]))
    listed.check()
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 12  # no category of COCO
    own = {image["id"]: Path(image["file_name"]).stem for image in content["images"]}
    path.unlink()  # it is a link to that of other tests
    path.write_text(json.dumps(content))
    assert dataset.fingerprint("val") != first
    with pytest.raises(
        ValueError, match=r"instances_val2017\.json, image 'val2017/\d+': annotation \d+ has category 12"
    ):
        dataset.read_mask(f"val2017/{own[content['annotations'][0]['image_id']]}")
    path.write_text(json.dumps(content | {"categories": content["categories"][:79]}))
    with pytest.raises(ValueError, match=r"has 79 categories, expected COCO's 80: read it by dataset=folder"):
        dataset.ids("val")
    path.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"masks/val2017 is missing: unpack the COCO 2017 annotations zip, of which"
    ):
        dataset.ids("val")
