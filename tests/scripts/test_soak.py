"""What a process tree takes, and the file that a run writes of it."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from scripts.robustness import resources
from scripts.robustness.resources import FILE, ResourceLog, family, measure
from scripts.robustness.soak import fit, grows, read, slope, table


@pytest.fixture
def child():
    """A process with one of its own, which waits."""
    start = "p = subprocess.Popen([sys.executable, '-c', 'input()'])"
    code = f"import subprocess, sys; {start}; print(p.pid, flush=True); p.wait()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    grandchild = int(process.stdout.readline())
    yield process.pid, grandchild
    process.communicate("\n")


def test_the_family_is_a_process_and_all_below_it(child):
    assert family(child[0]) == [*child]
    assert {os.getpid(), *child} <= set(family(os.getpid()))


def test_memory_and_open_files_are_seen(tmp_path):
    before = measure(os.getpid())
    assert before["processes"] >= 1
    assert before["threads"] >= before["processes"]
    block = mmap.mmap(-1, 200_000_000)  # an array might get memory that the process has kept
    np.frombuffer(block, np.uint8)[:] = 1
    with (tmp_path / "a").open("w"), (tmp_path / "b").open("w"):
        after = measure(os.getpid())
    assert after["open_files"] - before["open_files"] == 2
    assert 150 < after["memory_mb"] - before["memory_mb"] < 250


def test_children_count(child):
    taken = measure(child[0])
    assert taken["processes"] == 2
    assert taken["memory_mb"] > 4


def test_a_process_that_is_gone_takes_nothing():
    assert measure(2**22 + 1) == {"memory_mb": 0, "open_files": 0, "threads": 0, "processes": 0}


def test_lines_are_written_by_the_first_process_where_they_are_due(tmp_path, caplog, monkeypatch):
    log = ResourceLog(tmp_path, every_n_steps=2)
    for step in range(1, 5):
        log.on_train_batch_end(SimpleNamespace(global_step=step, is_global_zero=True), None, None, None, step)
    log.on_validation_end(SimpleNamespace(global_step=5, is_global_zero=True), None)
    log.on_test_end(SimpleNamespace(global_step=5, is_global_zero=False), None)
    rows = read(tmp_path / FILE)
    assert [(row["phase"], row["step"]) for row in rows] == [("train", 2), ("train", 4), ("validation", 5)]
    assert all(row["memory_mb"] > 10 for row in rows)
    monkeypatch.setattr(resources, "PROC", tmp_path / "no proc")
    log.setup(None, None, "fit")
    log.on_test_end(SimpleNamespace(global_step=5, is_global_zero=True), None)
    assert len(read(tmp_path / FILE)) == 3
    assert "resources.csv is not written: this system has no" in caplog.text


# --------------------------------------------------------------------------------------------------------- the soak


def rows(memory, files=lambda step: 100.0):
    """A training of 1,000 steps with 10 validations, which take more for a moment."""
    found = []
    for step in range(10, 1001, 10):
        row = {"seconds": float(step), "step": float(step), "threads": 6.0, "processes": 3.0, "open_files": files(step)}
        found.append({**row, "phase": "train", "memory_mb": memory(step)})
        if step % 100 == 0:
            found.append({**row, "phase": "validation", "memory_mb": memory(step) + 300})
    return found


def test_a_leak_is_found_and_a_warm_up_is_none():
    warm = fit(rows(lambda step: 500 + min(step, 200)))
    assert warm["memory_mb"].slope == 0
    assert (warm["memory_mb"].begin, warm["memory_mb"].end, warm["memory_mb"].highest) == (700, 700, 1000)
    assert grows(warm, limit=5) == []
    leak = fit(rows(lambda step: 500 + 0.02 * step))
    assert leak["memory_mb"].slope == pytest.approx(20)
    assert grows(leak, limit=5) == ["memory_mb"]
    assert "+20.00" in table(leak, 1000)
    files = fit(rows(lambda step: 500.0, files=lambda step: 100.0 + step // 500))
    assert grows(files, limit=5) == ["open_files"]


def test_single_peaks_do_not_move_the_slope():
    assert slope([(x, 5.0 + (1000 if x == 7 else 0)) for x in range(20)]) == 0
    assert slope([(1, 2.0)]) == 0
    with pytest.raises(ValueError, match="only 1 measurements after the warm-up"):
        fit(rows(lambda step: 1.0)[:1])


@pytest.mark.slow
def test_a_short_soak(tmp_path, capsys):
    """Too short for a verdict on memory, so with a wide limit: nothing else may grow."""
    from scripts.robustness import soak

    out = tmp_path / "soak"
    words = ["--steps", "120", "--evaluations", "4", "--limit", "400", "--out", str(out), "dataset.controls=false"]
    code = soak.main(words)
    printed = capsys.readouterr()
    assert code == 0, printed
    assert "nothing grows" in printed.out
    found = fit(read(next(out.rglob(FILE))))
    # This process, two loaders of two workers, and helpers that earlier tests in it have started.
    assert found["processes"].begin == found["processes"].end >= 5
    assert (out / "soak.png").stat().st_size > 5000
    assert (out / "soak.json").is_file()
