"""Ends runs in every way that clusters know, goes on with them, and compares what they leave with undisturbed runs.

    python scripts/robustness/faults.py --output DIR                      # the whole harness, an hour on two cores
    python scripts/robustness/faults.py --output DIR --only sigkill --kills 5     # one part of it

Runs are half a minute of the embedded data, both stages, with two loader workers. Leaves `faults.json`, `faults.md` and
every session's output in DIR; the exit code is 1 where anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from faults_runs import INTERRUPTED, SETTINGS, Runner, Session, differences, load, metric_rows
from faults_servers import hanging, refusing

from hdmnet.runtime.home import expand_home

DDP = ("trainer=ddp_cpu", "trainer.devices=2", "optim.batch_size=1")
WORKERS = 2


@dataclass
class Outcome:
    """What one part of the harness has shown.

    Attributes:
        part: Its name.
        faults: How many faults were made.
        runs: How many runs they were spread over.
        problems: What differed or went wrong; empty where all is well.
        figures: Measured on the way.
    """

    part: str
    faults: int = 0
    runs: int = 0
    problems: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass
class Reference:
    """An undisturbed run.

    Attributes:
        folder: Its folder.
        session: Its only session.
        start_cpu: Processor seconds until it began to work.
    """

    folder: Path
    session: Session
    start_cpu: float


class Harness:
    """The parts of the harness, by name in `parts`."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.output: Path = arguments.output
        self.random = random.Random(arguments.seed)
        self._references: dict[str, Reference] = {}
        self.parts: dict[str, Callable[[str], Outcome]] = {
            "sigkill": partial(self._chains, kind="single", number=arguments.kills, end=_sigkill),
            "sigterm": partial(self._chains, kind="single", number=arguments.terms, end=_sigterm),
            "ddp-sigkill": partial(self._chains, kind="ddp", number=arguments.kills, end=_sigkill),
            "ddp-sigterm": partial(self._chains, kind="ddp", number=arguments.terms, end=_sigterm),
            "mid-checkpoint": self._mid_checkpoint,
            "full-disk": self._full_disk,
            "full-disk-for-a-while": self._full_for_a_while,
            "wandb-hangs": partial(self._wandb, server=hanging),
            "wandb-refuses": partial(self._wandb, server=refusing),
        }

    def words(self, kind: str) -> tuple[str, ...]:
        """The command line of a kind of run, "single" or "ddp"."""
        return (*SETTINGS, f"num_workers={WORKERS}", *(DDP if kind == "ddp" else ()))

    def reference(self, kind: str) -> Reference:
        """The undisturbed run of a kind; made once, also over several calls of the script."""
        if kind not in self._references:
            runner = Runner(self.output / f"undisturbed-{kind}", self.words(kind))
            shutil.rmtree(runner.output, ignore_errors=True)
            seen: list[float] = []

            def watch(cpu: float, _: int) -> bool:
                if not seen and any(runner.output.glob("cache/base_learners/*.checkpoints")):
                    seen.append(cpu)
                return False

            session = runner.run(until=watch)
            if session.code:
                raise RuntimeError(f"the undisturbed run has failed, see {session.log}")
            self._references[kind] = Reference(runner.folder, session, seen[0])
            say(f"undisturbed {kind}: {session.seconds:.0f} s, {session.cpu_seconds:.0f} s of processor time")
        return self._references[kind]

    # ------------------------------------------------------------------------------------------- ended by a signal

    def _chains(self, part: str, *, kind: str, number: int, end: Callable[[random.Random, int], str]) -> Outcome:
        """End runs at random moments until there were as many faults as asked for, each run resumed to its end."""
        reference = self.reference(kind)
        outcome = Outcome(part, figures={"resumes": 0, "seconds_to_end": [], "how": {}})
        while outcome.faults < number:
            runner = Runner(self.output / f"{part}-{outcome.runs}", self.words(kind))
            shutil.rmtree(runner.output, ignore_errors=True)
            outcome.runs += 1
            while not runner.finished and outcome.faults < number:
                self._one_fault(outcome, runner, reference, number, end)
            if not runner.finished:
                _resume(runner, outcome)
            outcome.problems += [f"run {outcome.runs - 1}: {what}" for what in _compare(reference, runner)]
        seconds = outcome.figures["seconds_to_end"]
        outcome.figures["seconds_to_end"] = {"median": statistics.median(seconds), "most": max(seconds)}
        return outcome

    def _one_fault(
        self, outcome: Outcome, runner: Runner, reference: Reference, number: int, end: Callable[..., str]
    ) -> None:
        """Let a run go on until a moment drawn at random, in processor time: every fourth lies in its start."""
        work = reference.session.cpu_seconds - reference.start_cpu
        if self.random.random() < 0.25:
            moment = self.random.uniform(0, reference.start_cpu)
        else:  # short enough that one run sees many of them
            moment = reference.start_cpu + self.random.uniform(0, min(1.0, 3 / number) * work)
        how: list[str] = []

        def until(cpu: float, pid: int) -> bool:
            if cpu < moment:
                return False
            how.append(end(self.random, pid))
            return True

        session = runner.run("resume=auto", until=until)
        outcome.figures["resumes"] += int("resume: from step" in session.text or "going on from" in session.text)
        if not how:  # it has finished before
            if session.code:
                outcome.problems.append(f"exit code {session.code}, see {session.log}")
            return
        outcome.faults += 1
        outcome.figures["how"][how[0]] = outcome.figures["how"].get(how[0], 0) + 1
        outcome.figures["seconds_to_end"].append(session.to_end)
        say(f"{outcome.part}: {outcome.faults} of {number}, {how[0]} after {moment:.1f} s: exit code {session.code}")
        # Before its handler is there, a run ends by SIGTERM as any process does.
        expected = (-signal.SIGKILL,) if end is _sigkill else (INTERRUPTED, -signal.SIGTERM)
        if session.code not in (*expected, 0):
            outcome.problems.append(f"exit code {session.code} after {how[0]}, see {session.log}")

    def _mid_checkpoint(self, part: str) -> Outcome:
        """Kill a run while it writes a checkpoint: as soon as the temporary file is there."""
        reference, outcome = self.reference("single"), Outcome(part, figures={"attempts": 0})
        runner = Runner(self.output / part, self.words("single"))
        shutil.rmtree(runner.output, ignore_errors=True)
        outcome.runs = 1
        while outcome.faults < self.arguments.mid_checkpoint and not runner.finished:
            before = reference.start_cpu + self.random.uniform(0, 5)

            def until(cpu: float, pid: int, before: float = before) -> bool:
                if cpu < before:
                    return False
                folders = _checkpoint_folders(runner)
                end = time.monotonic() + 0.05  # watched closely: the file is there for milliseconds
                while time.monotonic() < end:
                    if _half_written(folders):
                        os.killpg(pid, signal.SIGKILL)
                        return True
                return False

            session = runner.run("resume=auto", until=until)
            outcome.figures["attempts"] += 1
            left = _half_written(_checkpoint_folders(runner))
            outcome.faults += bool(left)
            say(f"{part}: {outcome.faults} of {self.arguments.mid_checkpoint}, exit code {session.code}, left {left}")
        if not runner.finished:
            _resume(runner, outcome)
        if _half_written(_checkpoint_folders(runner)):
            outcome.problems.append("a half-written file was not removed")
        outcome.problems += _compare(reference, runner)
        return outcome

    # ----------------------------------------------------------------------------------------------- no room, no net

    def _full_disk(self, part: str) -> Outcome:
        """Train with a checkpoint folder too small for a single checkpoint, on a file system of its own if possible."""
        outcome = Outcome(part, faults=1, runs=1)
        folder = self.output / part
        shutil.rmtree(folder, ignore_errors=True)
        run_dir = folder / "shapes" / "resnet" / "run"
        (run_dir / "checkpoints").mkdir(parents=True)
        mount = f'mount -t tmpfs -o size=1m tmpfs "{run_dir / "checkpoints"}" && exec "$@"'
        prefix = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["-r"]), "sh", "-c", mount, "sh"]
        if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
            outcome.figures["by"] = "limit of the file size"
            prefix = ["sh", "-c", 'ulimit -f 2048; exec "$@"', "sh"]  # blocks of 512 bytes
        else:
            outcome.figures["by"] = "file system of 1 MiB"
        runner = Runner(folder, (*self.words("single"), f"hydra.run.dir={run_dir}"), prefix=prefix)
        session = runner.run()
        _check_failures(outcome, runner, session)
        if runner.finished:
            _check_unselected(outcome, self.reference("single"), runner)
        return outcome

    def _full_for_a_while(self, part: str) -> Outcome:
        """Let a run meet a disk that is full for a third of its time; then it is killed, and resumed."""
        reference, outcome = self.reference("single"), Outcome(part, faults=1, runs=1)
        runner = Runner(self.output / part, self.words("single"))
        shutil.rmtree(runner.output, ignore_errors=True)
        work = reference.session.cpu_seconds - reference.start_cpu
        full, free, dead = (reference.start_cpu + share * work for share in (0.4, 0.7, 0.75))
        states = [resource.RLIM_INFINITY]

        def until(cpu: float, pid: int) -> bool:
            wanted = 100_000 if full <= cpu < free else resource.RLIM_INFINITY
            if wanted != states[-1]:
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (wanted, resource.RLIM_INFINITY))
                states.append(wanted)
            if cpu >= dead:
                os.killpg(pid, signal.SIGKILL)
            return cpu >= dead

        runner.run("resume=auto", until=until)
        warnings = runner.sessions[0].text.count("CHECKPOINT NOT WRITTEN")
        if not warnings:
            outcome.problems.append("nothing was said about checkpoints that could not be written")
        outcome.figures |= {"warnings": warnings}
        _resume(runner, outcome)
        outcome.problems += _compare(reference, runner)
        return outcome

    def _wandb(self, part: str, *, server: Any) -> Outcome:
        """Log to a server that does not do its part."""
        reference, outcome = self.reference("single"), Outcome(part, faults=1, runs=1)
        with server() as url:
            environment = {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40, "WANDB_MODE": "online"}
            runner = Runner(self.output / part, (*self.words("single"), "logger=wandb"), environment)
            shutil.rmtree(runner.output, ignore_errors=True)
            session = runner.run()
        if session.code:
            outcome.problems.append(f"exit code {session.code}, see {session.log}")
        else:
            outcome.problems += _compare(reference, runner)
        if "wandb: no run in mode online" not in session.text:
            outcome.problems.append("nothing was said about the server")
        outcome.figures["seconds"] = round(session.seconds, 1)
        outcome.figures["seconds_undisturbed"] = round(reference.session.seconds, 1)
        return outcome


