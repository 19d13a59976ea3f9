"""BAM through the entry points: both stages as in its release, ended and resumed, evaluated, and by `Segmenter`."""

from __future__ import annotations

import numpy as np
import pytest

from hdmnet import Segmenter
from hdmnet.tasks.few_shot import FewShotTask
from scripts.checkpoints.network_file import export
from tests.helpers import commands
from tests.helpers.resuming import Killed, assert_equal, kill

WORDS = (
    *(*commands.SHAPES, "model=bam", "shot=2", "optim.base.images=all", "optim.base.augment=bam_release"),
    *("dataset.episodes_per_epoch=6", "optim.max_steps=6", "optim.lr=1e-3"),
    "callbacks.checkpoint.every_n_minutes=0",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return commands.run("train", tmp_path_factory.mktemp("bam"), *WORDS)


def test_both_predictions_are_reported(run):
    assert run.result["method"] == "bam"
    assert run.result["test_no_ensemble"]["num_episodes"] == run.result["test"]["num_episodes"]


def test_a_killed_run_goes_on_where_it_was(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill(patch, FewShotTask, "training_step", 5)
        with pytest.raises(Killed):
            commands.call("train", tmp_path, *WORDS, "resume=auto")
    again = commands.run("train", tmp_path, *WORDS, "resume=auto")
    assert "resume: from step 4" in again.out
    assert_equal(run, again)


def test_features_that_are_kept_change_no_figure(run, tmp_path):
    best = f"ckpt={run.folder / 'checkpoints' / 'best.ckpt'}"
    reused = commands.run("evaluate", tmp_path / "a", best, "trainer=cpu", "num_workers=0")
    assert commands.figures(reused.result) == commands.figures(run.result)
    single = commands.run("evaluate", tmp_path / "b", best, "trainer=cpu", "num_workers=0", "reuse=false")
    assert single.result["test"]["miou"] == pytest.approx(run.result["test"]["miou"], abs=1e-3)


def test_segmenter_and_what_cannot_be_exported(run, tmp_path):
    segmenter = Segmenter.from_checkpoint(run.folder / "checkpoints" / "best.ckpt", device="cpu")
    picture = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    mask = np.zeros((50, 60), np.uint8)
    mask[10:40, 20:50] = 255
    segmenter.fit([picture, picture[::-1].copy()], [mask, mask[::-1].copy()])
    answer = segmenter.predict(picture)
    assert answer.mask.shape == mask.shape
    segmenter.save(tmp_path / "fitted.pt")
    again = Segmenter.from_checkpoint(tmp_path / "fitted.pt", device="cpu").predict(picture)
    assert np.array_equal(again.mask, answer.mask)
    with pytest.raises(ValueError, match=r"^a BAM cannot be exported; expected an HDMNet$"):
        export(segmenter, tmp_path / "network.onnx")
