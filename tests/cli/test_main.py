from __future__ import annotations

import os
import shutil
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


def _process(folder, *words, **environment):
    return subprocess.run(
        [sys.executable, "-m", "hdmnet", *words],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_try_is_predict_on_drawn_pictures(tmp_path):
    assert "\nexample: true\n" in _process(tmp_path, "try", "--cfg", "job").stdout


@pytest.mark.long
def test_it_is_the_entry_point_itself(tmp_path):
    done = _process(tmp_path, "train", "fold=7")
    assert (done.returncode, done.stderr) == (2, "error: fold=7: expected 0 to 3, shapes has 4 folds\n")


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("hdmnet ", "predict"),
        ("hdmnet pr", "predict"),
        ("hdmnet predict sup", "support="),
        ("hdmnet train dataset=pascal model=hdmnet_c", "model=hdmnet_correlation"),
        ("hdmnet report ", None),
        ("hdmnet predcit sup", None),
    ],
)
def test_a_shell_completes_commands_and_keys(tmp_path, line, offered):
    asked = {"COMP_LINE": line, "COMP_POINT": str(len(line))}
    done = _process(tmp_path, "-sc", "query=bash", **asked)
    assert (done.returncode, done.stderr) == (0, "")
    assert offered in done.stdout.split() if offered else not done.stdout


@pytest.mark.skipif(shutil.which("hdmnet") is None, reason="the console command is not installed")
def test_completion_is_installed_for_the_console_command(tmp_path):
    done = subprocess.run(["hdmnet", "-sc", "install=bash"], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.rstrip().endswith("hydra_bash_completion hdmnet")


def test_a_help_that_is_cut_off_is_no_error(tmp_path):
    command = [sys.executable, "-m", "hdmnet", "predict", "--help"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as done:
        done.stdout.close()
        assert done.stderr.read() == b""
        assert done.wait() == 0