def _sigkill(draw: random.Random, pid: int) -> str:
    """Kill all processes of a run at once, or the first alone: then the others have to end by themselves."""
    if draw.random() < 0.5:
        os.killpg(pid, signal.SIGKILL)
        return "SIGKILL to all"
    os.kill(pid, signal.SIGKILL)
    return "SIGKILL to the first"


def _sigterm(draw: random.Random, pid: int) -> str:
    """As SLURM does, to all processes, or as a container's end does, to the first alone."""
    if draw.random() < 0.5:
        os.killpg(pid, signal.SIGTERM)
        return "SIGTERM to all"
    os.kill(pid, signal.SIGTERM)
    return "SIGTERM to the first"


def _resume(runner: Runner, outcome: Outcome) -> None:
    session = runner.run("resume=auto")
    outcome.figures["resumes"] = outcome.figures.get("resumes", 0) + 1
    if session.code:
        outcome.problems.append(f"exit code {session.code} of the last resume, see {session.log}")


def _compare(reference: Reference, runner: Runner) -> list[str]:
    try:
        return differences(reference.folder, runner.folder)
    except (RuntimeError, OSError, ValueError) as error:
        return [f"not comparable: {error}"]


def _checkpoint_folders(runner: Runner) -> list[Path]:
    patterns = ("shapes/*/*/checkpoints", "cache/base_learners/*.checkpoints")
    return [folder for pattern in patterns for folder in runner.output.glob(pattern)]


