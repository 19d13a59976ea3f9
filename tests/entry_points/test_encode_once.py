"""Reuse in the commands: the same integers, whatever the memory, and nothing of it comes from the checkpoint."""

from __future__ import annotations

import pytest

from hdmnet.config.merge import merge_with_checkpoint
from hdmnet.config.values import to_stored
from tests.helpers import commands


@pytest.mark.long
def test_reuse_changes_no_figure(finished_run, tmp_path):
    """Of batches of the same size: a larger one may round a pixel otherwise."""

    def figures(name, *words):
        words = (f"ckpt={finished_run.folder / 'checkpoints' / 'best.ckpt'}", "trainer=cpu", "num_workers=0", *words)
        return commands.figures(commands.run("evaluate", tmp_path / name, *words).result)

    assert finished_run.result["config"]["reuse"]
    assert figures("each", "reuse=false") == commands.figures(finished_run.result)
    little = figures("little", "reuse_memory_gb=0.0005", "batch_size=1")
    assert little == figures("alone", "reuse=false", "batch_size=1")


@pytest.mark.long
def test_too_little_memory_is_refused_in_one_line(finished_run, tmp_path):
    best = finished_run.folder / "checkpoints" / "best.ckpt"
    words = (f"ckpt={best}", "trainer=cpu", "num_workers=0", "reuse_memory_gb=1e-6")
    refusal = commands.call("evaluate", tmp_path, *words).refusal()
    assert "reuse_memory_gb=1e-06: the features of one episode take" in refusal
    words = (f"ckpt={best}", "reuse_memory_gb=0")
    assert "reuse_memory_gb=0.0: expected a number above 0" in commands.call("evaluate", tmp_path, *words).refusal()


def test_reuse_belongs_to_the_command_not_to_the_checkpoint(compose_config):
    stored = to_stored(compose_config("train", "reuse=false", "reuse_memory_gb=7"))
    merged = merge_with_checkpoint(compose_config("evaluate"), stored, [])
    assert (merged.reuse, merged.reuse_memory_gb) == (True, 2.0)
