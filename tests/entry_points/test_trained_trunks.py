"""Methods whose trunk is all that learns, through the entry points: features are kept where the weights stand still."""

from __future__ import annotations

import numpy as np
import pytest

from hdmnet import Segmenter
from scripts.checkpoints.network_file import export
from tests.helpers import commands

WORDS = (*commands.SHAPES, "model.encoder=backbone", "backbone.weights=null", "optim.lr=0.01", "shot=2")


@pytest.fixture(scope="module", params=["ssp", "panet"])
def run(request, tmp_path_factory):
    return commands.run("train", tmp_path_factory.mktemp(request.param), f"model={request.param}", *WORDS)


def test_the_trunk_has_learnt_what_its_declaration_says(run):
    last = commands.load(run.folder / "checkpoints" / "last.ckpt")
    state = last["state_dict"]
    assert all(key.startswith("model.backbone.parts.") for key in state)
    layers = {"ssp": "23", "panet": "01234"}[run.result["method"]]
    convolutions = [key for key, value in state.items() if value.ndim == 4 and key.split(".")[3] in layers]
    assert len(last["optimizer_states"][0]["state"]) == len(convolutions)  # of these, and of nothing else


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
    with pytest.raises(ValueError, match=r"^a (SSP|PANet) cannot be exported; expected an HDMNet$"):
        export(segmenter, tmp_path / "network.onnx")
