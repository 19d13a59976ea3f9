"""scripts/reproduce.sh, with an interpreter that writes down what it is asked for instead of running it."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "reproduce.sh"


@pytest.fixture
def reproduce(tmp_path):
    """Run the script; gives its exit code, what it printed to stderr and the command lines it gave to Python."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/asked\n[[ "$*" != *"${{FAILING:-nothing}}"* ]]\n')
    python.chmod(0o755)

    def run(*words, failing="nothing"):
        outside = {**os.environ, "PYTHON": str(python), "HDMNET_OUTPUT": "out", "FAILING": failing}
        done = subprocess.run([SCRIPT, *words], env=outside, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stderr, (tmp_path / "asked").read_text().splitlines()

    return run


def test_shapes_runs_each_ablation_and_the_folds_and_reports_them(reproduce):
    code, _, asked = reproduce("shapes", "optim.max_steps=3")
    tables = ["table4", "table5", "table6", "table7", "table8", "table9", "folds"]
    assert code == 0
    assert asked == [
        *(f"-m hdmnet.train sweep={table} optim.max_steps=3" for table in tables),
        "-m hdmnet.report out/shapes/multirun --out out/report_shapes",
    ]


def test_the_papers_scale_covers_both_data_sets_on_four_gpus(reproduce):
    code, _, asked = reproduce()
    sweeps, report = asked[:-1], asked[-1]
    assert code == 0
    assert all(line.endswith("trainer=ddp trainer.devices=4") for line in sweeps)
    assert [line.split()[2] for line in sweeps] == [f"sweep=table{n}" for n in (1, 2, 4, 5, 6, 7, 8, 9)]
    assert all("dataset=coco fold=0,1,2,3" in line for line in sweeps[2:])
    assert report == "-m hdmnet.report out/coco/multirun out/pascal/multirun --out out/report_paper"


def test_a_failed_sweep_is_named_and_does_not_stop_the_others(reproduce):
    code, err, asked = reproduce("shapes", failing="sweep=table6")
    assert code == 1
    assert len(asked) == 8
    assert "failed: table6;" in err
