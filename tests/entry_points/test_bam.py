"""BAM through the entry points: both stages as in its release."""

from __future__ import annotations

import pytest

from tests.helpers import commands

WORDS = (
    *(*commands.SHAPES, "model=bam", "shot=2", "optim.base.images=all", "optim.base.augment=bam_release"),
    *("dataset.episodes_per_epoch=6", "optim.max_steps=6", "optim.lr=1e-3"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return commands.run("train", tmp_path_factory.mktemp("bam"), *WORDS)


@pytest.mark.long
def test_both_predictions_are_reported(run):
    assert run.result["method"] == "bam"
    assert run.result["test_no_ensemble"]["num_episodes"] == run.result["test"]["num_episodes"]
