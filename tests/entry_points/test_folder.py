"""Both doors on a user's own folder, and on imitations of data sets as their owners have them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from hdmnet.data.io.masks import write_mask
from scripts.data import write_shapes
from tests.helpers.commands import REAL, call, figures, run

QUICK = ("trainer=cpu", "num_workers=0")


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    options = ["--num-train", "18", "--num-val", "6", "--num-classes", "4", "--one-class", "--image-size", "64", "80"]
    found = {layout: tmp_path_factory.mktemp("trees") / layout for layout in ("binary", "fss")}
    for layout, root in found.items():
        assert write_shapes.main(["--format", f"folder-{layout}", "--output", str(root), *options]) == 0
    return found


@pytest.mark.long
def test_two_layouts_give_the_same_figures(roots, start, tmp_path):
    words = (f"ckpt={start}", *QUICK, "dataset=folder", "episodes=6", "seeds=2", "fold=3")  # at the run's image size
    results = {
        layout: run("evaluate", tmp_path / layout, *words, f"dataset.root={root}").result
        for layout, root in roots.items()
    }
    first, other = (figures(result) for result in results.values())
    assert other == first
    assert first["test"]["miou"] > 0.01, "the predictions are not mixed: comparing them would show nothing"
    assert set(first["test"]["iou_per_class"]) == {
        path.name for path in roots["fss"].iterdir() if path.is_dir()
    }  # all are novel


@pytest.mark.long
def test_trains_on_a_folder_and_tests_what_it_trained(roots, tmp_path):
    words = ("dataset=folder", *REAL, f"dataset.root={roots['binary']}", "dataset.num_folds=2", "dataset.name=mine")
    notes = roots["binary"] / "images/notes.txt"
    notes.touch()
    answer = run("train", tmp_path / "run", *words, "fold=1")
    assert f"mine: {notes}: no picture by its name, left out" in answer.out
    assert answer.result["left_out"] == [
        {"what": "no picture by its name, left out", "count": 1, "names": [str(notes)]}
    ]
    assert answer.result["vanished"] == {}
    assert (answer.result["dataset"], answer.result["fold"]) == ("mine", 1)
    assert len(answer.result["test"]["iou_per_class"]) == 2
    best = answer.folder / "checkpoints" / "best.ckpt"
    again = run("evaluate", tmp_path / "again", f"ckpt={best}", *QUICK, "batch_size=1")
    assert figures(again.result) == figures(answer.result)
    refusal = call("evaluate", tmp_path / "again", f"ckpt={best}", *QUICK, "fold=0").refusal()
    assert "its novel classes were base classes" in refusal


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("dataset.num_folds=null",), "all 4 classes of folder are novel, which is for evaluation only: set dataset.n"),
        (("dataset.num_folds=2", "fold=2"), "fold=2: expected 0 to 1, folder has 2 folds"),
        (("dataset.root=null",), "dataset.root is not given"),
        (("dataset.layout=voc",), "dataset.layout='voc': expected one of index, binary, coco, fss"),
    ],
)
def test_refuses_in_one_line(roots, tmp_path, words, reason):
    command = ("dataset=folder", *REAL, f"dataset.root={roots['fss']}", *words)
    assert reason in call("train", tmp_path, *command).refusal()


def write_pictures(root, masks, lines):
    """Index masks by name, pictures in the colours of their classes, and a list of classes."""
    colours = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
    (root / "images").mkdir(parents=True)
    for name, mask in masks.items():
        write_mask(root / f"masks/{name}.png", mask)
        Image.fromarray(colours[mask]).save(root / f"images/{name}.jpg")
    (root / "classes.txt").write_text("\n".join(lines))


@pytest.mark.long
def test_a_clothing_set_some_of_whose_labels_stand_in_one_picture(tmp_path):
    """As labelme exports it: 58 labels, of which 14 mark something in a single picture."""
    rng, masks = np.random.default_rng(1), {}
    for number in range(44):
        masks[f"{number:02}"] = np.zeros((64, 48), np.uint8)
        for place, value in enumerate((number % 44 + 1, (number + 1) % 44 + 1)):  # each of 44 labels in two pictures
            masks[f"{number:02}"][4 + 30 * place :][:24, 6 : 30 + rng.integers(12)] = value
    for rare in range(14):
        masks[f"{rare:02}"][60:, :8] = 45 + rare
    names = [f"label {value:02}" for value in range(1, 59)]
    write_pictures(tmp_path / "clothes", masks, ["__ignore__", "_background_", *names])
    words = (*REAL, "dataset=folder", f"dataset.root={tmp_path / 'clothes'}", "dataset.min_area=1", "fold=1")
    answer = run("train", tmp_path / "out", *words, "dataset.name=clothes", "dataset.num_folds=2")
    rare = names[44:]
    told = [line for line in answer.out.splitlines() if "are left out of the episodes" in line]
    (novel,) = [line for line in told if line.startswith("14 of 29 classes of clothes fold 1 val have fewer than")]
    assert f"left out of the episodes: {', '.join(f'{name} (1)' for name in rare)}; add images" in novel
    assert answer.result["too_few_images"]["val"] == dict.fromkeys(rare, 1)
    left_out = answer.result["test"]["classes_left_out"]
    assert {name for name, about in left_out.items() if about["reason"] == "too few images"} == set(rare)
    warnings = [line for line in answer.out.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1  # not one a class
    assert "label 58 have too few images" in warnings[0]
    again = run("evaluate", tmp_path / "again", f"ckpt={answer.folder}/checkpoints/best.ckpt", *QUICK, "batch_size=1")
    assert figures(again.result) == figures(answer.result)
    assert again.result["too_few_images"] == {"val": dict.fromkeys(rare, 1)}
    assert sum("are left out of the episodes" in line for line in again.out.splitlines()) == 1


@pytest.mark.long
def test_streets_whose_every_picture_holds_every_class(tmp_path):
    """As CamVid: the filter of novel classes would leave no picture to train on."""
    rng, masks = np.random.default_rng(2), {}
    for number in range(12):
        rows = np.repeat(np.arange(1, 7, dtype=np.uint8), 8)
        masks[f"{number:02}"] = np.roll(np.repeat(rows[:, None], 64, axis=1), rng.integers(48), axis=0)
    write_pictures(tmp_path / "streets", masks, ["sky", "road", "car", "tree", "sign", "person"])
    (tmp_path / "streets" / "val.txt").write_text("\n".join(f"{number:02}" for number in range(8, 12)))
    words = (*REAL, "dataset=folder", f"dataset.root={tmp_path / 'streets'}", "dataset.num_folds=2")
    refusal = call("train", tmp_path / "out", *words, "dataset.val_list=val.txt").refusal()
    assert refusal == (
        "all 8 training images of folder fold 0 hold a novel class (sky, road, car), and dataset.filter_novel=true "
        "leaves such images out: set dataset.novel_pixels=ignore to train on them, the novel pixels ignored"
    )
    words = (*words, "dataset.novel_pixels=ignore")
    assert "dataset.novel_pixels=ignore would train on the images that are tested" in (
        call("train", tmp_path / "out", *words).refusal()
    )
    answer = run("train", tmp_path / "out", *words, "dataset.val_list=val.txt")
    assert set(answer.result["test"]["iou_per_class"]) == {"sky", "road", "car"}
    assert answer.result["config"]["dataset"]["novel_pixels"] == "ignore"