def _half_written(folders: Sequence[Path]) -> list[str]:
    found = []
    for folder in folders:
        with contextlib.suppress(OSError):  # removed at the end of stage 1
            found += [name for name in os.listdir(folder) if name.endswith(".tmp")]
    return found


def _check_failures(outcome: Outcome, runner: Runner, session: Session) -> None:
    """The run must have finished, and have said and counted what it could not write."""
    warnings = session.text.count("CHECKPOINT NOT WRITTEN")
    outcome.figures["warnings"] = warnings
    if session.code or not runner.finished:
        outcome.problems.append(f"exit code {session.code}, see {session.log}")
        return
    result = json.loads((runner.folder / "result.json").read_text(encoding="utf-8"))
    outcome.figures["checkpoint_failures"] = result["checkpoint_failures"]
    if not warnings or not result["checkpoint_failures"]:
        outcome.problems.append("the failures were not said or not counted")


def _check_unselected(outcome: Outcome, reference: Reference, runner: Runner) -> None:
    """Without a checkpoint the last weights are tested; what was logged is that of the undisturbed run."""
    if metric_rows(reference.folder) != metric_rows(runner.folder):
        outcome.problems.append("metrics.csv differs")
    result = json.loads((runner.folder / "result.json").read_text(encoding="utf-8"))
    if result["checkpoint"] is not None:
        outcome.problems.append(f"the result names a checkpoint: {result['checkpoint']}")


