"""Section `growth`: time and memory over the shots and the picture's size, with straight lines and a plot.

Only torch and torchvision are needed; matplotlib, if it is there, for the plot.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from benchmark_measure import Context, Line, Row, fit_line, interleave
from benchmark_model import Spec, build_case, case_memory, model_spec

SHOTS, SIDES = (1, 2, 5, 10), (473, 633, 801)
QUICK_SHOTS, QUICK_SIDES = (1, 2), (65, 97)
BASE_SHOTS = 5  # of the series over sides
CASES = {
    "meta_evaluate": "evaluation without the trunk",
    "meta_train": "training step without the trunk",
    "evaluate": "whole evaluation",
}


@dataclass(frozen=True)
class Point:
    """One measurement.

    Attributes:
        seconds: Median time of the call.
        extra: Extra memory in 10^6 bytes.
    """

    seconds: float
    extra: float


def run_growth(context: Context) -> list[Row]:
    """Measure every case over K at the smallest side, and over the sides; fit lines; draw."""
    shots, sides = (QUICK_SHOTS, QUICK_SIDES) if context.quick else (SHOTS, SIDES)
    base_shots = shots[-1] if context.quick else BASE_SHOTS
    grid = sorted({(k, sides[0]) for k in shots} | {(base_shots, side) for side in sides})
    points: dict[str, dict[tuple[int, int], Point]] = {case: {} for case in CASES}
    for case, title in CASES.items():
        for k, side in grid:
            context.progress.step(f"growth: {title}, {k}-shot at {side}²")
            spec = replace(model_spec(context, case, side=side, shots=k), side=side)
            points[case][k, side] = measure(context, spec)
    rows = []
    lines: dict[str, tuple[Line, Line]] = {}
    for case, title in CASES.items():
        for (k, side), point in points[case].items():
            where = f"{title}, {k}-shot {side}²"
            rows.append(Row(f"{case}/{k}shot_{side}/time_s", f"{where}: time", point.seconds, "s"))
            rows.append(Row(f"{case}/{k}shot_{side}/memory_mb", f"{where}: extra memory", point.extra, "MB"))
        over_shots = fit_line(shots, [points[case][k, sides[0]].extra for k in shots])
        positions = [_positions(side) for side in sides]
        over_positions = fit_line(positions, [points[case][base_shots, side].extra for side in sides])
        lines[case] = (over_shots, over_positions)
        for name, unit, line in (("shots", "MB a shot", over_shots), ("positions", "MB a position", over_positions)):
            rows.append(Row(f"{case}/{name}_slope_mb", f"{title}: memory over {name}, slope", line.slope, unit))
            rows.append(Row(f"{case}/{name}_intercept_mb", f"{title}: memory at no {name}", line.intercept, "MB"))
            rows.append(Row(f"{case}/{name}_r2", f"{title}: memory over {name}, R² of a line", line.r2, "", "≥ 0.99"))
    if context.plot is not None:
        draw(points, lines, sides, shots, base_shots, context.plot)
    return rows


def measure(context: Context, spec: Spec) -> Point:
    """Memory in a process of its own, then time."""
    memory = case_memory(context, spec)
    name = f"growth/{spec.case}/{spec.shots}shot_{spec.side}"
    times = interleave(context, {"ours": build_case(spec)}, name=name)
    return Point(times["ours"], memory.extra)


def _positions(side: int) -> int:
    """Feature positions at stride 8."""
    return (-(-side // 8)) ** 2


def draw(
    points: dict[str, dict[tuple[int, int], Point]],
    lines: dict[str, tuple[Line, Line]],
    sides: tuple[int, ...],
    shots: tuple[int, ...],
    base_shots: int,
    path: Path,
) -> None:
    """Plot memory and time over shots and positions, with the fitted lines of the memory; says so if it cannot."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        print("growth: no plot, as matplotlib is not installed", file=sys.stderr)
        return
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), constrained_layout=True)
    colours = ("#0072b2", "#d55e00", "#009e73")  # told apart by colour-blind readers too
    for colour, marker, (case, title) in zip(colours, "osD", CASES.items(), strict=True):
        series = (
            (list(shots), [points[case][k, sides[0]] for k in shots]),
            ([_positions(side) for side in sides], [points[case][base_shots, side] for side in sides]),
        )
        for column, (x, found) in enumerate(series):
            memory, seconds = axes[0, column], axes[1, column]
            line = lines[case][column]
            memory.plot(x, [p.extra for p in found], marker, color=colour, label=title)
            ends = [0, max(x)]
            memory.plot(ends, [line.intercept + line.slope * e for e in ends], "-", color=colour, alpha=0.6)
            seconds.plot(x, [p.seconds for p in found], marker + "-", color=colour, label=title)
    for column, label in enumerate((f"shots K, at {sides[0]}²", f"positions of the feature map, K = {base_shots}")):
        axes[0, column].set(xlabel=label, ylabel="extra memory (MB), lines: least squares", ylim=(0, None))
        axes[1, column].set(xlabel=label, ylabel="time (s)", ylim=(0, None), xlim=(0, None))
    axes[0, 0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
