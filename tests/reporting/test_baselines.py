"""The report's table of what stands beside every result."""

from __future__ import annotations

import pytest

from hdmnet import report
from hdmnet.reporting.baselines import baseline_table
from hdmnet.reporting.collect import collect
from hdmnet.reporting.formats import show
from tests.helpers.reports import write_run

ABOVE = {"miou": 0.2, "difference": 0.1, "interval": [0.05, 0.15], "is_above": True}
BELOW = {"miou": 0.4, "difference": -0.1, "interval": [-0.2, 0.02], "is_above": False}
ENTRY = {"num_episodes": 50, "miou": 0.3, "untrained_prototype": ABOVE, "support_mask_ones": BELOW, "missing": {}}


@pytest.fixture
def runs(tmp_path):
    write_run(tmp_path, "a", baselines={**ENTRY, "warning": "it does not use its support"})
    write_run(tmp_path, "b", seed=1, baselines={"num_episodes": 50, "miou": 0.3, "missing": {}, "warning": None})
    write_run(tmp_path, "c", seed=2)
    return tmp_path


def test_a_row_for_each_run_that_measured_them(runs):
    (table,) = baseline_table(collect([runs]).runs)
    (row,) = table.rows
    cells = [show(cell) for cell in row]
    assert cells[:2] == ["shapes", "hdmnet"]
    assert cells[-6:] == ["30.0", "20.0", "40.0", "+10.0 (+5.0 to +15.0)", "-10.0 (-20.0 to +2.0)†", "50"]
    (warning,) = table.warnings
    assert warning.endswith("a: it does not use its support")
    assert baseline_table([]) == []


@pytest.mark.long
def test_it_is_in_the_report_as_long_as_there_is_one(runs, tmp_path):
    out = tmp_path / "report"
    assert report.main([str(runs / "a"), "--out", str(out), "--episodes", "0"]) == 0
    assert "Baselines of every result" in (out / "report.html").read_text()
    assert (out / "tables" / "baselines.md").is_file()
    assert report.main([str(runs / "c"), "--out", str(out), "--episodes", "0"]) == 0
    assert not (out / "tables" / "baselines.md").exists()