# ------------------------------------------------------------------------------------------------------ command line


def say(text: str) -> None:
    """Progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def write(outcomes: Sequence[Outcome], references: dict[str, Reference], output: Path, seed: int) -> str:
    """Write `faults.json` and `faults.md`; returns the table."""
    content = {
        "seed": seed,
        "undisturbed": {
            kind: {
                "seconds": round(one.session.seconds, 1),
                "cpu_seconds": round(one.session.cpu_seconds, 1),
                "steps": load(one.folder / "checkpoints" / "last.ckpt")["global_step"],
            }
            for kind, one in references.items()
        },
        "parts": [asdict(outcome) for outcome in outcomes],
    }
    (output / "faults.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    rows = ["| part | faults | runs | differences | figures |", "|---|---|---|---|---|"]
    for one in outcomes:
        problems = "none" if not one.problems else "; ".join(one.problems)
        figures = ", ".join(f"{key} {value}" for key, value in one.figures.items())
        rows.append(f"| {one.part} | {one.faults} | {one.runs} | {problems} | {figures} |")
    (output / "faults.md").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return "\n".join(rows)


def main(words: Sequence[str] | None = None) -> int:
    """Run the harness; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=expand_home, required=True, help="folder for all runs and the report")
    parser.add_argument("--only", action="append", default=[], help="name of a part; may be given several times")
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs, with one process and with two")
    parser.add_argument("--terms", type=int, default=5, help="SIGTERMs, with one process and with two")
    parser.add_argument("--mid-checkpoint", type=int, default=3, help="SIGKILLs while a checkpoint is written")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args(words)
    arguments.output = arguments.output.absolute()
    harness = Harness(arguments)
    unknown = set(arguments.only) - harness.parts.keys()
    if unknown:
        parser.error(f"--only {', '.join(sorted(unknown))}: expected {', '.join(harness.parts)}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for part in arguments.only or harness.parts:
        begin = time.monotonic()
        outcomes.append(harness.parts[part](part))
        outcomes[-1].figures["minutes"] = round((time.monotonic() - begin) / 60, 1)
        table = write(outcomes, harness._references, arguments.output, arguments.seed)
        say(f"{part}: {outcomes[-1].problems or 'no difference'}")
    print(table)
    return int(any(outcome.problems for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
