"""Everything that only a GPU can show, in one command that may be cut off at any moment.

    scripts/benchmarks/gpu.sh --out DIR                        # all sections in 9 minutes
    scripts/benchmarks/gpu.sh --out DIR --sections d,e --minutes 5
    scripts/benchmarks/gpu.sh --out DIR --rehearse             # on a CPU in tiny sizes: the figures mean nothing
    scripts/benchmarks/gpu.sh --out DIR --merge FIRST.json SECOND.json    # the tables of several calls as one page

Each section is a process of its own with a time limit, in the order of worth: tests (a), training step (b), profile
(f), evaluation (c), compiled training step (g), a real training (d), distillation (e). What a section has found is in
`DIR/gpu.json` and `DIR/gpu.md` a second later; both are replaced whole, so that nothing is lost or half written when
this process, or the machine, is stopped. A section that runs out of time keeps what it has; one that fails says why,
and the others go on.

Data: `HDMNET_DATA/pascal` (any part of VOC 2012), else the embedded shapes written as such a tree. Weights:
`HDMNET_WEIGHTS/mobilenet_v2_imagenet.pth`, else none. No network is needed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(folder) for folder in (ROOT, ROOT / "scripts" / "benchmarks") if str(folder) not in sys.path]

from hdmnet.cli.parser import OneLineParser, run_main  # noqa: E402
from hdmnet.runtime import ranks  # noqa: E402
from hdmnet.runtime.atomic import replacing  # noqa: E402
from hdmnet.runtime.errors import ConfigError, InputError  # noqa: E402
from hdmnet.runtime.provenance import git_state  # noqa: E402

NAME = "gpu"
JSON, MARKDOWN = "gpu.json", "gpu.md"
GRACE = 3.0  # seconds between asking a section to end and ending it
PATIENCE = 20.0  # times the usual limits in a rehearsal: a CPU may be busy
POLL = 0.5  # seconds between two looks at what a section has found
COMMAND = (sys.executable, str(Path(__file__).resolve()))  # this very command, for a section
ENDING = (signal.SIGTERM, signal.SIGINT)
TAIL = 15  # lines of a failed section's output that are kept; the log has all of it


@dataclass(frozen=True)
class Section:
    """A part of the whole that runs by itself.

    Attributes:
        letter: Its name on the command line.
        title: Its heading.
        least: Seconds below which it shows nothing.
        wanted: Seconds that it can make use of.
    """

    letter: str
    title: str
    least: float
    wanted: float


# In the order in which they run. The letters are those of the docs.
SECTIONS = (
    Section("a", "Tests that need a GPU", 40, 100),
    Section("b", "Training step", 45, 120),
    Section("f", "Where a training step's time goes", 35, 75),
    Section("c", "Test protocol, with features reused and without", 45, 90),
    Section("g", "Training step, compiled", 60, 150),
    Section("d", "A real training", 90, 240),
    Section("e", "With distillation and without", 90, 180),
)


def plan(names: Sequence[str], seconds: float, patience: float = 1.0) -> dict[str, float]:
    """Share out the time.

    In the order of worth each section gets the least that it needs, as long as there is time; what is left goes, in the
    same order, to those that can use more.

    Args:
        names: Letters of the sections still to run.
        seconds: Time left for all of them.
        patience: Times the time that a section can use.

    Returns:
        Seconds by letter, in the order in which they run; those that do not fit are not in it.
    """
    chosen: dict[str, float] = {}
    sections = {section.letter: section for section in SECTIONS if section.letter in names}
    for letter, section in sections.items():
        if section.least <= seconds:
            chosen[letter] = section.least
            seconds -= section.least
    for letter in chosen:
        more = min(patience * sections[letter].wanted - chosen[letter], seconds)
        chosen[letter] += more
        seconds -= more
    return chosen


# ------------------------------------------------------------------------------------------------------------ results


@dataclass
class Findings:
    """What has been found so far: the content of the JSON.

    Attributes:
        about: Machine, versions, date, commit.
        sections: By letter: title, status, seconds, limit, rows, notes.
        folder: Where it is written; None: nowhere.
    """

    about: dict[str, Any] = field(default_factory=dict)
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    folder: Path | None = None

    def add(self, letter: str, line: Mapping[str, Any]) -> None:
        """Take up what a section has said: {"row": …}, {"note": …} or {"machine": …}."""
        entry = self.sections[letter]
        if "machine" in line:
            self.about |= line["machine"]
        if "note" in line and line["note"] not in entry["notes"]:
            entry["notes"].append(line["note"])
        if "row" in line:
            entry["rows"] = [row for row in entry["rows"] if row["key"] != line["row"]["key"]] + [line["row"]]

    def write(self) -> None:
        """Replace both files."""
        if self.folder is None:
            return
        content = {"about": self.about, "sections": self.sections}
        with replacing(self.folder / JSON) as temporary:
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        with replacing(self.folder / MARKDOWN) as temporary:
            temporary.write_text(markdown(self.about, self.sections), encoding="utf-8")


def format_value(row: Mapping[str, Any]) -> str:
    """A figure to three or four digits, with its unit."""
    value = row["value"]
    if value is None:
        return "not measured"
    if row["unit"] == "%":
        return f"{value:.1f} %"
    small = value != 0 and abs(value) < 1e-2
    number = f"{value:.1e}" if small else f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{number} {row['unit']}".rstrip()


def meets(row: Mapping[str, Any]) -> bool | None:
    """Whether a figure is what its row wants ("≥ 10", "≤ 0.1"); None where nothing is wanted or was measured."""
    sign, _, bound = str(row["target"]).partition(" ")
    if sign not in ("≥", "≤") or row["value"] is None:
        return None
    return bool(row["value"] >= float(bound) if sign == "≥" else row["value"] <= float(bound))


def markdown(about: Mapping[str, Any], sections: Mapping[str, Mapping[str, Any]]) -> str:
    """The page: machine, a summary of all that has a target, and a table a section."""
    rehearsal = bool(about.get("rehearsal"))
    lines = []
    if rehearsal:
        lines += ["**A rehearsal in tiny sizes: the figures mean nothing.**", ""]
    lines += [machine_line(about), "", "| | measured | wanted | |", "|---|---|---|---|"]
    verdicts = {True: "met", False: "**missed**", None: ""}
    for letter, entry in sections.items():
        for row in entry["rows"]:
            if row["target"]:
                verdict = "" if rehearsal else verdicts[meets(row)]
                lines.append(f"| {letter}: {row['label']} | {format_value(row)} | {row['target']} | {verdict} |")
    for letter, entry in sections.items():
        lines += ["", f"## {letter}: {entry['title']}", "", status_line(entry)]
        if entry["rows"]:
            lines += ["", "| | measured | wanted |", "|---|---|---|"]
            lines += [f"| {row['label']} | {format_value(row)} | {row['target']} |" for row in entry["rows"]]
        if entry["notes"]:
            lines += ["", *(f"* {' '.join(note.split())}" for note in entry["notes"])]
    return "\n".join(lines) + "\n"


def machine_line(about: Mapping[str, Any]) -> str:
    """Card, driver, versions and date, as far as they are known."""
    where = about.get("gpu") or about.get("cpu") or "machine not known"
    versions = [f"{name} {about[name]}" for name in ("driver", "cuda", "cudnn", "torch", "python") if about.get(name)]
    known = [where, *versions, f"{about['cores']} cores" if about.get("cores") else ""]
    commit = str(about.get("git_commit") or "")[:7]
    known += [f"commit {commit}{' with changes' if about.get('git_dirty') else ''}" if commit else ""]
    return ", ".join([*filter(None, known), str(about.get("date", "date not known"))]) + "."


def status_line(entry: Mapping[str, Any]) -> str:
    """How a section ended."""
    if not entry["seconds"]:
        return f"{entry['status']}."
    return f"{entry['status']}, {entry['seconds']:.0f} s of {entry['limit']:.0f} s."


# -------------------------------------------------------------------------------------------------------- the sections


class Cut(Exception):
    """A signal has asked this process to end."""


@dataclass
class Runner:
    """Runs sections, one process each, and keeps the files up to date.

    Args:
        findings: Gets what they find.
        work: Scratch folder that they share.
        rehearse: On a CPU, in tiny sizes.
        command: What runs a section.
    """

    findings: Findings
    work: Path
    rehearse: bool
    command: tuple[str, ...]

    def run(self, names: Sequence[str], seconds: float) -> None:
        """Run the sections within the time, in their order."""
        end = time.monotonic() + seconds
        left = [section.letter for section in SECTIONS if section.letter in names]
        for letter in left:
            title = next(section.title for section in SECTIONS if section.letter == letter)
            empty: dict[str, Any] = {"title": title, "status": "not run", "seconds": 0.0, "limit": 0.0}
            self.findings.sections[letter] = {**empty, "rows": [], "notes": []}
        self.findings.write()
        while left:
            planned = plan(
                left, end - time.monotonic(), PATIENCE if self.rehearse else 1.0
            )  # anew: what a section has left, the next ones get
            if not planned:
                break
            letter = next(iter(planned))
            left = left[left.index(letter) + 1 :]
            self.run_one(letter, planned[letter])
            print(progress_line(letter, self.findings.sections[letter]), flush=True)

    def run_one(self, letter: str, limit: float) -> None:
        """Run one section, at most `limit` seconds."""
        entry = self.findings.sections[letter]
        entry["limit"] = limit
        spool, output = self.work / f"{letter}.jsonl", self.work / f"{letter}.txt"
        spool.touch()
        words = [
            "--section",
            letter,
            "--limit",
            str(limit - 2 * GRACE),
            "--spool",
            str(spool),
            "--work",
            str(self.work),
        ]
        words += ["--rehearse"] if self.rehearse else []
        start = time.monotonic()
        with output.open("w") as sink, spool.open(encoding="utf-8") as lines:
            child = subprocess.Popen(
                [*self.command, *words],
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a group of its own, so that what it starts ends with it
                env=os.environ | {ranks.PARENT_VARIABLE: str(os.getpid())},
                cwd=ROOT,
            )
            status = "FAILED"
            try:
                entry["status"] = "running"
                code = None
                while code is None and time.monotonic() - start < limit - GRACE:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        code = child.wait(POLL)
                    entry["seconds"] = time.monotonic() - start
                    self.take(letter, lines)
                status = "cut off at its limit" if code is None else "done" if code == 0 else "FAILED"
            except Cut:
                status = "cut off from outside"
                raise
            finally:
                entry["status"], entry["seconds"] = status, time.monotonic() - start
                if status == "FAILED":
                    said = output.read_text(encoding="utf-8", errors="replace")
                    print(said, flush=True)
                    entry["notes"].append(f"exit code {child.returncode}: {' / '.join(said.splitlines()[-TAIL:])}")
                lines.seek(0)  # all of them again: a signal may have come between reading a line and taking it up
                self.take(letter, lines, write=True)
                end_group(child)
                self.take(letter, lines)

    def take(self, letter: str, lines: Iterator[str], *, write: bool = False) -> None:
        """Take up the lines that a section has added; write the files where there are any."""
        for line in lines:
            self.findings.add(letter, json.loads(line))
            write = True
        if write:
            self.findings.write()


def progress_line(letter: str, entry: Mapping[str, Any]) -> str:
    """What is printed when a section is over."""
    goals = [f"{row['label']} {format_value(row)}" for row in entry["rows"] if row["target"]]
    return f"{letter} {entry['title']}: {status_line(entry)} {'; '.join(goals)}".rstrip()


def end_group(child: subprocess.Popen[Any]) -> None:
    """End a section and all that it has started."""
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(patience)
    child.wait()


def driver() -> str | None:
    """Version of the NVIDIA driver; None where there is none."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.split()), None)


