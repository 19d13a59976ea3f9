"""Trainings on a GPU: the same bits twice and after a resume, in float32 and with float16's loss scaling."""

from __future__ import annotations

import math

import pytest
import torch

from hdmnet.tasks.few_shot import FewShotTask
from tests.helpers.commands import SHAPES, call, load, run
from tests.helpers.resuming import Killed, assert_equal, kill, log_rows

pytestmark = pytest.mark.gpu

WORDS = (
    *(*SHAPES, "dataset.episodes_per_epoch=10", "optim.max_steps=10", "optim.lr=1e-5"),
    *("callbacks.checkpoint.every_n_minutes=0", "trainer.limit_test_batches=2", "trainer.deterministic=true"),
)


@pytest.fixture(scope="module", params=["32-true", "16-mixed"])
def whole(request, device, accelerator, start, first_run, tmp_path_factory):
    """The words of a training, where it begins, and the answer of it undisturbed."""
    precision, begun = request.param, start
    if precision == "16-mixed":  # from smaller weights, whose gradients fit into float16 at the first scale
        begun = first_run.folder / "checkpoints" / "last.ckpt"
        precision = precision if device == "cuda" else "bf16-mixed"  # Lightning has no float16 on a CPU
    words = (*WORDS, f"ckpt={begun}", accelerator, f"trainer.precision={precision}")
    return words, begun, run("train", tmp_path_factory.mktemp("whole"), *words)


def test_two_runs_have_the_same_bits(whole, tmp_path):
    """With loader workers and without."""
    words, begun, one = whole
    assert_equal(one, run("train", tmp_path, *words, "num_workers=2"))
    last, begun = load(one.folder / "checkpoints" / "last.ckpt")["state_dict"], load(begun)["state_dict"]
    assert any(not torch.equal(value, begun[key]) for key, value in last.items()), "nothing was learnt"


def test_a_killed_run_goes_on_to_the_same_bits(device, whole, tmp_path, monkeypatch):
    """Dropout draws from the device's generator; the loss scale is a state too."""
    words, _, expected = whole
    with monkeypatch.context() as patch:
        kill(patch, FewShotTask, "training_step", 4)
        with pytest.raises(Killed):
            call("train", tmp_path, *words)
    again = run("train", tmp_path, *words, "resume=auto")
    assert "resume: from step 3" in again.out
    assert_equal(expected, again)
    if device == "cuda":
        last = load(again.folder / "checkpoints" / "last.ckpt")
        assert last["hdmnet_random"][0]["cuda"] is not None
        assert ("MixedPrecision" in last) == ("trainer.precision=16-mixed" in words)


def test_both_stages_and_the_test_run(device, accelerator, tmp_path, record_property):
    answer = run("train", tmp_path, *WORDS[:-1], accelerator, "trainer.precision=bf16-mixed", "num_workers=2")
    assert answer.result["test"]["num_episodes"] > 0
    assert len(answer.result["hardware"]["gpus"]) == torch.cuda.device_count()
    rows = log_rows(answer.folder, throughput=True)
    losses = [float(row["train/loss"]) for row in rows if row.get("train/loss")]
    assert len(losses) == 10
    assert all(map(math.isfinite, losses))
    if device == "cuda":
        memory = max(float(row["throughput/gpu_memory_gib"]) for row in rows if row.get("throughput/gpu_memory_gib"))
        record_property("memory_of_a_tiny_training_gib", memory)
        assert 0 < memory < 4
