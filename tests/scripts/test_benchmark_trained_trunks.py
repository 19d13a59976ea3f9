from __future__ import annotations

import pytest

from scripts.benchmarks import benchmark_trained_trunks as benchmark


@pytest.mark.parametrize("name", benchmark.METHODS)
@pytest.mark.parametrize("mode", ["evaluation", "training"])
def test_both_forms_compute_the_same(name, mode):
    ours, plain = (benchmark.prepare(name, form, mode, 49, 2)() for form in ("ours", "plain"))
    assert (ours - plain).abs().max() < benchmark.TOLERANCE


def test_a_row_of_the_table(capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "memory_apart", lambda words: 1.0 + len(words))
    assert benchmark.main(["panet", "--side", "33", "--repeats", "1", "--mode", "evaluation"]) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.startswith("| `panet` | evaluation | 33 | 1 |")
    assert benchmark.main(["panet", "--side", "33", "--mode", "training", "--memory"]) == 0
    assert float(capsys.readouterr().out) > 0
