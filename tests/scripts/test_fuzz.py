"""The fuzzer: its inputs come again, it tells outcomes apart, and some seconds of it do no harm."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path

import pytest

from hdmnet.data.io.masks import read_mask
from scripts.robustness import fuzz

# By the names that the script imports them by.
import fuzz_mutations as mutate  # isort: skip
import fuzz_targets  # noqa: F401  # isort: skip

# Its audit hook cannot be taken off again, so a process of its own.
FORK = multiprocessing.get_context("fork")
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12 on, beside threads


def judge(scratch, pipe):
    """Send how readers of all kinds are judged, each beside what it should be."""
    os.chdir(scratch)
    fuzz.SECONDS = 0.5
    signal.signal(signal.SIGALRM, fuzz._ring)
    watch = fuzz._Watch(scratch)

    def loop(_):
        while True:
            pass

    readers = [
        ("accepted", lambda path: None),
        ("refused", lambda path: read_mask(path / "nowhere.png")),
        ("crash", lambda path: {}["x"]),
        ("hang", loop),
        ("executed", lambda path: os.system("true")),
        ("executed", lambda path: (path.parent.parent / "elsewhere").open("w").close()),
        ("accepted", lambda path: open("here", "w").close()),
        ("crash", lambda path: sys.exit(0)),
        ("executed", lambda path: Path("canary_was_here").touch()),
    ]
    pipe.send([(expected, fuzz._judge(read, scratch, watch)[0]) for expected, read in readers])


def test_outcomes_are_told_apart(tmp_path):
    (tmp_path / "scratch").mkdir()
    mine, its = FORK.Pipe()
    process = FORK.Process(target=judge, args=((tmp_path / "scratch").resolve(), its))
    process.start()
    its.close()
    pairs = mine.recv()
    process.join()
    assert len(pairs) == 9
    assert all(expected == found for expected, found in pairs), pairs


@pytest.mark.parametrize(
    ("change", "data"),
    [
        (mutate.mutate_bytes, bytes(range(100))),
        (mutate.mutate_json, b'{"a": [1, 2, {"b": null}], "c": {"d": "x"}}'),
        (mutate.mutate_lines, b"a\nb\nc\n"),
    ],
)
def test_an_input_comes_again_and_they_differ(change, data):
    made = [change(data, random.Random(f"0/x/{number}")) for number in range(200)]
    assert made == [change(data, random.Random(f"0/x/{number}")) for number in range(200)]
    assert len(set(made)) > 60
    assert sum(one != data for one in made) > 180


def test_kinds_take_turns_and_every_number_comes_once():
    numbers = fuzz.numbers({"a": 2, "b": 1}, ["a", "b"])
    assert [next(numbers) for _ in range(6)] == [("a", 0), ("a", 1), ("b", 0), ("a", 2), ("a", 3), ("b", 1)]


@pytest.mark.long
def test_some_seconds_of_it(tmp_path, capsys):
    assert fuzz.main(["--minutes", "0.05", "--output", str(tmp_path), "--seed", "5"]) == 0, capsys.readouterr().out
    counts = json.loads((tmp_path / "counts.json").read_text())["counts"]
    assert sum(sum(kind.values()) for kind in counts.values()) > 20
    assert {outcome for kind in counts.values() for outcome in kind} <= {"accepted", "refused"}
    assert capsys.readouterr().out.splitlines()[-1].startswith("all ")
    assert [path.name for path in tmp_path.iterdir()] == ["counts.json"]


@pytest.mark.slow
def test_an_unknown_kind_is_one_line(tmp_path, capsys):
    assert fuzz.main(["--kinds", "gif", "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("fuzz: kind 'gif' is unknown: expected some of png, jpeg")
