"""Methods whose trunk is all that learns, through the entry points."""

from __future__ import annotations

import pytest

from tests.helpers import commands

WORDS = (*commands.SHAPES, "model.encoder=backbone", "backbone.weights=null", "optim.lr=0.01", "shot=2")


@pytest.fixture(scope="module", params=["ssp", "panet"])
def run(request, tmp_path_factory):
    return commands.run("train", tmp_path_factory.mktemp(request.param), f"model={request.param}", *WORDS)


@pytest.mark.long
def test_the_trunk_has_learnt_what_its_declaration_says(run):
    last = commands.load(run.folder / "checkpoints" / "last.ckpt")
    state = last["state_dict"]
    assert all(key.startswith("model.backbone.parts.") for key in state)
    layers = {"ssp": "23", "panet": "01234"}[run.result["method"]]
    convolutions = [key for key, value in state.items() if value.ndim == 4 and key.split(".")[3] in layers]
    assert len(last["optimizer_states"][0]["state"]) == len(convolutions)  # of these, and of nothing else
