from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hdmnet.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_help_lists_the_commands(monkeypatch, capsys, words):
    monkeypatch.setattr(sys, "argv", ["hdmnet", *words])
    assert main() == 0
    out = capsys.readouterr().out
    assert all(f"\n  {command}" in out for command in COMMANDS)


def test_an_unknown_command_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hdmnet", "trian"])
    assert main() == 2
    assert capsys.readouterr().err == (
        "error: hdmnet trian: no such command; expected one of train, evaluate, predict, demo, report; "
        "did you mean 'train'?\n"
    )


def test_it_is_the_entry_point_itself(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "hdmnet", "train", "fold=7"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (2, "error: fold=7: expected 0 to 3, shapes has 4 folds\n")
