"""Methods whose trunk is all that learns, through the entry points: features are kept where the weights stand still."""

from __future__ import annotations

import pytest

from scripts.checkpoints.network_file import export
from tests.helpers import commands
from tests.helpers.method_runs import check_reuse, check_segmenter

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
    check_reuse(run, tmp_path)


def test_segmenter_and_what_cannot_be_exported(run, tmp_path):
    with pytest.raises(ValueError, match=r"^a (SSP|PANet) cannot be exported; expected an HDMNet$"):
        export(check_segmenter(run, tmp_path), tmp_path / "network.onnx")
