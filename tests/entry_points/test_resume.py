"""A run that is ended and resumed through its command is, to the bit, the run that was never ended."""

from __future__ import annotations

import json

import pytest

from hdmnet.tasks.base_learner import BaseLearnerTask
from hdmnet.tasks.few_shot import FewShotTask
from tests.helpers.commands import SHAPES, call, run
from tests.helpers.resuming import Killed, assert_equal, kill

WORDS = (
    *(*SHAPES, "dataset.episodes_per_epoch=6", "optim.max_steps=6", "optim.lr=1e-3", "optim.base.max_steps=6"),
    *("callbacks.checkpoint.every_n_minutes=0", "trainer.limit_test_batches=2"),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run("train", tmp_path_factory.mktemp("whole"), *WORDS)


@pytest.mark.long
@pytest.mark.parametrize(
    "kills",
    [
        [  # one after the other
            (BaseLearnerTask, "training_step", 3, "base learner: going on from"),
            (FewShotTask, "training_step", 3, "resume: from step 2"),
        ],
        pytest.param([(FewShotTask, "training_step", 5, "resume: from step 4")], marks=pytest.mark.slow),
        pytest.param([(FewShotTask, "validation_step", 2, "resume: from step 3")], marks=pytest.mark.slow),
        pytest.param([(FewShotTask, "test_step", 2, "resume: from step 6")], marks=pytest.mark.slow),
        pytest.param([(BaseLearnerTask, "validation_step", 1, "base learner: going on from")], marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_goes_on_where_it_was(whole, tmp_path, monkeypatch, kills):
    printed = ""
    for task, method, count, _ in kills:
        with monkeypatch.context() as patch:
            kill(patch, task, method, count)
            with pytest.raises(Killed) as stopped:
                call("train", tmp_path, *WORDS, "resume=auto")
        printed += "".join(stopped.value.__notes__)
    again = run("train", tmp_path, *WORDS, "resume=auto")
    for *_, said in kills:
        assert said in printed + again.out
    assert len(list(tmp_path.glob("shapes/*/*"))) == 1  # no second folder
    assert_equal(whole, again)
    assert not list(tmp_path.glob("cache/base_learners/*.checkpoints"))
    assert again.result["checkpoint_failures"] == 0


@pytest.mark.slow
def test_a_resumed_run_is_the_same_wandb_run(tmp_path, monkeypatch):
    words = (*WORDS, "logger=wandb", "resume=auto")
    with monkeypatch.context() as patch:
        kill(patch, FewShotTask, "training_step", 5)
        with pytest.raises(Killed):
            call("train", tmp_path, *words)
    folder = run("train", tmp_path, *words).folder
    parts = sorted(path.name for path in (folder / "wandb").glob("offline-run-*"))
    assert len(parts) == 2
    (run_id,) = {part.rpartition("-")[2] for part in parts}
    assert run_id == (folder / "wandb_run_id").read_text().strip()


@pytest.mark.long
def test_a_run_needs_its_own_kind_of_checkpoints(start, tmp_path):
    words = ("~callbacks.checkpoint", "+callbacks.checkpoint._target_=lightning.pytorch.callbacks.ModelCheckpoint")
    line = call("train", tmp_path, *SHAPES, f"ckpt={start}", *words).refusal()
    assert line == "callbacks.checkpoint is another callback; expected hdmnet.callbacks.checkpoint.RunCheckpoint"


def test_a_finished_run_is_not_gone_on_with(first_run):
    line = call("train", first_run.folder.parents[2], *SHAPES, "ckpt=last").refusal()
    assert line.startswith("no unfinished run of this config in ")


def test_weights_that_a_new_run_begins_from_are_no_run_to_resume(start, tmp_path):
    line = call("train", tmp_path, *SHAPES, f"resume={start}").refusal()
    assert "run.json is missing or damaged" in line
    assert "ckpt=" in line


def test_what_a_run_was_begun_with_is_kept_beside_its_config(first_run):
    content = json.loads((first_run.folder / ".hydra" / "run.json").read_text())
    assert (content["batch_size"], content["devices"], content["ckpt"]) == (2, 1, None)
    assert content["facts"]["dataset"]["image_size"] == 65
    assert content["facts"].keys().isdisjoint({"paths", "logger", "num_workers"})
