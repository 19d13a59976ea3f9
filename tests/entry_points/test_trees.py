"""Both doors on real-format trees: VOC with lists of its own, COCO with 80 classes and masks painted from its JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from hdmnet.data.datasets.coco import CLASS_NAMES
from hdmnet.data.io.masks import read_mask
from tests.helpers.commands import REAL, call, figures, run


@pytest.fixture(scope="module")
def pascal_run(data_dir, tmp_path_factory):
    """The official augmentation, and classes of the fold only (pascal's defaults) on the tree's own lists."""
    lists = data_dir / "pascal" / "ImageSets" / "Segmentation"
    words = (f"dataset.train_list={lists / 'train.txt'}", f"dataset.val_list={lists / 'val.txt'}")
    return run(
        "train", tmp_path_factory.mktemp("pascal"), "dataset=pascal", *REAL, *words, f"paths.data_dir={data_dir}"
    )


@pytest.fixture(scope="module")
def coco_run(data_dir, tmp_path_factory):
    return run(
        "train",
        tmp_path_factory.mktemp("coco"),
        "dataset=coco",
        "fold=2",
        "shot=5",
        *REAL,
        f"paths.data_dir={data_dir}",
    )


@pytest.mark.long
def test_pascal(pascal_run):
    result = pascal_run.result
    assert (result["dataset"], result["backbone"], result["shot"]) == ("pascal", "resnet18", 1)
    assert result["config"]["augment"]["name"] == "official"
    assert set(result["test"]["iou_per_class"]) <= {"aeroplane", "bicycle", "bird", "boat", "bottle"}
    assert result["test"]["num_episodes"] == 3


@pytest.mark.long
def test_coco(coco_run):
    result = coco_run.result
    assert (result["dataset"], result["fold"], result["shot"]) == ("coco", 2, 5)
    names = set(result["test"]["iou_per_class"])
    assert names <= set(CLASS_NAMES[2::4])  # interleaved: car, train, fire hydrant …
    assert names


@pytest.mark.long
@pytest.mark.parametrize("name", ["pascal", "coco"])
def test_the_best_checkpoint_gives_the_same_figures(request, tmp_path, name):
    """The folder of the data is remembered from the training."""
    finished = request.getfixturevalue(f"{name}_run")
    best = finished.folder / "checkpoints" / "best.ckpt"
    again = run("evaluate", tmp_path, f"ckpt={best}", "trainer=cpu", "num_workers=0", "batch_size=1")
    assert figures(again.result) == figures(finished.result)
    assert again.result["dataset"] == name


@pytest.mark.long
def test_evaluating_with_other_shots_and_seeds(coco_run, tmp_path):
    best = coco_run.folder / "checkpoints" / "best.ckpt"
    words = ("trainer=cpu", "num_workers=0", "shot=1", "episodes=4", "seeds=1")
    result = run("evaluate", tmp_path, f"ckpt={best}", *words).result
    assert (result["shot"], result["test"]["num_episodes"], len(result["manifest_sha256"])) == (1, 4, 1)


@pytest.mark.long
def test_a_checkpoint_of_coco_is_tested_on_the_pascal_classes_that_its_fold_left_out(coco_run, tmp_path):
    best = coco_run.folder / "checkpoints" / "best.ckpt"
    words = (
        "dataset=coco2pascal",
        "dataset.min_area=128",
        "trainer=cpu",
        "num_workers=0",
        "shot=1",
        "episodes=4",
        "seeds=1",
    )
    result = run("evaluate", tmp_path, f"ckpt={best}", *words).result
    names = {"bird", "car", "pottedplant", "sheep", "train", "tvmonitor"}
    assert (result["dataset"], set(result["test"]["iou_per_class"])) == ("coco2pascal", names)
    line = call("evaluate", tmp_path, f"ckpt={best}", *words, "fold=1").refusal()
    assert line.startswith("fold=1: its novel classes were base classes of ckpt=")


def test_the_tree_is_what_users_have(data_dir):
    """Palette PNGs, instances with several polygons and crowds: the trees do put the real path to the test."""
    with Image.open(next((data_dir / "pascal" / "SegmentationClassAug").iterdir())) as mask:
        assert mask.mode == "P"
    content = json.loads((data_dir / "coco" / "annotations" / "instances_train2014.json").read_text())
    assert len(content["categories"]) == 80
    assert any(entry["iscrowd"] for entry in content["annotations"])
    assert any(len(entry["segmentation"]) > 1 for entry in content["annotations"] if not entry["iscrowd"])
    painted = sorted((data_dir / "coco" / "masks" / "train2014").iterdir())
    assert len(painted) == len(content["images"])
    values = np.unique(np.concatenate([np.unique(read_mask(path)) for path in painted]))
    assert set(values) == {*range(81), 255}
