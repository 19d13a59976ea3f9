"""What each trunk of conf/backbone costs: parameters, multiply-adds, time and memory of one picture; a Markdown table.

    python scripts/benchmarks/benchmark_trunks.py                           # all of conf/backbone
    python scripts/benchmarks/benchmark_trunks.py resnet50 dinov2_vits14 --side 518 --repeats 9 --threads 1

Weights are random: they do not change what is computed. One multiplication with its addition counts as one. Times are
medians of processor time (of a GPU: of wall time), the trunks in turns; "plain" is the network as its library gives it,
without what `FrozenBackbone` does to it. Memory is the growth of the peak of the resident memory over one picture, in a
process of its own, beyond weights and libraries.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(folder) for folder in (ROOT, ROOT / "scripts" / "benchmarks") if str(folder) not in sys.path]

import torch  # noqa: E402
from benchmark_measure import MALLOC, machine, measure_call, synchronise  # noqa: E402
from hydra import compose, initialize_config_dir  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from hdmnet.cli.parser import OneLineParser, run_main  # noqa: E402
from hdmnet.config.paths import HYDRA_VERSION_BASE, conf_dir  # noqa: E402
from hdmnet.config.schemas import register_schemas  # noqa: E402
from hdmnet.models.backbones.base import Backbone, encode  # noqa: E402
from hdmnet.models.backbones.padding import PaddedFirst  # noqa: E402
from hdmnet.models.folding import fold_batch_norm  # noqa: E402
from hdmnet.run.build import build_backbone  # noqa: E402

NAME = "benchmark_trunks"
FIRST = "resnet50"  # what the others are compared with, where it is among them
_SETTINGS = ("default", "timm")  # files of conf/backbone that are no trunk of their own


def trunk_names() -> list[str]:
    """The trunks of conf/backbone, ResNet-50 first."""
    names = sorted(file.stem for file in (conf_dir() / "backbone").glob("*.yaml") if file.stem not in _SETTINGS)
    return sorted(names, key=lambda name: name != FIRST)


def build(name: str, device: str = "cpu", *, plain: bool = False) -> Backbone:
    """A trunk of random weights, in evaluation mode: as methods run it frozen, or as its library gives it (plain)."""
    register_schemas()
    with initialize_config_dir(config_dir=str(conf_dir()), version_base=HYDRA_VERSION_BASE):
        cfg = compose("train", overrides=[f"backbone={name}"])
    torch.manual_seed(0)
    backbone = build_backbone(cfg, weights=None).eval().requires_grad_(False)
    if plain:
        for module in backbone.modules():
            if type(module) is PaddedFirst:
                module.__class__ = torch.nn.Conv2d  # type: ignore[assignment]
        return backbone.to(device)
    fold_batch_norm(backbone)
    return backbone.to(device).to(memory_format=torch.channels_last)


def count(name: str, side: int) -> tuple[float, float, str]:
    """Millions of parameters, billions of multiply-adds for a picture of `side`², and the levels' channels/strides."""
    with torch.device("meta"), torch.no_grad():
        backbone = build(name, "meta")
        with FlopCounterMode(display=False) as counter:
            encode(backbone, torch.empty(1, 3, side, side))
    levels = ", ".join(f"{info.channels}/{info.stride}" for info in backbone.feature_info[-3:])
    return sum(p.numel() for p in backbone.parameters()) / 1e6, counter.get_total_flops() / 2e9, levels


def prepare(name: str, side: int, device: str, *, plain: bool = False) -> Callable[[], object]:
    """A trunk on a picture of noise, (1, 3, side, side), ready to be called."""
    backbone = build(name, device, plain=plain)
    images = torch.randn(1, 3, side, side, device=device)
    images = images if plain else images.to(memory_format=torch.channels_last)
    return torch.no_grad()(lambda: encode(backbone, images))


def memory(name: str, side: int, device: str) -> float:
    """Peak memory of one picture in 10^6 bytes, beyond weights and libraries; for a process of its own."""
    call = prepare(name, side, device)
    call()  # libraries are loaded
    return measure_call(call, device).extra


def memory_apart(name: str, side: int, device: str) -> float:
    """As `memory`, in a fresh process.

    Raises:
        RuntimeError: The process failed.
    """
    words = [name, "--side", str(side), "--device", device, "--threads", str(torch.get_num_threads()), "--memory"]
    command = [sys.executable, __file__, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | MALLOC, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring {name} failed: {done.stderr.strip().splitlines()[-1:]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def seconds_each(names: Sequence[str], side: int, device: str, repeats: int) -> dict[tuple[str, bool], float]:
    """Median seconds of each trunk, ours and plain (True), one after the other in turns."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    calls = {(name, plain): prepare(name, side, device, plain=plain) for name in names for plain in (False, True)}
    times: dict[tuple[str, bool], list[float]] = {key: [] for key in calls}
    for turn in range(1 + repeats):  # the first is not counted
        for key, call in calls.items():
            print(f"{NAME}: turn {turn} of {repeats}, {key[0]}", file=sys.stderr, flush=True)
            synchronise(device)
            start = clock()
            call()
            synchronise(device)
            times[key].append(clock() - start)
    return {key: statistics.median(values[1:]) for key, values in times.items()}


def make_table(arguments: argparse.Namespace) -> str:
    """The Markdown table and what it was measured on."""
    names, side, device = arguments.names or trunk_names(), arguments.side, arguments.device
    counted = {name: count(name, side) for name in names}
    seconds = seconds_each(names, side, device, arguments.repeats)
    about = machine()
    where = about["gpu"] if device == "cuda" else f"{about['cpu']}, {about['threads']} threads"
    heads = ["backbone", "channels/stride of the last three levels", "parameters", "multiply-adds", "time"]
    lines = [
        f"{where}, torch {about['torch']}; one picture of {side}x{side}, float32; medians of {arguments.repeats}.",
        "",
        f"| {' | '.join([*heads, f'beside {names[0]}', 'plain', 'memory'])} |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        millions, billions, levels = counted[name]
        megabytes = memory_apart(name, side, device)
        ours, plain = seconds[name, False], seconds[name, True]
        lines.append(
            f"| `{name}` | {levels} | {millions:.1f} M | {billions:.1f} G | {ours:.3f} s | "
            f"{ours / seconds[names[0], False]:.2f} | {plain:.3f} s | {megabytes:.0f} MB |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    parser = OneLineParser(prog=NAME, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="files of conf/backbone (default: all)")
    parser.add_argument("--side", type=int, default=473, help="of the picture, in pixels (default: 473)")
    parser.add_argument("--repeats", type=int, default=5, help="timings of each (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--memory", action="store_true", help="only the peak memory of NAME, in this process, as JSON")

    def body() -> bool:
        arguments = parser.parse_args(argv)
        known = trunk_names()
        for name in arguments.names:
            if name not in known:
                parser.error(f"{name}: no file of conf/backbone; expected some of {', '.join(known)}")
        torch.set_num_threads(arguments.threads)
        if arguments.memory:
            print(json.dumps(memory(arguments.names[0], arguments.side, arguments.device)))
        else:
            print(make_table(arguments))
        return True

    return run_main(body, NAME)


if __name__ == "__main__":
    sys.exit(main())
