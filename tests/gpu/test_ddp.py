"""DDP with one process on a GPU is the training without it."""

from __future__ import annotations

import pytest

from tests.helpers.commands import SHAPES, run_process
from tests.helpers.resuming import log_rows

pytestmark = pytest.mark.gpu

# Without dropout: Lightning seeds the generators again where it starts DDP, so that other units would be dropped.
WORDS = (*SHAPES, "optim.lr=1e-5", "model.dropout=0", "model.mid_dropout=0", "trainer.deterministic=true")


def test_one_process_of_ddp_trains_the_same(accelerator, start, tmp_path):
    words = (*WORDS, f"ckpt={start}", accelerator)
    alone = run_process("train", tmp_path / "alone", *words)
    ddp = run_process("train", tmp_path / "ddp", *words, "trainer.strategy=ddp", "trainer.devices=1")
    assert (alone.code, ddp.code) == (0, 0), alone.err + ddp.err
    losses = [
        [float(row["train/loss"]) for row in log_rows(one.folder) if row.get("train/loss")] for one in (alone, ddp)
    ]
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert ddp.result["num_processes"] == 1
    assert ddp.result["test"]["miou"] == pytest.approx(alone.result["test"]["miou"], abs=1e-3)
