"""A step on a pretended GPU, in a process of its own, as torch can be told of a device only once."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.helpers.commands import ROOT

TINY = ("dataset.image_size=65", "batch_size=2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "kernels", "waits"),
    [
        (("shot=2", "trainer.precision=bf16-mixed", "model.ensemble=true"), 1700, 0),
        (("model=baseline",), 1100, 0),
        (("model=pfenet", "model.trunk_bn=batch"), 900, 1),  # running statistics: the finite guard has to wait
    ],
    ids=str,
)
def test_a_training_step_waits_for_nothing_and_answers_are_those_of_a_cpu(tmp_path, words, kernels, waits):
    path = tmp_path / "out.json"
    script = ["scripts/benchmarks/count_launches.py", "--compare", "--json", str(path)]
    subprocess.run(
        [sys.executable, "-W", "ignore", *script, *TINY, *words],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True, timeout=900,
    )  # fmt: skip
    found = json.loads(path.read_text())
    counted = {
        step: {kind: sum(several.values()) for kind, several in kinds.items()}
        for step, kinds in found["counted"].items()
    }
    assert counted["training step"]["waits"] == waits, found["counted"]["training step"]["waits"]
    assert 100 < counted["training step"]["kernels"] < kernels
    assert counted["evaluation step"]["waits"] <= 3, found["counted"]["evaluation step"]["waits"]
    assert all(difference < 1e-5 for difference in found["differences"].values())
