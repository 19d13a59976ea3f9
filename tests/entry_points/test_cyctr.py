"""CyCTR through the entry points: two optimisers, padding of the training's queries, draws that resume."""

from __future__ import annotations

import pytest
import torch

from hdmnet.models.cyctr.model import CyCTR
from tests.helpers import commands
from tests.helpers.method_runs import check_resume

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


@pytest.mark.long
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


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(whole, tmp_path, monkeypatch):
    check_resume(whole, WORDS, tmp_path, monkeypatch)
