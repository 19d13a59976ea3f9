from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from hdmnet.runtime.run_folder import own_folder
from tests.helpers.commands import ROOT

HOLD = "import sys,pathlib,time; from hdmnet.runtime.run_folder import own_folder\n"
HOLD += "with own_folder(pathlib.Path(sys.argv[1]), replace=False): print('held', flush=True); time.sleep(600)"


def test_a_second_process_is_kept_out_until_the_first_is_gone(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as first:
        assert first.stdout.readline() == "held\n"
        refusal = pytest.raises(
            ValueError, match=r"run folder .*run is in use by process \d+ on .+: wait for it, or give"
        )
        with refusal, own_folder(tmp_path / "run", replace=True):
            raise AssertionError("two processes hold the folder")
        first.send_signal(signal.SIGKILL)  # nothing is left locked, however it ends
    with own_folder(tmp_path / "run", replace=False):
        pass


def test_a_finished_result_is_kept(tmp_path):
    (tmp_path / "result.json").write_text("{}")
    refusal = pytest.raises(ValueError, match=r"holds the result.json of a finished run: give this run a folder of its")
    with refusal, own_folder(tmp_path, replace=False):
        raise AssertionError("the result would be replaced")
    with own_folder(tmp_path, replace=True):
        pass
    with own_folder(tmp_path, replace=True):  # and the refusal above left no lock
        pass


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), own_folder(tmp_path / "file" / "run", replace=False):
        raise AssertionError
