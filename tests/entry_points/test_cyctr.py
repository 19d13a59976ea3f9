"""CyCTR through the entry points: two optimisers, padding of the training's queries, draws that resume."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hdmnet import Segmenter
from hdmnet.models.cyctr.model import CyCTR
from hdmnet.tasks.few_shot import FewShotTask
from tests.helpers import commands
from tests.helpers.resuming import Killed, assert_equal, kill

WORDS = (
    *(*commands.SHAPES, "model=cyctr", "model.encoder=backbone", "backbone.weights=null", "model.channels=32"),
    *("optim=cyctr_pascal", "optim.lr=1e-3", "augment=paper", "model.num_taken=10", "dataset.episodes_per_epoch=6"),
    *("optim.max_steps=6", "callbacks.checkpoint.every_n_minutes=0"),
)


@pytest.fixture(scope="module")
def paddings():
    return []


@pytest.fixture(scope="module")
def whole(tmp_path_factory, paddings):
    with pytest.MonkeyPatch.context() as patch:
        encode = CyCTR.encode_query

        def remember(self, images, padding=None):
            paddings.append((self.training, padding))
            return encode(self, images, padding)

        patch.setattr(CyCTR, "encode_query", remember)
        return commands.run("train", tmp_path_factory.mktemp("cyctr"), *WORDS)


def test_a_training_tells_where_its_queries_are_padded(whole, paddings):
    assert whole.result["method"] == "cyctr"
    assert all((padding is not None) is training for training, padding in paddings)
    trained = torch.cat([padding for _, padding in paddings if padding is not None])
    assert set(trained.unique().tolist()) == {0, 255}


def test_both_optimisers_are_kept(whole):
    last = commands.load(whole.folder / "checkpoints" / "last.ckpt")
    (optimizer,) = last["optimizer_states"]
    groups = {group["name"]: group for group in optimizer["param_groups"]}
    assert list(groups) == ["head", "transformer", "transformer_bias"]
    for name, key in (("head", "momentum_buffer"), ("transformer", "exp_avg"), ("transformer_bias", "exp_avg")):
        assert all(key in optimizer["state"][place] for place in groups[name]["params"])
    assert [group["lr"] for group in groups.values()] == pytest.approx([0, 1e-4, 1e-4])


def test_a_killed_run_goes_on_where_it_was(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill(patch, FewShotTask, "training_step", 5)
        with pytest.raises(Killed):
            commands.call("train", tmp_path, *WORDS, "resume=auto")
    again = commands.run("train", tmp_path, *WORDS, "resume=auto")
    assert "resume: from step" in again.out
    assert_equal(whole, again)


def test_evaluation_draws_the_same_and_features_are_reused(whole, tmp_path):
    best = f"ckpt={whole.folder / 'checkpoints' / 'best.ckpt'}"
    reused = commands.run("evaluate", tmp_path / "a", best, "trainer=cpu", "num_workers=0")
    assert commands.figures(reused.result) == commands.figures(whole.result)
    single = commands.run("evaluate", tmp_path / "b", best, "trainer=cpu", "num_workers=0", "reuse=false")
    assert single.result["test"]["miou"] == pytest.approx(whole.result["test"]["miou"], abs=1e-3)


def test_segmenter(whole, tmp_path):
    segmenter = Segmenter.from_checkpoint(whole.folder / "checkpoints" / "best.ckpt", device="cpu")
    picture = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    mask = np.zeros((50, 60), np.uint8)
    mask[10:40, 20:50] = 255
    segmenter.fit([picture, picture[::-1].copy()], [mask, mask[::-1].copy()])
    answer = segmenter.predict(picture)
    assert answer.mask.shape == mask.shape
    segmenter.save(tmp_path / "fitted.pt")
    again = Segmenter.from_checkpoint(tmp_path / "fitted.pt", device="cpu").predict(picture)
    assert np.array_equal(again.mask, answer.mask)
