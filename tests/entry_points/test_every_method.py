"""Every method that learns: five supports, killed and gone on, two processes, tested, and in `Segmenter`."""

from __future__ import annotations

import pytest

from scripts.checkpoints.network_file import export
from tests.helpers import commands
from tests.helpers.method_runs import best, check_resume, check_reuse, check_segmenter

LEARNING = (
    *("baseline", "bam", "correlation", "cyctr", "dcama", "hdmnet", "hdmnet_correlation"),
    *("hsnet", "panet", "pfenet", "ssp"),
)
FEW = ("dataset.num_train=150", "dataset.num_val=80", "shot=5")  # pictures, but enough of them for five supports
WORDS = (
    *(*commands.SHAPES, *FEW, "dataset.episodes_per_epoch=6", "optim.max_steps=6", "optim.lr=1e-3"),
    "callbacks.checkpoint.every_n_minutes=0",
)
# The others are slow only in being many: what they do through the entry points is the framework's.
METHODS = [pytest.param(one, marks=[] if one == "bam" else pytest.mark.slow) for one in LEARNING]


@pytest.fixture(scope="module", params=METHODS)
def words(request):
    return (f"model={request.param}", *WORDS)


@pytest.fixture(scope="module")
def run(words, tmp_path_factory):
    return commands.run("train", tmp_path_factory.mktemp("run"), *words)


@pytest.mark.long
def test_a_killed_run_goes_on_where_it_was(run, words, tmp_path, monkeypatch):
    check_resume(run, words, tmp_path, monkeypatch)


@pytest.mark.long
def test_features_that_are_kept_change_no_figure(run, tmp_path):
    check_reuse(run, tmp_path)


def test_segmenter_and_what_cannot_be_exported(run, tmp_path):
    segmenter = check_segmenter(run, tmp_path)
    if run.result["method"] != "hdmnet":
        with pytest.raises(ValueError, match=r" cannot be exported; expected (an HDMNet|model=hdmnet)$"):
            export(segmenter, tmp_path / "network.onnx")


@pytest.mark.slow
def test_two_processes(words, tmp_path):
    parallel = ("trainer=ddp_cpu", "trainer.devices=2", "optim.max_steps=2", "dataset.num_test_episodes=5")
    answer = commands.run_process("train", tmp_path / "out", *words, *parallel)
    assert answer.code == 0, answer.err
    assert answer.out.count("mIoU  ") == 1
    single = commands.run("evaluate", tmp_path, f"ckpt={best(answer)}", "trainer=cpu", "num_workers=0")
    assert commands.figures(single.result) == commands.figures(answer.result)
