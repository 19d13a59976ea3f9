"""What holds of every method's run through the entry points."""

from __future__ import annotations

import numpy as np
import pytest

from hdmnet import Segmenter
from hdmnet.tasks.few_shot import FewShotTask
from tests.helpers import commands
from tests.helpers.resuming import Killed, assert_equal, kill


def best(run):
    return run.folder / "checkpoints" / "best.ckpt"


def check_resume(run, words, tmp_path, monkeypatch):
    """Killed in its fifth step of stage 2, it goes on to the same bits."""
    with monkeypatch.context() as patch:
        kill(patch, FewShotTask, "training_step", 5)
        with pytest.raises(Killed):
            commands.call("train", tmp_path, *words, "resume=auto")
    again = commands.run("train", tmp_path, *words, "resume=auto")
    assert "resume: from step 4" in again.out
    assert_equal(run, again)


def check_reuse(run, tmp_path):
    """`evaluate` finds the training's figures, also, but for rounding, where every episode is encoded anew."""
    words = (f"ckpt={best(run)}", "trainer=cpu", "num_workers=0")
    reused = commands.run("evaluate", tmp_path / "a", *words)
    assert commands.figures(reused.result) == commands.figures(run.result)
    single = commands.run("evaluate", tmp_path / "b", *words, "reuse=false")
    assert single.result["test"]["miou"] == pytest.approx(run.result["test"]["miou"], abs=1e-3)


def check_segmenter(run, tmp_path):
    """Fitted on two supports, saved and read, it answers the same; gives the segmenter."""
    segmenter = Segmenter.from_checkpoint(best(run), device="cpu")
    picture = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    mask = np.zeros((50, 60), np.uint8)
    mask[10:40, 20:50] = 255
    segmenter.fit([picture, picture[::-1].copy()], [mask, mask[::-1].copy()])
    answer = segmenter.predict(picture)
    assert answer.mask.shape == mask.shape
    segmenter.save(tmp_path / "fitted.pt")
    again = Segmenter.from_checkpoint(tmp_path / "fitted.pt", device="cpu").predict(picture)
    assert np.array_equal(again.mask, answer.mask)
    return segmenter
