"""The entry points on data sets as they are downloaded: FSS-1000, LVIS and COCO 2017, of which nothing is prepared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hdmnet.data.datasets.coco import CLASS_NAMES
from tests.helpers.commands import REAL, call, figures, run
from tests.helpers.trees import FSS_TEST

CASES = {
    "fss1000": ("dataset=fss1000", "dataset.num_classes=null", "dataset.min_area=1"),
    "lvis": ("dataset=lvis", "dataset.num_classes=null", "fold=9", "protocol=matcher", "protocol.num_test_episodes=6"),
    "coco": ("dataset=coco", "dataset.year=2017", "fold=2"),
}


def files_of(root: Path):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*")}


@pytest.fixture(scope="module")
def trained(raw_data_dir, tmp_path_factory):
    """A run of each, and what was written into the data's folder, which may be on a disk that nobody can write to."""
    before = files_of(raw_data_dir)
    runs = {}
    for name, words in CASES.items():
        folder = tmp_path_factory.mktemp(name)
        runs[name] = run(
            "train", folder, *REAL, *words, f"paths.data_dir={raw_data_dir}", "dataset.num_test_episodes=6"
        )
    assert files_of(raw_data_dir) == before
    return runs


@pytest.mark.long
def test_the_novel_classes_are_those_of_the_fold(trained):
    tested = {name: set(answer.result["test"]["iou_per_class"]) for name, answer in trained.items()}
    assert all(tested.values())
    assert tested["fss1000"] <= set(FSS_TEST)
    assert tested["coco"] <= set(CLASS_NAMES[2::4])
    assert len(tested["lvis"]) <= 8  # eighty categories are ten folds of eight
    assert trained["lvis"].result["protocol"] == "matcher"


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_the_checkpoint_is_evaluated_and_predicts(trained, raw_data_dir, tmp_path, name):
    best = trained[name].folder / "checkpoints" / "best.ckpt"
    words = (f"ckpt={best}", "trainer=cpu", "num_workers=0", "batch_size=1")
    assert figures(run("evaluate", tmp_path, *words).result) == figures(trained[name].result)
    picture = next((raw_data_dir / ("fss1000/fewshot_data/bus" if name == "fss1000" else "coco/val2017")).glob("*.jpg"))
    mask = np.zeros(np.asarray(Image.open(picture)).shape[:2], np.uint8)
    mask[10:30, 10:30] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    pair = (f"support=[{picture}:{tmp_path / 'mask.png'}]", f"query=[{picture}]", f"output={tmp_path / 'out'}")
    run("predict", tmp_path, f"ckpt={best}", *pair)
    assert (tmp_path / "out").is_dir()


@pytest.mark.long
def test_more_base_classes_than_a_label_map_holds_are_refused(raw_data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("hdmnet.data.datasets.base.MAX_LABELS", 5)
    words = ("dataset=fss1000", "dataset.num_classes=null", *REAL, f"paths.data_dir={raw_data_dir}")
    refusal = call("train", tmp_path, *words).refusal()
    assert "choose a method without base learner" in refusal
