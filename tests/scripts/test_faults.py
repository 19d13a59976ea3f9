"""The quick part of the fault harness; the whole of it takes about an hour."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from importlib import import_module

import pytest

from tests.helpers.commands import ROOT


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "robustness"))
    yield
    for name in ("faults", "faults_runs", "faults_servers"):
        sys.modules.pop(name, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "number"),
    [("sigkill", "--kills=2"), ("ddp-sigterm", "--terms=1"), ("mid-checkpoint", "--mid-checkpoint=1")],
)
def test_runs_end_as_if_nothing_had_happened(tmp_path, part, number):
    assert import_module("faults").main(["--output", str(tmp_path), "--only", part, number]) == 0
    content = json.loads((tmp_path / "faults.json").read_text())
    (outcome,) = content["parts"]
    assert (outcome["part"], outcome["problems"]) == (part, [])
    assert outcome["faults"] == int(number[-1])
    assert outcome["figures"]["resumes"] >= 1


def test_a_difference_is_found(first_run, finished_run):
    """The harness would show nothing if it compared nothing."""
    differences = import_module("faults_runs").differences
    assert differences(first_run.folder, first_run.folder) == []
    found = differences(first_run.folder, finished_run.folder)
    for what in ("last.ckpt: state_dict", "best.ckpt: state_dict", "last.ckpt: optimizer_states", "result.json: test"):
        assert what in found
    assert "metrics.csv" in found
    assert "result.json: manifest_sha256" not in found


def test_an_unknown_part_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        import_module("faults").main(["--output", str(tmp_path), "--only", "sigquit"])
    assert "--only sigquit: expected sigkill, sigterm," in capsys.readouterr().err


def test_the_servers_do_as_they_are_told():
    servers = import_module("faults_servers")
    with servers.refusing() as url, pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(url, data=b"{}", timeout=5)
    with servers.hanging() as url, pytest.raises(TimeoutError):
        urllib.request.urlopen(url, timeout=0.3)
