"""Speed and memory, each beside a baseline measured in the same run.

    python scripts/benchmarks/benchmark.py                                # everything that can run here
    python scripts/benchmarks/benchmark.py matching model --repeats 9 --json out.json --markdown out.md
    python scripts/benchmarks/benchmark.py model --sides 473,633 --precision fp32,bf16 --dense

Sections: `matching`, `model`, `growth` and `trunk` need only torch and torchvision; `data`, `catalog` and `predict` the
whole package; `startup` what `python -m hdmnet.train` needs. Times are medians of wall time, the contestants in turns.
Peak memory is measured in a process for each figure, as the growth of the resident memory's peak (small blocks are
mapped apart there, so that freed memory does not count). Close other programs first. All of it is for a CPU; `gpu.sh`
measures on a GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

# `hdmnet` from a checkout that is not installed, and the modules beside this one where it is imported by tests.
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [
    str(folder)
    for folder in (ROOT, ROOT / "scripts" / "benchmarks", ROOT / "scripts" / "data")
    if str(folder) not in sys.path
]

import torch  # noqa: E402
from benchmark_growth import BASE_SHOTS, CASES, SHOTS, SIDES, run_growth  # noqa: E402
from benchmark_measure import Context, Progress, Row, machine, measure_call  # noqa: E402
from benchmark_model import Spec, build_case, run_matching, run_model, run_trunk  # noqa: E402

NAME = "benchmark"
SECTIONS = ("matching", "model", "trunk", "growth", "data", "catalog", "startup", "predict")
# What a section needs beyond torch and torchvision.
NEEDS = {
    "data": ("cv2", "albumentations", "lightning", "PIL", "tqdm"),
    "catalog": ("cv2", "PIL", "tqdm"),
    "startup": ("lightning", "hydra"),
    "predict": ("cv2", "lightning", "hydra", "PIL"),
}


def section_runner(name: str) -> Callable[[Context], list[Row]]:
    """The function that runs a section; what it needs is imported only now."""
    if name == "predict":
        import benchmark_predict

        return benchmark_predict.run_predict
    if name in NEEDS:
        import benchmark_data

        return {
            "data": benchmark_data.run_data,
            "catalog": benchmark_data.run_catalog,
            "startup": benchmark_data.run_startup,
        }[name]
    return {"matching": run_matching, "model": run_model, "trunk": run_trunk, "growth": run_growth}[name]


def missing_modules(name: str) -> list[str]:
    """Modules that a section needs and that are not installed."""
    return [module for module in NEEDS.get(name, ()) if importlib.util.find_spec(module) is None]


def run_sections(names: Sequence[str], context: Context) -> dict[str, list[Row]]:
    """Run sections one after the other; one that cannot run here is named on stderr and left out."""
    found: dict[str, list[Row]] = {}
    for name in names:
        missing = missing_modules(name)
        if missing:
            print(f"{NAME}: section {name} is left out, {', '.join(missing)} not installed", file=sys.stderr)
            continue
        found[name] = section_runner(name)(context)
    return found


def count_steps(names: Sequence[str], context: Context) -> int:
    """Steps that the progress line will count."""
    series = 3 if context.quick else len(SHOTS) + len(SIDES) - (BASE_SHOTS in SHOTS)
    sides = 1 if context.quick else len(context.sides)
    steps = {
        "matching": 2,
        "model": 2 * sides * len(context.shots) * len(context.precisions),
        "trunk": 1,
        "growth": series * len(CASES),
        "data": 3,
        "catalog": 3,
        "startup": 1,
        "predict": 1 if context.quick else 2,
    }
    return sum(steps[name] for name in names)


def format_value(row: Row) -> str:
    """A figure to three or four digits, with its unit."""
    small = row.value != 0 and abs(row.value) < 1e-2
    number = f"{row.value:.1e}" if small else f"{row.value:.0f}" if abs(row.value) >= 1000 else f"{row.value:.3g}"
    return f"{number} {row.unit}".rstrip()


def markdown(found: dict[str, list[Row]], about: dict[str, Any]) -> str:
    """The figures as Markdown tables, one a section, with machine and settings above."""
    lines = [
        f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads; torch {about['torch']}, torchvision "
        f"{about['torchvision']}, Python {about['python']}; medians of {about['repeats']}.",
    ]
    for section, rows in found.items():
        lines += ["", f"## {section}", "", "| | measured | wanted |", "|---|---|---|"]
        lines += [f"| {row.label} | {format_value(row)} | {row.target} |" for row in rows]
    return "\n".join(lines) + "\n"


def table(found: dict[str, list[Row]], about: dict[str, Any]) -> str:
    """The figures in columns, for the terminal."""
    lines = [f"{key}: {value}" for key, value in about.items()]
    width = max((len(row.label) for rows in found.values() for row in rows), default=0)
    for section, rows in found.items():
        lines += ["", section]
        lines += [f"  {row.label:<{width}}  {format_value(row):>16}  {row.target}" for row in rows]
    return "\n".join(lines)


def as_json(found: dict[str, list[Row]], about: dict[str, Any], context: Context) -> dict[str, Any]:
    """Everything: machine and settings, the rows, a flat mapping of their values, single timings in seconds."""
    return {
        "machine": about,
        "figures": {section: {row.key: row.value for row in rows} for section, rows in found.items()},
        "rows": {section: [asdict(row) for row in rows] for section, rows in found.items()},
        "samples_s": context.samples,
    }


def path(text: str) -> Path:
    """A path of the command line, `~` replaced."""
    return Path(os.path.expanduser(text))


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=NAME, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--repeats", type=int, default=5, help="timings of each contestant (default: 5)")
    parser.add_argument("--threads", type=int, default=None, help="torch's threads (default: torch's choice)")
    parser.add_argument("--sides", default="473", help="model: sides of the input, e.g. 473,633 (default: 473)")
    parser.add_argument("--shots", default="1,5", help="model: shots (default: 1,5)")
    parser.add_argument("--precision", default="fp32", help="model: fp32, bf16 or both (default: fp32)")
    parser.add_argument("--dense", action="store_true", help="model: also time the dense form")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--json", type=path, default=None, help="write everything here")
    parser.add_argument("--markdown", type=path, default=None, help="write the tables here as Markdown")
    parser.add_argument("--plot", type=path, default=None, help="growth: write the plot here (default: beside --json)")
    parser.add_argument("--measure", default=None, help=argparse.SUPPRESS)  # the child of `peak_memory`
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> tuple[argparse.Namespace, Context]:
    """Read and check the command line; argparse's own error ends the program."""
    arguments = parser.parse_args(argv)
    names = arguments.sections = list(dict.fromkeys(arguments.sections)) or list(SECTIONS)
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        parser.error(f"section {unknown[0]!r} is unknown, expected {', '.join(SECTIONS)}")
    precisions = tuple(arguments.precision.split(","))
    if not set(precisions) <= {"fp32", "bf16"}:
        parser.error(f"--precision {arguments.precision}: expected fp32, bf16 or fp32,bf16")
    try:
        sides, shots = (tuple(int(text) for text in given.split(",")) for given in (arguments.sides, arguments.shots))
    except ValueError:
        parser.error(f"--sides {arguments.sides} --shots {arguments.shots}: expected numbers, e.g. 473,633 and 1,5")
    for name, numbers in (("repeats", (arguments.repeats,)), ("shots", shots)):
        if min(numbers) < 1:
            parser.error(f"--{name} {min(numbers)}: expected at least 1")
    if min(sides) < 33:
        parser.error(f"--sides {min(sides)}: expected at least 33")
    plot = arguments.plot or (arguments.json.with_suffix(".png") if arguments.json else None)
    context = Context(
        repeats=arguments.repeats,
        quick=arguments.quick,
        sides=sides,
        shots=shots,
        precisions=precisions,
        dense=arguments.dense,
        plot=plot,
    )
    context.progress = Progress(count_steps(names, context))
    return arguments, context


def measure_spec(text: str) -> None:
    """Build a case, call it once small to load the libraries, then measure its memory; prints JSON."""
    spec = Spec(**json.loads(text))
    build_case(spec.small())()
    print(json.dumps(asdict(measure_call(build_case(spec), spec.device))))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark.

    Args:
        argv: Command line without the program's name; None = the process's own.

    Returns:
        Exit code.
    """
    arguments, context = parse(make_parser(), argv)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    if arguments.measure is not None:
        measure_spec(arguments.measure)
        return 0
    start = time.time()
    about = machine() | {"repeats": context.repeats, "quick": context.quick}
    found = run_sections(arguments.sections, context)
    about |= {"seconds": round(time.time() - start)}
    print(table(found, about))
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(as_json(found, about, context), indent=1) + "\n", encoding="utf-8")
    if arguments.markdown is not None:
        arguments.markdown.parent.mkdir(parents=True, exist_ok=True)
        arguments.markdown.write_text(markdown(found, about), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
