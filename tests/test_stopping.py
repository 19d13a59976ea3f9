from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from hdmnet import stopping
from tests.helpers.doors import ROOT


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "name", "code"), [(signal.SIGTERM, "SIGTERM", 75), (signal.SIGINT, "SIGINT", 130)])
def test_a_signal_ends_what_does_not_poll(number, name, code):
    with stopping.heard(), pytest.raises(stopping.Stopped, match=name) as stop:
        send(number)
    assert (stop.value.exit_code, stop.value.saved) == (code, None)


def poll(*numbers, error=None):
    """A polling section that gets signals; returns what it was told after each."""
    told = []
    with stopping.polling():
        for number in numbers:
            send(number)
            told.append(stopping.asked())
        TOLD[:] = told
        if error is not None:
            raise error


TOLD = []


def test_a_polling_section_is_told_and_not_interrupted(capfd):
    with stopping.heard():
        assert stopping.is_heard()
        with pytest.raises(stopping.Stopped, match="SIGTERM"):
            poll(signal.SIGTERM, signal.SIGTERM, signal.SIGINT)  # srun and torchrun say it twice
    assert TOLD == [signal.SIGTERM] * 3
    assert not stopping.is_heard()
    assert capfd.readouterr().err == "SIGTERM: the run will end after this step\n"


def test_a_second_ctrl_c_does_not_wait_for_the_step():
    TOLD[:] = []
    with stopping.heard(), pytest.raises(stopping.Stopped, match="SIGINT"):
        poll(signal.SIGINT, signal.SIGINT)
    assert TOLD == []  # it has not come to its end


def test_an_error_in_a_polling_section_is_not_hidden_by_a_signal():
    with stopping.heard(), pytest.raises(ValueError, match="diverged"):
        poll(signal.SIGTERM, error=ValueError("diverged"))


def test_one_run_after_another_is_not_ended_by_the_signal_of_the_first():
    for _ in range(2):
        with stopping.heard():
            assert stopping.asked() is None
            with pytest.raises(stopping.Stopped):
                poll(signal.SIGTERM)


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with stopping.heard():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_slurms_warning_is_heard_under_slurm_only(monkeypatch):
    before = signal.getsignal(signal.SIGUSR1)
    with stopping.heard():
        assert signal.getsignal(signal.SIGUSR1) == before
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    with stopping.heard(), pytest.raises(stopping.Stopped) as stop:
        send(signal.SIGUSR1)
    assert stop.value.wants_requeue
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    assert not stop.value.wants_requeue
    assert not stopping.Stopped(signal.SIGTERM).wants_requeue


def test_another_thread_cannot_hear_and_does_not_fail():
    def work():
        with stopping.heard():
            seen.append(stopping.is_heard())

    seen = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_a_worker_outlives_one_signal():
    code = (
        "import os, signal, time\nfrom hdmnet import stopping\nstopping.outlive_one_signal()\n"
        "os.kill(os.getpid(), signal.SIGINT)\nos.kill(os.getpid(), signal.SIGTERM)\nprint('alive', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(1)\nprint('still', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
