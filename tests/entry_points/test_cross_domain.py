"""Trained on all of PASCAL, tested on satellite pictures, skin and X-rays."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.helpers.commands import REAL, call, figures, run
from tests.helpers.cross_domain import prepare

EVALUATE = ("trainer=cpu", "num_workers=0", "callbacks.pictures=null", "baseline_episodes=4")
CLASSES = {
    "deepglobe": {"agriculture", "urban", "rangeland", "forest", "water", "barren"},
    "isic": {"nevus", "melanoma", "seborrheic_keratosis"},
    "chest_xray": {"lung"},
}


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    """A data folder with the three data sets, made ready by the script."""
    root = tmp_path_factory.mktemp("targets")
    for name in CLASSES:
        assert prepare(name, tmp_path_factory.mktemp(name), root / name) == 0
    return root


@pytest.fixture(scope="module")
def source(data_dir, tmp_path_factory):
    """A method with a base learner and its ensemble."""
    lists = data_dir / "pascal" / "ImageSets" / "Segmentation"
    words = (f"dataset.train_list={lists / 'train.txt'}", f"dataset.val_list={lists / 'val.txt'}")
    words += (f"dataset.root={data_dir / 'pascal'}", "model=hdmnet", "optim=hdmnet_pascal", "model.ensemble=true")
    return run("train", tmp_path_factory.mktemp("all"), "dataset=pascal_all", *REAL, *words)


@pytest.mark.slow
def test_training_leaves_no_class_out_and_says_what_its_test_is(source):
    assert "its test is on classes of the training, no few-shot figure" in source.err + source.out
    assert (source.result["dataset"], len(source.result["test"]["iou_per_class"])) == ("pascal_all", 20)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_a_checkpoint_with_a_base_learner_is_tested_on_another_domain(source, targets, tmp_path, name):
    best = source.folder / "checkpoints" / "best.ckpt"
    words = (f"dataset={name}", f"paths.data_dir={targets}", "episodes=4", *EVALUATE)
    answer = run("evaluate", tmp_path, f"ckpt={best}", *words)
    result = answer.result
    assert set(result["test"]["iou_per_class"]) == CLASSES[name]
    assert (result["dataset"], result["config"]["dataset"]["image_size"]) == (name, 65)
    assert result["trained_on"] == {"dataset": "pascal_all", "fold": 0, "shot": 1}
    by_theirs = run("evaluate", tmp_path / "theirs", f"ckpt={best}", *words, "protocol=patnet").result
    assert by_theirs["test"]["num_episodes"] == 4
    assert by_theirs["manifest_sha256"] != result["manifest_sha256"]


@pytest.mark.long
@pytest.mark.parametrize("name", CLASSES)
def test_a_method_without_training_is_tested_on_them(targets, tmp_path, name):
    words = ("model=prototype", "backbone=resnet18", "backbone.weights=null", "dataset.image_size=65")
    words = (f"dataset={name}", f"paths.data_dir={targets}", *words, "episodes=3", *EVALUATE)
    result = run("evaluate", tmp_path, *words).result
    assert set(result["test"]["iou_per_class"]) == CLASSES[name]
    assert result["test"]["num_episodes"] == 3
    assert figures(run("evaluate", tmp_path / "again", *words).result) == figures(result)


@pytest.mark.slow
def test_its_pictures_are_segmented_and_it_is_nothing_to_train_on(source, targets, tmp_path):
    best = source.folder / "checkpoints" / "best.ckpt"
    images, masks = targets / "chest_xray" / "images", targets / "chest_xray" / "masks" / "lung"
    names = sorted(path.stem for path in masks.iterdir())
    words = (f"support=[{images / names[0]}.jpg:{masks / names[0]}.png]", f"query=[{images / names[1]}.jpg]")
    answer = run("predict", tmp_path, f"ckpt={best}", *words, f"output={tmp_path / 'out'}", "device=cpu")
    assert answer.code == 0
    with Image.open(tmp_path / "out" / f"{names[1]}_mask.png") as mask:
        assert mask.size == (70, 50)
    refused = call("train", tmp_path / "train", "dataset=deepglobe", f"paths.data_dir={targets}", *REAL)
    assert "all 6 classes of deepglobe are novel, which is for evaluation only" in refused.refusal()
