"""BAM through the entry points: both stages as in its release, ended and resumed, evaluated, and by `Segmenter`."""

from __future__ import annotations

import pytest

from scripts.checkpoints.network_file import export
from tests.helpers import commands
from tests.helpers.method_runs import check_resume, check_reuse, check_segmenter

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
    check_resume(run, WORDS, tmp_path, monkeypatch)


def test_features_that_are_kept_change_no_figure(run, tmp_path):
    check_reuse(run, tmp_path)


def test_segmenter_and_what_cannot_be_exported(run, tmp_path):
    with pytest.raises(ValueError, match=r"^a BAM cannot be exported; expected an HDMNet$"):
        export(check_segmenter(run, tmp_path), tmp_path / "network.onnx")
