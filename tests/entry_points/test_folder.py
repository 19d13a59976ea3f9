"""Both doors on a user's own folder; tests/data/datasets/test_folder.py has all its layouts."""

from __future__ import annotations

import pytest

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


def test_trains_on_a_folder_and_tests_what_it_trained(roots, tmp_path):
    words = ("dataset=folder", *REAL, f"dataset.root={roots['binary']}", "dataset.num_folds=2", "dataset.name=mine")
    answer = run("train", tmp_path / "run", *words, "fold=1")
    assert (answer.result["dataset"], answer.result["fold"]) == ("mine", 1)
    assert len(answer.result["test"]["iou_per_class"]) == 2
    best = answer.folder / "checkpoints" / "best.ckpt"
    again = run("evaluate", tmp_path / "again", f"ckpt={best}", *QUICK, "batch_size=1")
    assert figures(again.result) == figures(answer.result)
    refusal = call("evaluate", tmp_path / "again", f"ckpt={best}", *QUICK, "fold=0").refusal()
    assert "its novel classes were base classes" in refusal


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
