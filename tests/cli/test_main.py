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
        "error: hdmnet trian: no such command; expected one of try, train, evaluate, predict, demo, report; "
        "did you mean 'train'?\n"
    )


def _process(folder, *words):
    return subprocess.run(
        [sys.executable, "-m", "hdmnet", *words],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_try_is_predict_on_drawn_pictures(tmp_path):
    assert "\nexample: true\n" in _process(tmp_path, "try", "--cfg", "job").stdout


def test_it_is_the_entry_point_itself(tmp_path):
    done = _process(tmp_path, "train", "fold=7")
    assert (done.returncode, done.stderr) == (2, "error: fold=7: expected 0 to 3, shapes has 4 folds\n")
