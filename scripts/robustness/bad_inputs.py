"""Gives every known bad input to the entry points and scripts, each in a process of its own, and lists the answers.

    python scripts/robustness/bad_inputs.py --out docs/bad_input.md [--only TEXT]

Fails where an answer is not one line that names the culprit, with the right exit code, in time, and nothing half
written left behind. The cases (scripts/robustness/bad_input_*.py) are those of the tests.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [
    str(folder)
    for folder in (ROOT, ROOT / "scripts" / "robustness", ROOT / "scripts" / "data")
    if str(folder) not in sys.path
]

from bad_input_bench import Bench, first  # noqa: E402
from bad_input_cases import CASES, Case  # noqa: E402
from bad_input_data import DATA_CASES  # noqa: E402
from bad_input_own import OWN_CASES  # noqa: E402

from hdmnet.cli.parser import OneLineParser, run_main  # noqa: E402
from hdmnet.runtime.atomic import replacing  # noqa: E402

__all__ = ["ALL_CASES", "Bench", "check_answer", "first"]

NAME = "bad_inputs"
COMMANDS = ("train", "evaluate", "predict", "report")
ALL_CASES = (*CASES, *OWN_CASES, *DATA_CASES)
_SECONDS = 300.0
_HEAD = """# Bad input

What the entry points and scripts answer to wrong commands, files and folders. Written by
`python scripts/robustness/bad_inputs.py --out docs/bad_input.md`, which runs every command in a process of its own; the
tests run the same cases. Exit code 2: the command line is wrong, 1: a file, a folder or the data are. `DIR` is the
case's own folder.
"""


def output_word(case: Case, folder: Path) -> list[str]:
    """The word that tells an entry point where to write."""
    return [f"paths.output_dir={folder}"] if case.command in COMMANDS[:3] else []


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
    prefix = "error: " if case.command in COMMANDS else f"{case.command}: "
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
        raise ValueError(f"{case.command}, {case.given}: {'; '.join(found)}; it printed {err.strip()[-1500:]!r}")
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
    words = [*case.words(bench, place), *output_word(case, place / "out")]
    # Forked, as importing the libraries takes longer than all else; a bad input must not end this process.
    child = multiprocessing.get_context("fork").Process(target=_as_command, args=(case.command, words, place))
    child.start()
    child.join(_SECONDS)
    if child.exitcode is None:
        child.kill()
        raise ValueError(f"{case.command}, {case.given}: no answer in {_SECONDS:g} s")
    out, err = ((place / name).read_text(encoding="utf-8", errors="replace") for name in ("stdout", "stderr"))
    if "training it (stage 1)" in out:
        raise ValueError(f"{case.command}, {case.given}: training had begun")
    return child.exitcode, check_answer(case, place, child.exitcode, err)


def _as_command(command: str, words: list[str], place: Path) -> None:
    """Be `python -m hdmnet.<command> words` or `python scripts/<command>.py words`, in the case's folder."""
    os.chdir(place)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(place / name, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115 (until the end)
    sys.argv = [command, *words]
    code: Any = 1
    try:
        main = importlib.import_module(f"hdmnet.{command}" if command in COMMANDS else command).main
        code = main() or 0
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def write_table(answers: Sequence[tuple[Case, Path, int, str]], path: Path) -> None:
    """Write the answers as a table."""
    rows = ["| given | to | code | line |", "|---|---|---|---|"]
    for case, place, code, line in answers:
        shown = line.replace(str(place), "DIR").replace(str(place.parent), "DIR").replace(str(ROOT), ".")
        rows.append(f"| {case.given} | {case.command} | {code} | {shown.replace('|', chr(92) + '|')} |")
    with replacing(path) as temporary:
        temporary.write_text(_HEAD + "\n".join(rows) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script.

    Args:
        argv: Command line without the program's name; None = the process's own.

    Returns:
        Exit code: 1 if an answer was not what it should be.
    """
    parser = OneLineParser(prog=NAME, description="Give bad inputs to all commands and list the answers.")
    parser.add_argument("--out", type=Path, help="the table, e.g. docs/bad_input.md; nothing is written without it")
    parser.add_argument("--only", default="", help="only the cases whose description holds this text")

    def body() -> bool:
        arguments: argparse.Namespace = parser.parse_args(argv)
        cases = [case for case in ALL_CASES if arguments.only in case.given]
        with tempfile.TemporaryDirectory(prefix="hdmnet-bad-") as name:
            bench = Bench(Path(name) / "whole")
            _ = bench.run_files, bench.voc(Path(name) / "first")  # here, and not anew in every process
            answers, errors = [], []
            for number, case in enumerate(cases):
                place = Path(name) / f"case{number:03}"
                try:
                    answers.append((case, place, *run_case(case, bench, place)))
                except ValueError as error:
                    errors.append(str(error))
                    print(f"{NAME}: {error}", file=sys.stderr, flush=True)
            print(f"{len(answers)} of {len(cases)} answers are what they should be")
            if arguments.out is not None and not errors:
                write_table(answers, arguments.out)
        return not errors

    return run_main(body, NAME)


if __name__ == "__main__":
    raise SystemExit(main())
