"""Gives every known kind of bad input to the doors and scripts, each in a process of its own, and lists the answers.

    python scripts/bad_inputs.py --out docs/bad_input.md [--only TEXT] [--jobs 2]

Fails where an answer is not one line that names the culprit, with the right exit code, in time, and nothing half
written left behind. The cases (scripts/bad_input_*.py) are those of the tests.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(folder) for folder in (ROOT, ROOT / "scripts") if str(folder) not in sys.path]

from bad_input_bench import Bench  # noqa: E402
from bad_input_cases import CASES, Case  # noqa: E402
from bad_input_data import DATA_CASES  # noqa: E402
from bad_input_own import OWN_CASES  # noqa: E402

from hdmnet.atomic import replacing  # noqa: E402
from hdmnet.data.preparing import OneLineParser, run_main  # noqa: E402

NAME = "bad_inputs"
DOORS = ("train", "evaluate", "predict", "report")
ALL_CASES = (*CASES, *OWN_CASES, *DATA_CASES)
_SECONDS = 300.0
_HEAD = """# Bad input

What the doors and scripts answer to wrong commands, files and folders. Written by `python scripts/bad_inputs.py --out
docs/bad_input.md`, which runs every command in a process of its own; the tests run the same cases. Exit code 2: the
command line is wrong, 1: a file, a folder or the data are. `DIR` is the case's own folder.

"""


def output_word(case: Case, folder: Path) -> list[str]:
    """The word that tells a door where to write."""
    return [f"paths.output_dir={folder}"] if case.door in DOORS[:3] else []


def check_answer(case: Case, place: Path, code: int, err: str) -> str:
    """See whether an answer is what a user needs.

    Args:
        case: The case.
        place: Its folder.
        code: The exit code.
        err: What was printed to stderr.

    Returns:
        The one line.

    Raises:
        ValueError: It is not.
    """
    # A bar of progress that began before the refusal is no message.
    lines = [line for line in re.split(r"[\r\n]+", err) if line.strip() and not re.search(r"\d+%\||B/s\]", line)]
    prefix = "error: " if case.door in DOORS else f"{case.door}: "
    names = case.names.replace("{place}", str(place))
    wrong = [
        (code != case.code, f"exit code {code}, expected {case.code}"),
        (len(lines) != 1, f"{len(lines)} lines, expected 1"),
        (not lines or not lines[0].startswith(prefix), f"no line that begins with {prefix!r}"),
        (names not in err, f"no word of {names!r}"),
        (any(place.parent.rglob("was_run")) or Path("was_run").exists(), "something in the input was run"),
        (bool(left_behind(place)), f"left behind {left_behind(place)}"),
    ]
    found = [text for bad, text in wrong if bad]
    if found:
        raise ValueError(f"{case.door}, {case.given}: {'; '.join(found)}; it printed {err.strip()[-1500:]!r}")
    return lines[0]


def left_behind(place: Path) -> list[str]:
    """Results, checkpoints and half-written files under the outputs of a refused command."""
    patterns = ("result.json", "*.ckpt", "*.pt", "*.tmp", "report.md", "*.png")
    return sorted(str(path) for pattern in patterns for path in (place / "out").rglob(pattern))


def run_case(case: Case, bench: Bench, place: Path) -> tuple[int, str]:
    """Run a case in a process of its own.

    Args:
        case: The case.
        bench: The whole files.
        place: The case's folder; made here.

    Returns:
        Exit code and line.

    Raises:
        ValueError: The answer is not what it should be, or does not come.
    """
    place.mkdir(parents=True)
    target = ["-m", f"hdmnet.{case.door}"] if case.door in DOORS else [str(ROOT / "scripts" / f"{case.door}.py")]
    words = [*case.words(bench, place), *output_word(case, place / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [sys.executable, *target, *words],
            cwd=place,
            env=environment,
            timeout=_SECONDS,
            capture_output=True,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"{case.door}, {case.given}: no answer in {_SECONDS:g} s") from None
    return done.returncode, check_answer(case, place, done.returncode, done.stderr)


def write_table(answers: Sequence[tuple[Case, Path, int, str]], path: Path) -> None:
    """Write the answers as a table."""
    rows = ["| given | to | code | line |", "|---|---|---|---|"]
    for case, place, code, line in answers:
        shown = line.replace(str(place), "DIR").replace(str(place.parent), "DIR").replace(str(ROOT), ".")
        rows.append(f"| {case.given} | {case.door} | {code} | {shown.replace('|', chr(92) + '|')} |")
    with replacing(path) as temporary:
        temporary.write_text(_HEAD + "\n".join(rows) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script.

    Args:
        argv: Command line without the program's name; None = the process's own.

    Returns:
        Exit code: 1 if an answer was not what it should be.
    """
    parser = OneLineParser(prog=NAME, description="Give bad inputs to the doors and scripts and list the answers.")
    parser.add_argument("--out", type=Path, help="the table, e.g. docs/bad_input.md; nothing is written without it")
    parser.add_argument("--only", default="", help="only the cases whose description holds this text")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default 2)")

    def body() -> bool:
        arguments: argparse.Namespace = parser.parse_args(argv)
        cases = [case for case in ALL_CASES if arguments.only in case.given]
        with tempfile.TemporaryDirectory(prefix="hdmnet-bad-") as name:
            bench = Bench(Path(name) / "whole")
            _ = bench.run_files, bench.voc(Path(name) / "first")  # before several threads ask for them
            places = [Path(name) / f"case{number:03}" for number in range(len(cases))]
            with ThreadPoolExecutor(arguments.jobs) as pool:
                futures = [pool.submit(run_case, case, bench, place) for case, place in zip(cases, places, strict=True)]
            errors = [error for error in (future.exception() for future in futures) if error is not None]
            for error in errors:
                print(f"{NAME}: {error}", file=sys.stderr)
            done = zip(cases, places, futures, strict=True)
            answers = [(case, place, *future.result()) for case, place, future in done if future.exception() is None]
            print(f"{len(answers)} of {len(cases)} answers are what they should be")
            if arguments.out is not None and not errors:
                write_table(answers, arguments.out)
        return not errors

    return run_main(body, NAME)


if __name__ == "__main__":
    raise SystemExit(main())