# ------------------------------------------------------------------------------------------------------------- command


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(prog=NAME, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    letters = ",".join(section.letter for section in SECTIONS)
    parser.add_argument("--out", type=Path, help=f"folder that gets {JSON} and {MARKDOWN} (default: $OUT)")
    parser.add_argument("--minutes", type=float, help="for all sections together (default: 9, of a rehearsal 120)")
    parser.add_argument("--sections", default=letters, help=f"of {letters} (default: all)")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, in tiny sizes")
    parser.add_argument("--merge", type=Path, nargs="+", metavar="JSON", help="only put earlier results together")
    for hidden in ("section", "spool", "limit", "work"):  # how this command calls itself
        parser.add_argument(f"--{hidden}", help=argparse.SUPPRESS)
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read and check the command line; a ConfigError of one line where it is wrong."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if arguments.section is not None:
        return arguments
    known = [section.letter for section in SECTIONS]
    arguments.sections = [name for name in arguments.sections.split(",") if name]
    unknown = [name for name in arguments.sections if name not in known]
    if unknown or not arguments.sections:
        parser.error(f"--sections {','.join(arguments.sections)}: expected some of {','.join(known)}")
    if arguments.out is None and not os.environ.get("OUT"):
        parser.error("--out is missing: give a folder for the results, or set OUT")
    arguments.out = Path(arguments.out or os.environ["OUT"])
    if arguments.minutes is None:
        arguments.minutes = 120.0 if arguments.rehearse else 9.0
    if not arguments.minutes > 0:
        parser.error(f"--minutes {arguments.minutes}: expected more than 0")
    if not arguments.rehearse and not arguments.merge and driver() is None:
        raise ConfigError("nvidia-smi finds no GPU; --rehearse runs everything on the CPU in tiny sizes")
    return arguments


def merge(files: Sequence[Path], folder: Path) -> None:
    """Put the results of several calls together: of a section that several have, the last that found anything.

    Raises:
        ValueError: They are of different cards, or a file is no result.
    """
    findings = Findings(folder=folder)
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            about, sections = content["about"], content["sections"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file} is no {JSON} of this script") from error
        cards = findings.about.get("gpu", about.get("gpu")), about.get("gpu")
        if cards[0] != cards[1]:
            raise InputError(f"{file} is of {cards[1]}, the ones before of {cards[0]}: expected one card")
        findings.about |= about
        for letter, entry in sections.items():
            if entry["rows"] or letter not in findings.sections:
                findings.sections[letter] = entry
    findings.sections = {s.letter: findings.sections[s.letter] for s in SECTIONS if s.letter in findings.sections}
    findings.write()


def run(arguments: argparse.Namespace) -> bool:
    """Run what was asked for; whether all of it was done."""
    if arguments.merge:
        merge(arguments.merge, arguments.out)
        return True
    about = {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "minutes": arguments.minutes, **git_state()}
    about |= {"rehearsal": arguments.rehearse, "driver": driver()}
    findings = Findings(about, {}, arguments.out)

    def cut(number: int, frame: FrameType | None) -> None:
        for one in ENDING:
            signal.signal(one, signal.SIG_IGN)  # what has begun to end is not to be interrupted
        raise Cut

    for number in ENDING:
        signal.signal(number, cut)
    work = Path(tempfile.mkdtemp(prefix="hdmnet-gpu-"))
    try:
        Runner(findings, work, arguments.rehearse, COMMAND).run(arguments.sections, 60 * arguments.minutes)
    except Cut:
        print(f"{NAME}: cut off; what was found until now is in {arguments.out}", file=sys.stderr)
        return False
    finally:
        findings.write()
        shutil.rmtree(work, ignore_errors=True)
    print((arguments.out / MARKDOWN).read_text(encoding="utf-8"))
    return all(entry["status"] == "done" for entry in findings.sections.values())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""

    def body() -> bool:
        arguments = parse(argv)
        if arguments.section is None:
            return run(arguments)
        ranks.end_with_parent()
        from gpu_sections import run_section  # seconds to import, and only sections need it

        run_section(
            arguments.section, Path(arguments.spool), Path(arguments.work), float(arguments.limit), arguments.rehearse
        )
        return True

    return run_main(body, NAME)


if __name__ == "__main__":
    sys.exit(main())
