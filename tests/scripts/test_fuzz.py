"""The fuzzer: its inputs come again, it tells outcomes apart, and some seconds of it do no harm."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.robustness import fuzz

ROOT = Path(__file__).parents[2]
import fuzz_mutations as mutate  # noqa: E402 (by the name that the script imports it by)

JUDGE = """
import os, pathlib, signal, sys
import fuzz
fuzz.SECONDS = 0.5
signal.signal(signal.SIGALRM, fuzz._ring)
here = pathlib.Path(".").resolve()
watch = fuzz._Watch(here)
def refuse(path):
    from hdmnet.data.io.masks import read_mask
    read_mask(path / "nowhere.png")
def loop(path):
    while True: pass
def write_elsewhere(path):
    open(str(path.parent.parent / "elsewhere"), "w").close()
readers = {"accepted": lambda path: None, "refused": refuse, "crash": lambda path: {}["x"], "hang": loop}
for name, read in readers.items():
    print(name, fuzz._judge(read, here, watch)[0])
print("executed", fuzz._judge(lambda path: os.system("true"), here, watch)[0])
print("executed", fuzz._judge(write_elsewhere, here, watch)[0])
print("accepted", fuzz._judge(lambda path: open("here", "w").close(), here, watch)[0])
print("crash", fuzz._judge(lambda path: sys.exit(0), here, watch)[0])
print("executed", fuzz._judge(lambda path: pathlib.Path("canary_was_here").touch(), here, watch)[0])
"""


def test_outcomes_are_told_apart(tmp_path):
    (tmp_path / "scratch").mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "scripts" / "robustness")])}
    done = subprocess.run(
        [sys.executable, "-c", JUDGE], cwd=tmp_path / "scratch", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    pairs = [line.split() for line in done.stdout.splitlines()]
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


def test_some_seconds_of_it(tmp_path, capsys):
    assert fuzz.main(["--minutes", "0.17", "--output", str(tmp_path), "--seed", "5"]) == 0, capsys.readouterr().out
    counts = json.loads((tmp_path / "counts.json").read_text())["counts"]
    assert sum(sum(kind.values()) for kind in counts.values()) > 20
    assert {outcome for kind in counts.values() for outcome in kind} <= {"accepted", "refused"}
    assert capsys.readouterr().out.splitlines()[-1].startswith("all ")
    assert [path.name for path in tmp_path.iterdir()] == ["counts.json"]


@pytest.mark.slow
def test_an_unknown_kind_is_one_line(tmp_path, capsys):
    assert fuzz.main(["--kinds", "gif", "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("fuzz: kind 'gif' is unknown: expected some of png, jpeg")
