"""Gives mutated files and command lines to the readers and entry points, and counts how they take it.

    python scripts/robustness/fuzz.py --minutes 30 --output fuzz [--seed 0] [--kinds png jpeg ...]
    python scripts/robustness/fuzz.py --replay fuzz/png-123.png --kinds png

Every input is read in a child process under a time and a memory limit. It ends as one of:

    accepted   read, or built anew
    refused    one line that names what is wrong
    crash      any other error, a dead child, no memory left; or accepted, but not as an independent reader reads it
    hang       no answer in time
    executed   something in it ran: a command, a connection, a file outside the scratch folder

What is none of the first two is kept in the output folder, with its traceback; the exit code is then 1. An input is a
function of the seed, its kind and its number.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [
    str(folder)
    for folder in (ROOT, ROOT / "scripts" / "robustness", ROOT / "scripts" / "data")
    if str(folder) not in sys.path
]

from fuzz_mutations import CANARY  # noqa: E402

from hdmnet.cli.parser import OneLineParser, run_main  # noqa: E402

NAME = "fuzz"
OUTCOMES = ("accepted", "refused", "crash", "hang", "executed")
SECONDS = 60.0  # an input
_GRACE = 10.0  # more, until a child that does not even hear its alarm is killed
_MEMORY = 4_000_000_000  # bytes of data of a child
# What no reader of a file may do; `open` is looked at apart.
_ACTIONS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "shutil.rmtree")


class _Alarm(BaseException):
    """An input takes too long."""


# ------------------------------------------------------------------------------------------------------------ the child


class _Watch:
    """An audit hook that notes what an input makes the process do; cannot be removed, so it can be switched off."""

    def __init__(self, scratch: Path) -> None:
        self.scratch, self.on = str(scratch), False
        self.seen: list[str] = []
        sys.addaudithook(self._look)

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "shutil.rmtree" and str(arguments[0]).startswith(f"{self.scratch}{os.sep}"):
            return  # a refused command leaves no folder
        if event in _ACTIONS:
            self.seen.append(f"{event} {arguments!r}"[:300])
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            path = os.path.abspath(os.fsdecode(arguments[0])) if isinstance(arguments[0], str | bytes) else ""
            if path and not path.startswith((self.scratch, "/dev/", "/proc/")):
                self.seen.append(f"open {path} to write")


def _serve(pipe: Connection, scratch: Path, seed: int) -> None:
    """Read inputs, one after another, until the pipe is closed."""
    # A child must be found hanging by the fuzzer, not by a person's Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["HYDRA_FULL_ERROR"], os.environ["WANDB_MODE"] = "1", "disabled"
    os.chdir(scratch)
    errors = (scratch / "stderr").open("wb", buffering=0)  # decoders of C write there directly
    os.dup2(errors.fileno(), 2)
    faulthandler.enable(errors)
    from fuzz_targets import all_kinds

    kinds = all_kinds(scratch)
    watch = _Watch(scratch)
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    signal.signal(signal.SIGALRM, _ring)
    pipe.send({name: kind.share for name, kind in kinds.items()})
    while True:
        try:
            name, number, given = pipe.recv()
        except EOFError:
            return
        kind = kinds[name]
        folder = scratch / "input"
        folder.mkdir(exist_ok=True)
        path = folder / kind.name
        rng = random.Random(f"{seed}/{name}/{number}")
        content = given if given is not None else kind.mutate(rng.choice(kind.seeds), rng)
        path.write_bytes(content)
        outcome, note = _judge(kind.read, path, watch)
        pipe.send((outcome, note, content if outcome not in OUTCOMES[:2] else None))


def _ring(*_: Any) -> None:
    raise _Alarm


def _judge(read: Any, path: Path, watch: _Watch) -> tuple[str, str]:
    """Read an input: its outcome, and the line or traceback of it."""
    from fuzz_targets import refusal

    watch.seen.clear()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    watch.on = True
    try:
        read(path)
        outcome, note = "accepted", ""
    except _Alarm:
        outcome, note = "hang", traceback.format_exc()
    except BaseException as error:  # SystemExit too: a reader must not end the process
        message = refusal(error)
        outcome, note = ("crash", traceback.format_exc()) if message is None else ("refused", message)
        if message is not None and "\n" in message:
            outcome, note = "crash", f"more than one line: {message!r}"
    finally:
        watch.on = False
        signal.setitimer(signal.ITIMER_REAL, 0)
    if watch.seen or any(Path(folder, CANARY).exists() for folder in (".", path.parent)):
        return "executed", "\n".join(watch.seen) or CANARY
    return outcome, note


# ----------------------------------------------------------------------------------------------------------- the parent


class Child:
    """A process that reads inputs; started again when it has died or hangs.

    Args:
        seed: Of all inputs.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._start()

    def _start(self) -> None:
        self.scratch = tempfile.TemporaryDirectory(prefix="hdmnet-fuzz-")
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, Path(self.scratch.name).resolve(), self._seed), daemon=True
        )
        self._process.start()
        theirs.close()
        self.shares: dict[str, int] = self._pipe.recv()

    def stop(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(5)
        self._process.kill()
        self._process.join()
        self.scratch.cleanup()

    def read(self, name: str, number: int, given: bytes | None = None) -> tuple[str, str, bytes | None]:
        """Have an input read.

        Args:
            name: Its kind.
            number: Which of them.
            given: An input as it is, in place of a mutated one.

        Returns:
            Outcome, note, and the input where the outcome is a bad one.
        """
        self._pipe.send((name, number, given))
        outcome = "hang"
        try:
            if self._pipe.poll(SECONDS + _GRACE):
                answer: tuple[str, str, bytes | None] = self._pipe.recv()
                return answer
        except (EOFError, ConnectionResetError):
            outcome = "crash"
        self._process.kill()
        self._process.join()
        inputs = list((Path(self.scratch.name) / "input").glob("*.*"))
        latest = max(inputs, key=lambda path: path.stat().st_mtime).read_bytes() if inputs else None
        trace = (Path(self.scratch.name) / "stderr").read_text(encoding="utf-8", errors="replace")[-2000:]
        note = f"the child ended with {self._process.exitcode}" if outcome == "crash" else "no answer"
        self.stop()
        self._start()
        return outcome, f"{trace}\n{note}", latest


def numbers(shares: dict[str, int], kinds: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Kinds and numbers of the inputs, round after round."""
    counts: Counter[str] = Counter()
    while True:
        for name in kinds:
            for _ in range(shares[name]):
                yield name, counts[name]
                counts[name] += 1


def fuzz(minutes: float, output: Path, *, seed: int, kinds: Sequence[str] | None) -> dict[str, Counter[str]]:
    """Try inputs until the time is up.

    Args:
        minutes: How long.
        output: Folder for the inputs that did harm, and for `counts.json`.
        seed: Of all inputs.
        kinds: Only these; None: all.

    Returns:
        Number of inputs by kind and outcome.

    Raises:
        ValueError: There is no such kind.
    """
    output.mkdir(parents=True, exist_ok=True)
    child = Child(seed)
    unknown = set(kinds or ()) - set(child.shares)
    if unknown:
        child.stop()
        raise ValueError(f"kind {sorted(unknown)[0]!r} is unknown: expected some of {', '.join(child.shares)}")
    chosen = list(child.shares) if kinds is None else list(kinds)
    counts: dict[str, Counter[str]] = {name: Counter() for name in chosen}
    began = told = time.monotonic()
    try:
        for name, number in numbers(child.shares, chosen):
            outcome, note, content = child.read(name, number)
            counts[name][outcome] += 1
            if outcome not in OUTCOMES[:2]:
                stem = f"{name.replace(' ', '_')}-{number}"
                (output / f"{stem}.bin").write_bytes(content or b"")
                (output / f"{stem}.txt").write_text(f"seed {seed}\n{outcome}\n{note}\n", encoding="utf-8")
                print(f"{outcome}: {stem}: {note.strip().splitlines()[-1] if note.strip() else ''}", flush=True)
            if time.monotonic() - told > 60:
                told = time.monotonic()
                print(f"{(told - began) / 60:.0f} min: {sum(map(Counter.total, counts.values())):,} inputs", flush=True)
            if time.monotonic() - began > 60 * minutes:
                break
    finally:
        child.stop()
    plain = {name: dict(count) for name, count in counts.items()}
    (output / "counts.json").write_text(json.dumps({"seed": seed, "minutes": minutes, "counts": plain}, indent=1))
    return counts


def table(counts: dict[str, Counter[str]]) -> str:
    """The counts as a table."""
    rows: list[tuple[str, ...]] = [("kind", "inputs", *OUTCOMES)]
    for name, count in [*counts.items(), ("all", sum(counts.values(), Counter[str]()))]:
        rows.append((name, *(f"{number:,}" for number in (count.total(), *(count[one] for one in OUTCOMES)))))
    width = max(len(row[0]) for row in rows)
    return "\n".join(row[0].ljust(width) + "".join(cell.rjust(10) for cell in row[1:]) for row in rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script.

    Args:
        argv: Command line without the program's name; None = the process's own.

    Returns:
        Exit code: 1 if an input did harm.
    """
    parser = OneLineParser(prog=NAME, description="Give mutated inputs to the readers and entry points.")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long (default 1)")
    parser.add_argument("--output", type=Path, default=Path("fuzz"), help="folder for inputs that did harm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", help="only these kinds of input")
    parser.add_argument("--replay", type=Path, help="read this one input again, of the one kind that --kinds names")

    def body() -> bool:
        arguments: argparse.Namespace = parser.parse_args(argv)
        if arguments.replay is not None:
            if len(arguments.kinds or ()) != 1:
                raise ValueError("--replay wants --kinds with the one kind of its input")
            child = Child(arguments.seed)
            outcome, note, _ = child.read(arguments.kinds[0], 0, arguments.replay.read_bytes())
            child.stop()
            print(f"{outcome}\n{note}")
            return outcome in OUTCOMES[:2]
        counts = fuzz(arguments.minutes, arguments.output, seed=arguments.seed, kinds=arguments.kinds)
        print(table(counts))
        return not any(count[outcome] for count in counts.values() for outcome in OUTCOMES[2:])

    return run_main(body, NAME)


if __name__ == "__main__":
    raise SystemExit(main())
