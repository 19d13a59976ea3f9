"""What a user did wrong: one line on stderr that says what and where, an exit code, and no training begun."""

from __future__ import annotations

import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from hdmnet.data.masks import read_mask, write_mask
from tests.helpers.doors import REAL, SHAPES, call, run_process


@pytest.fixture(scope="module")
def tree(data_dir, tmp_path_factory):
    """A VOC tree that may be damaged, and the words that train on it."""
    root = tmp_path_factory.mktemp("damaged")
    shutil.copytree(data_dir / "pascal", root / "pascal")
    return root / "pascal"


@pytest.fixture
def damaged(tree, tmp_path):
    """`damaged(file, content)` trains on the tree with one file replaced; afterwards all is as before."""
    backup = {}

    def refuse(name, content, *words):
        path = tree / name
        backup[path] = path.read_bytes()
        content(path) if callable(content) else path.write_bytes(content)
        lists = (f"dataset.{split}_list={tree}/ImageSets/Segmentation/{split}.txt" for split in ("train", "val"))
        return call(
            "train", tmp_path, "dataset=pascal", *REAL, *lists, f"paths.data_dir={tree.parent}", *words
        ).refusal()

    yield refuse
    for path, content in backup.items():
        path.write_bytes(content)


def first_id(tree, split):
    return (tree / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()[0]


def write_png(value, size=None):
    def write(path):
        write_mask(path, np.full(size or read_mask(path).shape, value, dtype=np.uint8))

    return write


# --------------------------------------------------------------------------------------------------- files of the data


@pytest.mark.parametrize("dataset", ["pascal", "coco"])
def test_missing_data(tmp_path, dataset):
    line = call("train", tmp_path, f"dataset={dataset}", *REAL, f"paths.data_dir={tmp_path}/nowhere").refusal()
    assert line.startswith(f"{dataset.upper()} folder {tmp_path}/nowhere/{dataset} is missing: ")
    assert "HDMNET_DATA" in line


def test_an_unknown_id_in_a_list(tree, damaged):
    ids = (tree / "ImageSets/Segmentation/train.txt").read_bytes()
    line = damaged("ImageSets/Segmentation/train.txt", ids + b"2030_123456\n")
    assert "1 of 41 ids have no picture in JPEGImages, first '2030_123456'" in line


def test_a_missing_list(tree, tmp_path):
    words = ("dataset=pascal", *REAL, "dataset.train_list=nowhere.txt", f"paths.data_dir={tree.parent}")
    assert "'nowhere.txt' is neither a known name" in call("train", tmp_path, *words).refusal()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_mask_of_another_size_than_its_picture(tree, damaged, split):
    name = f"SegmentationClassAug/{first_id(tree, split)}.png"
    line = damaged(name, write_png(1, size=(30, 20)))
    assert f"{tree / name} is 30x20 (HxW) but its picture is " in line


def test_a_class_index_above_the_range(tree, damaged):
    name = f"SegmentationClassAug/{first_id(tree, 'val')}.png"
    assert f"{tree / name} holds class index 21, expected 0..20 or 255" in damaged(name, write_png(21))


def test_a_mask_in_colours(tree, damaged):
    name = f"SegmentationClassAug/{first_id(tree, 'train')}.png"
    line = damaged(name, lambda path: Image.fromarray(read_mask(path)).convert("RGB").save(path))
    assert f"{tree / name} is a picture of mode RGB, expected class indices" in line


@pytest.mark.parametrize("content", [b"", b"not a picture\n", None], ids=["empty", "text", "truncated"])
@pytest.mark.parametrize("kind", ["JPEGImages/{}.jpg", "SegmentationClassAug/{}.png"], ids=["picture", "mask"])
def test_an_unreadable_file(tree, damaged, kind, content):
    """Known before training, although no picture is decoded then: also after its catalog was cached."""
    name = kind.format(first_id(tree, "train"))
    whole = (tree / name).read_bytes()
    line = damaged(name, whole[: len(whole) // 2] if content is None else content)
    assert f"{tree / name} cannot be read" in line


# ------------------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("door", "words", "line"),
    [
        ("train", ["fold=7"], "fold=7: expected 0 to 3, shapes has 4 folds"),
        ("train", ["shot=0"], "shot=0: expected an integer of at least 1"),
        ("train", ["fodl=1"], "fodl: no such key; did you mean 'fold'?"),
        ("train", ["backbone=resnet5"], "backbone=resnet5: no such option; did you mean 'resnet50'?"),
        ("train", ["trainer.max_step=2"], "trainer.max_step: no such key; did you mean 'trainer.max_steps'?"),
        ("train", ["+trainer.max_stepps=2"], "trainer: "),
        ("train", ["trainer.precision=3"], "trainer: "),
        ("train", ["dataset.image_size=16"], "shapes image_size is 16, expected sides of 48..512 px"),
        ("train", ["backbone=resnet18", "backbone.weights=IMAGENET"], "unknown torchvision weights 'IMAGENET'"),
        ("train", ["backbone.weights=no/such.pth"], "backbone weights 'no/such.pth' not found"),
        ("train", ["ckpt=no/such.ckpt"], "checkpoint 'no/such.ckpt' not found"),
        ("train", ["base_ckpt=no/such.pt"], "checkpoint 'no/such.pt' not found"),
        ("train", ["trainer=ddp_cpu", "trainer.devices=3"], "optim.base.batch_size=4 cannot be shared by 3 processes"),
        ("train", ["trainer=ddp_cpu", "trainer.devices=4"], "optim.base.batch_size=4 leaves one picture a process"),
        ("evaluate", [], "ckpt is not given; expected the checkpoint to evaluate"),
        ("evaluate", ["ckpt=no/such.ckpt"], "checkpoint 'no/such.ckpt' not found"),
        ("evaluate", ["epsiodes=4"], "epsiodes: no such key; did you mean 'episodes'?"),
    ],
)
def test_a_wrong_command(tmp_path, door, words, line):
    tiny = SHAPES if door == "train" else ()
    assert call(door, tmp_path, *tiny, *words).refusal().startswith(line)


def test_a_shot_that_the_classes_do_not_allow(tmp_path):
    line = call("train", tmp_path, *SHAPES, "shot=40").refusal()
    assert "images in shapes fold 0 train, shot=40 needs at least 41 (query and supports): lower shot" in line


class Hostile:
    def __reduce__(self):
        return (os.system, ("touch was_run",))


@pytest.mark.parametrize("door", ["train", "evaluate"])
def test_checkpoints_that_are_none(finished_run, tmp_path, monkeypatch, door):
    monkeypatch.chdir(tmp_path)
    best = (finished_run.folder / "checkpoints" / "best.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(best[: len(best) // 2])
    (tmp_path / "hostile.ckpt").write_bytes(pickle.dumps({"state_dict": Hostile()}))
    torch.save({"state_dict": Hostile()}, tmp_path / "hostile_zip.ckpt")
    tiny = SHAPES if door == "train" else ("trainer=cpu",)
    for name in ("cut", "hostile", "hostile_zip"):
        line = call(door, tmp_path / "out", *tiny, f"ckpt={name}.ckpt").refusal()
        assert f"checkpoint '{name}.ckpt' cannot be read" in line
        assert not (tmp_path / "was_run").exists()


def test_a_fold_whose_novel_classes_the_checkpoint_has_seen(finished_run, tmp_path):
    best = finished_run.folder / "checkpoints" / "best.ckpt"
    line = call("evaluate", tmp_path, f"ckpt={best}", "fold=1", "num_workers=0").refusal()
    assert line.startswith("fold=1: its novel classes were base classes of ckpt=")
    assert line.endswith("expected fold=0, or another data set")


def test_a_fold_that_the_checkpoints_data_set_does_not_have(finished_run, tmp_path):
    best = finished_run.folder / "checkpoints" / "best.ckpt"
    assert call("evaluate", tmp_path, f"ckpt={best}", "fold=4").refusal().startswith("fold=4: expected 0 to 3")


def test_a_base_learner_is_no_run(first_run, tmp_path):
    line = call("evaluate", tmp_path, f"ckpt={first_run.folder / 'base_learner.pt'}").refusal()
    assert "base_learner.pt is a base learner; expected checkpoints/best.ckpt of a run's folder" in line


def test_two_origins_of_the_base_learner(start, tmp_path):
    line = call("train", tmp_path, *SHAPES, f"ckpt={start}", f"base_ckpt={start}").refusal()
    assert line.startswith("ckpt and base_ckpt are both given")


def test_a_whole_run_is_no_base_learner(start, tmp_path):
    assert "is a whole run" in call("train", tmp_path, *SHAPES, f"base_ckpt={start}").refusal()


# ------------------------------------------------------------------------------------------------ in their own process


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (("dataset=coco", "fold=2", "shot=5", "paths.data_dir=nowhere"), 1, "error: COCO folder "),
        (("fold=7",), 2, "error: fold=7: expected 0 to 3, shapes has 4 folds"),
    ],
)
def test_the_command_itself(tmp_path, words, code, line):
    answer = run_process("train", tmp_path / "out", *words)
    assert answer.code == code
    assert answer.err.startswith(line)
    assert answer.err.count("\n") == 1
