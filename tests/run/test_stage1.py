"""Several jobs that need the same base learner: one trains it at a time."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time

import pytest

from hdmnet.run.stage1 import _turn_to_train


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "base.pt"


def take_part(path, log, *, fail=False):
    """As a job does."""
    try:
        with _turn_to_train(path, "a job") as mine:
            log.append("begins" if mine else "loads")
            if mine:
                time.sleep(0.3)
                if fail:
                    raise ValueError("diverged")
                path.write_text("weights")
                log.append("ends")
    except ValueError:
        log.append("fails")


def together(*calls):
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()


def test_one_trains_and_the_others_load_what_it_has_written(path, caplog):
    log = []
    with caplog.at_level(logging.INFO, logger="hdmnet.run.stage1"):
        together(*[lambda: take_part(path, log)] * 3)
    assert log == ["begins", "ends", "loads", "loads"]
    assert f"waiting, it is being trained by a job (process {os.getpid()} on " in caplog.text
    take_part(path, log)
    assert log[-1] == "loads"
    assert not path.with_suffix(".training").exists()


def test_one_who_waits_takes_over_from_one_who_fails(path):
    log = []
    together(lambda: take_part(path, log, fail=True), lambda: take_part(path, log))
    assert log == ["begins", "fails", "begins", "ends"]


def test_one_who_was_killed_holds_nobody_up(path):
    path.parent.mkdir()
    path.with_suffix(".training").write_text("a job that is gone")
    code = (
        "import filelock, sys, time; x = filelock.FileLock(sys.argv[1]); x.acquire(); print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, path.with_suffix(".lock")], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        log = []
        waiting = threading.Thread(target=take_part, args=(path, log))
        waiting.start()
        time.sleep(0.3)
        before = log[:]
        other.kill()
        waiting.join(timeout=20)
    assert (before, log) == ([], ["begins", "ends"])


def test_another_rank_does_as_the_first_has_decided(path, monkeypatch):
    """The first is training, as no file is there yet; the lock is its own."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    with _turn_to_train(path, "a job") as mine:
        assert mine
    assert not path.parent.exists()
    path.parent.mkdir()
    path.touch()
    with _turn_to_train(path, "a job") as mine:
        assert not mine
