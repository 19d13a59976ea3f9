"""Training step and evaluation of HDMNet on a CPU, of two checkouts of this repository in turn.

    python scripts/benchmarks/compare_trees.py OLD NEW --repeats 7 --cases resnet50:129:1 mobilenet_v2:129:1

Each checkout is a process of its own, with the code and the `benchmark_model.py` of that checkout; they call the same
case one after the other, so that a busy machine slows both. What is compared is the time of the processor, in medians:
of wall time a machine with other work says little. A case is BACKBONE:SIDE:SHOTS, float32, batch 4, random weights.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)] if str(ROOT) not in sys.path else []

from hdmnet.cli.parser import OneLineParser, run_main  # noqa: E402
from hdmnet.runtime.errors import InputError  # noqa: E402

NAME = "compare_trees"
BATCH = 4
# Builds the case of a line "KIND BACKBONE SIDE SHOTS BATCH THREADS"; calls it for an empty one and says its seconds.
CHILD = """
import sys, time, torch
from benchmark_model import Spec, build_case
for line in sys.stdin:
    if line.strip():
        kind, name, side, shots, batch, threads = line.split()
        torch.set_num_threads(int(threads))
        call = build_case(Spec(kind, side=int(side), shots=int(shots), batch=int(batch), backbone=name))
        call(), call()  # weights are folded, optimiser states made
        print("built", flush=True)
    else:
        start = time.process_time()
        call()
        print(time.process_time() - start, flush=True)
"""


class Tree:
    """A process that runs the code of one checkout.

    Args:
        root: The checkout.

    Raises:
        InputError: It has no benchmark of the network.
    """

    def __init__(self, root: Path) -> None:
        self.root, scripts = root, root / "scripts" / "benchmarks"
        if not (scripts / "benchmark_model.py").is_file():
            raise InputError(
                f"{root} has no scripts/benchmarks/benchmark_model.py; expected a checkout of this repository"
            )
        environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(root), str(scripts)))}
        command = [sys.executable, "-c", CHILD]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root, env=environment
        )

    def ask(self, line: str) -> str:
        """Send a line; returns the answer.

        Raises:
            InputError: The process has ended.
        """
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(line + "\n")
            self._child.stdin.flush()
        answer = self._child.stdout.readline().strip()
        if not answer:
            raise InputError(f"the benchmark of {self.root} has failed; its error stands above")
        return answer

    def close(self) -> None:
        """End the process."""
        self._child.kill()
        with contextlib.suppress(BrokenPipeError):
            self._child.communicate()


def compare(trees: Sequence[Tree], line: str, repeats: int) -> list[float]:
    """Medians of the processor's seconds of one case, by checkout."""
    for tree in trees:
        tree.ask(line)
    times = [[float(tree.ask("")) for tree in trees] for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    parser = OneLineParser(prog=NAME, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="checkout that is the baseline")
    parser.add_argument("new", type=Path, help="checkout that is compared with it")
    parser.add_argument("--cases", nargs="+", default=["resnet50:129:1"], metavar="BACKBONE:SIDE:SHOTS")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)

    def body() -> bool:
        arguments = parser.parse_args(argv)
        cases = [case.split(":") for case in arguments.cases]
        wrong = [case for case in cases if len(case) != 3 or not (case[1] + case[2]).isdigit()]
        if wrong or arguments.repeats < 1 or arguments.threads < 1:
            parser.error("expected cases like resnet50:129:1, and repeats and threads of at least 1")
        trees: list[Tree] = []
        try:
            trees += [Tree(arguments.old.resolve())]
            trees += [Tree(arguments.new.resolve())]
            print("| case | old, s | new, s | new over old |\n|---|---|---|---|", flush=True)
            for name, side, shots in cases:
                for kind, title in (("train", "training step"), ("evaluate", "evaluation")):
                    line = f"{kind} {name} {side} {shots} {BATCH} {arguments.threads}"
                    old, new = compare(trees, line, arguments.repeats)
                    label = f"{name}, {side}², {shots}-shot, {title}"
                    print(f"| {label} | {old:.3f} | {new:.3f} | {new / old:.3f} |", flush=True)
        finally:
            for tree in trees:
                tree.close()
        return True

    return run_main(body, NAME)


if __name__ == "__main__":
    raise SystemExit(main())
