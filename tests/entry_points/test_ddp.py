"""Two processes: training runs through, and a test gives the same integers as one process."""

from __future__ import annotations

import shutil

import pytest

from tests.helpers.commands import WHOLE, figures, run_process


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Both stages and the test under two processes; an odd number of episodes, so that they do not share evenly."""
    words = ("trainer=ddp_cpu", "trainer.devices=2", "dataset.num_test_episodes=5", "dataset.controls=true")
    answer = run_process("train", tmp_path_factory.mktemp("ddp") / "out", *WHOLE, *words)
    assert answer.code == 0, answer.err
    return answer


@pytest.mark.slow
def test_training_runs_through(trained):
    folder = trained.folder
    for name in (
        "result.json",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "base_learner.pt",
        "pictures/test.png",
    ):
        assert (folder / name).is_file(), name
    assert len(list(folder.parent.iterdir())) == 1  # the second process made no folder of its own
    assert trained.out.count("mIoU  ") == 1  # nor did it print the table
    assert trained.result["test"]["num_episodes"] == 5
    assert {"every_object_foreground", "support_mask_ones"} == trained.result["controls"].keys()


@pytest.mark.slow
def test_neither_process_complains(trained):
    assert "arning" not in trained.err
    assert "sync_dist" not in trained.err


@pytest.mark.slow
def test_two_processes_evaluate_to_the_numbers_of_one_from_the_checkpoint_alone(finished_run, tmp_path):
    """Elsewhere, without the run's folder; its config differs from the defaults, and must reach the second process."""
    shutil.copy(finished_run.folder / "checkpoints" / "best.ckpt", tmp_path / "mine.ckpt")
    words = ("ckpt=mine.ckpt", "trainer=ddp_cpu", "trainer.devices=2", "num_workers=0", "batch_size=1")
    answer = run_process("evaluate", tmp_path / "out", *words)
    assert answer.code == 0, answer.err
    assert figures(answer.result) == figures(finished_run.result)
    there, here = (one.folder / "episodes.csv" for one in (finished_run, answer))
    assert here.read_text() == there.read_text()
    assert "Warning" not in answer.err
