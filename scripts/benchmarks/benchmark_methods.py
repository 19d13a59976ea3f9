"""What a method costs as its release has it: processor seconds and peak memory, beside a plain form in the same run.

    python scripts/benchmarks/benchmark_methods.py                                # every method that has a plain form
    python scripts/benchmarks/benchmark_methods.py hsnet --backbone vgg16_plain --cases train eval1 --repeats 5

The plain form writes the paper down step by step with the same weights: trunk unfolded, everything dense, the query
encoded anew for every support where its release does so; see `benchmark_plain.py`. Of HDMNet: `benchmark.py`. Cases:
`train` (a step of one episode, one support, with the method's own loss), `eval1` and `eval5`. Weights are random. Times
are medians of processor time, the two forms in turns; memory is the growth of the peak of the resident memory over one
call, in a process of its own, beyond weights and libraries.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(folder) for folder in (ROOT, ROOT / "scripts" / "benchmarks") if str(folder) not in sys.path]

import torch  # noqa: E402
from benchmark_measure import MALLOC, machine, measure_call  # noqa: E402
from benchmark_plain import PLAIN, PlainForm  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from hdmnet.cli.parser import OneLineParser, run_main  # noqa: E402
from hdmnet.models.cyctr.loss import CyCTRLoss  # noqa: E402
from hdmnet.models.losses import SegmentationLoss  # noqa: E402
from hdmnet.models.panet.loss import PANetLoss  # noqa: E402
from hdmnet.models.ssp.loss import SSPLoss  # noqa: E402

LOSSES: dict[str, Callable[[], nn.Module]] = {  # of the others: cross entropy
    "cyctr": CyCTRLoss,
    "ssp": SSPLoss,
    "panet": PANetLoss,
    "bam": lambda: SegmentationLoss({"meta": 1.0}),
}
NAME = "benchmark_methods"
CASES = ("train", "eval1", "eval5")


def build(method: str, backbone: str) -> nn.Module:
    """A method of random weights."""
    torch.manual_seed(0)
    model: nn.Module = importlib.import_module(f"hdmnet.models.{method}.official").build_official("coco", backbone)
    return model


def prepare(method: str, backbone: str, form: str, case: str, side: int) -> Callable[[], Tensor]:
    """A case ready to be called, which gives logits or loss; form "ours" or "plain"."""
    model, shots = build(method, backbone).train(case == "train"), 5 if case == "eval5" else 1
    run: PlainForm = PLAIN[method](model) if form == "plain" else model
    query, supports = torch.randn(1, 3, side, side), torch.randn(1, shots, 3, side, side)
    masks = torch.zeros(1, shots, side, side)
    masks[..., side // 4 : side * 7 // 10, side // 4 : side * 7 // 10] = 1  # a fifth of the picture
    if case != "train":
        return torch.no_grad()(lambda: run(query, supports, masks).logits)
    loss = LOSSES.get(method, SegmentationLoss)()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        total: Tensor = loss(run(query, supports, masks), masks[:, 0].long())["loss"]
        total.backward()
        optimizer.step()
        return total.detach()

    return step


def memory_apart(words: Sequence[str]) -> float:
    """Peak memory of one call in 10^6 bytes, in a fresh process.

    Raises:
        RuntimeError: The process failed.
    """
    command = [sys.executable, __file__, *words, "--threads", str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | MALLOC, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring {' '.join(words)} failed: {done.stderr.strip().splitlines()[-1:]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def measure(method: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Both forms of every case of a method."""
    reader = importlib.import_module(f"hdmnet.models.{method}.official")
    side = arguments.side or reader.IMAGE_SIZES["coco"]
    backbone = arguments.backbone or reader.BACKBONES[0]
    rows = []
    for case in arguments.cases:
        calls = {form: prepare(method, backbone, form, case, side) for form in ("plain", "ours")}
        times: dict[str, list[float]] = {form: [] for form in calls}
        for turn in range(1 + arguments.repeats):  # the first is not counted
            print(f"{NAME}: {method} {case}, turn {turn} of {arguments.repeats}", file=sys.stderr, flush=True)
            for form, call in calls.items():
                start = time.process_time()
                call()
                times[form] += [time.process_time() - start] if turn else []
        del calls
        row: dict[str, Any] = {"method": method, "backbone": backbone, "side": side, "case": case}
        for form, seconds in times.items():
            words = [method, "--backbone", backbone, "--side", str(side), "--memory", form, "--cases", case]
            row[f"{form}_s"] = statistics.median(seconds)
            row[f"{form}_mb"] = memory_apart(words)
        rows.append(row)
    return rows


def table(rows: Sequence[dict[str, Any]], repeats: int) -> str:
    """The figures as Markdown."""
    about = machine()
    lines = [f"{about['cpu']}, {about['threads']} threads, torch {about['torch']}; medians of {repeats}.", ""]
    heads = ("method", "trunk", "case", "plain s", "ours s", "times as fast", "plain MB", "ours MB")
    lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        figures = [f"{row['plain_s']:.2f}", f"{row['ours_s']:.2f}", f"{row['plain_s'] / row['ours_s']:.2f}"]
        figures += [f"{row['plain_mb']:.0f}", f"{row['ours_mb']:.0f}"]
        lines.append(
            f"| {row['method']} | {row['backbone']} at {row['side']} | {row['case']} | {' | '.join(figures)} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script.

    Args:
        argv: Command line without the program's name; None = the process's own.

    Returns:
        Exit code.
    """
    parser = OneLineParser(prog=NAME, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"of {', '.join(PLAIN)} (default: all)")
    parser.add_argument("--backbone", help="one that the release has (default: its first)")
    parser.add_argument("--side", type=int, help="of the pictures in pixels (default: the release's)")
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES, help="(default: all)")
    parser.add_argument("--repeats", type=int, default=3, help="timings of each form (default: 3)")
    parser.add_argument("--threads", type=int, default=None, help="torch's threads (default: torch's choice)")
    parser.add_argument("--memory", choices=("ours", "plain"), help=argparse.SUPPRESS)  # the child of `memory_apart`

    def body() -> bool:
        arguments = parser.parse_args(argv)
        methods = arguments.methods or list(PLAIN)
        unknown = [method for method in methods if method not in PLAIN]
        if unknown:
            parser.error(f"method {unknown[0]!r} is unknown, expected {', '.join(PLAIN)}")
        if arguments.threads is not None:
            torch.set_num_threads(arguments.threads)
        if arguments.memory:
            call = prepare(methods[0], arguments.backbone, arguments.memory, arguments.cases[0], arguments.side)
            call()  # libraries are loaded
            print(json.dumps(measure_call(call, "cpu").extra))
            return True
        print(table([row for method in methods for row in measure(method, arguments)], arguments.repeats))
        return True

    return run_main(body, NAME)


if __name__ == "__main__":
    raise SystemExit(main())
