"""How a run ends that does not finish: Ctrl-C and dead workers leave a line, a checkpoint and no process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hdmnet.sweeps.processes import group_is_alive
from scripts.robustness.resources import FILE, family
from tests.helpers.commands import ROOT, SHAPES, load

SECONDS_TO_END = 5.0
_ENDLESS = (
    *("optim.max_steps=100000", "dataset.episodes_per_epoch=4000", "trainer.enable_progress_bar=false"),
    "+callbacks.resources._target_=scripts.robustness.resources.ResourceLog",
    "+callbacks.resources.directory=${paths.run_dir}",
    "+callbacks.resources.every_n_steps=1",
)
DDP = ("trainer=ddp_cpu", "trainer.devices=2")


def patience():
    """The seconds, as many times over as there are processes that wait for each core of this machine."""
    return SECONDS_TO_END * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@contextlib.contextmanager
def training(tmp_path, start, *words):
    """A training in a process group of its own, some steps on its way; what is left of it is killed."""
    output = tmp_path / "out"
    words = [*SHAPES, f"ckpt={start}", *_ENDLESS, *words, f"paths.output_dir={output}"]
    with (tmp_path / "out.txt").open("wb") as out, (tmp_path / "err.txt").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "hdmnet.train", *words],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=out, stderr=err, start_new_session=True, cwd=tmp_path,
        )  # fmt: skip
    try:
        end = time.monotonic() + 300
        while not _has_lines(output, 3):
            assert process.poll() is None, (tmp_path / "err.txt").read_text()
            assert time.monotonic() < end, "no step in five minutes"
            time.sleep(0.1)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _has_lines(output: Path, count: int) -> bool:
    return any(len(path.read_text().splitlines()) > count for path in output.rglob(FILE))


def seconds_until_all_are_gone(process, limit):
    begin = time.monotonic()
    while group_is_alive(process.pid) and time.monotonic() < begin + limit:
        process.poll()
        time.sleep(0.02)
    assert not group_is_alive(process.pid), f"still there after {limit:.0f} s"
    process.wait()
    return time.monotonic() - begin


@pytest.mark.slow
@pytest.mark.parametrize("to", ["group", "process"])
@pytest.mark.parametrize("words", [("num_workers=0",), ("num_workers=2",), (*DDP, "num_workers=1")], ids=" ".join)
def test_ctrl_c_ends_all_processes_with_a_checkpoint(start, tmp_path, words, to):
    """A terminal sends it to the whole group, a supervisor to the process."""
    limit = patience()
    with training(tmp_path, start, *words) as process:
        assert len(family(process.pid)) == {"num_workers=0": 1, "num_workers=2": 3}.get(words[0], 4)
        (os.killpg if to == "group" else os.kill)(process.pid, signal.SIGINT)
        seconds = seconds_until_all_are_gone(process, 60)
    error = (tmp_path / "err.txt").read_text()
    assert "Traceback" not in error
    assert [line for line in error.splitlines() if line.startswith("error: interrupted")], error
    assert process.returncode == 130
    (last,) = (tmp_path / "out").rglob("last.ckpt")
    assert load(last)["global_step"] >= 3
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert seconds < limit


@pytest.mark.slow
def test_a_killed_worker_is_reported_in_one_line(start, tmp_path):
    with training(tmp_path, start, "num_workers=2") as process:
        _, worker, _ = sorted(family(process.pid))
        os.kill(worker, signal.SIGKILL)
        seconds_until_all_are_gone(process, 60)
    error = (tmp_path / "err.txt").read_text()
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert line.startswith(
        f"error: data loader worker (process {worker}) was killed by signal: Killed, most often because"
    )
    assert "Traceback" not in error
    assert process.returncode == 1


@pytest.mark.slow
def test_a_killed_worker_of_another_rank_ends_the_whole_job(start, tmp_path):
    with training(tmp_path, start, *DDP, "num_workers=1") as process:
        (rank,) = [one for one in family(process.pid)[1:] if len(family(one)) == 2]
        (worker,) = family(rank)[1:]
        os.kill(worker, signal.SIGKILL)
        seconds_until_all_are_gone(process, 60)
    error = (tmp_path / "err.txt").read_text()
    assert f"error: data loader worker (process {worker}) was killed by signal: Killed" in error
    assert "Traceback" not in error
    assert process.returncode != 0
