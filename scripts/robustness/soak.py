"""Does a long run grow? Trains for many steps on tiny pictures and watches memory, open files and processes.

    python scripts/robustness/soak.py --out soak                      2,000 steps, 10 validations, 2 workers: 10 minutes
    python scripts/robustness/soak.py --steps 200 --evaluations 4 --out soak [key=value …]

Runs what `python -m hdmnet.train` runs, both stages and the test, with a line of `resources.csv` every 10 steps. After
the first quarter, in which caches and pools fill, nothing may grow: a line is fitted to the rest (the median of the
slopes between all pairs of points, which single peaks do not move). Writes `soak.json` and `soak.png`, prints a table;
the exit code is 1 where memory grows by more than --limit MB in 1,000 steps, or open files, threads or processes grow.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [path for path in (str(ROOT), str(Path(__file__).parent)) if path not in sys.path]

from resources import FILE  # noqa: E402

from hdmnet.cli.parser import OneLineParser, run_main  # noqa: E402
from hdmnet.runtime.atomic import replacing  # noqa: E402

NAME = "soak"
WARM_UP = 0.25  # share of the steps
QUANTITIES = {"memory_mb": "memory (MB)", "open_files": "open files", "threads": "threads", "processes": "processes"}
_BATCH, _EVERY = 2, 10
_SMALL = (
    *(
        "trainer=cpu",
        "dataset.image_size=65",
        "dataset.base_image_size=65",
        "dataset.num_train=64",
        "dataset.num_val=60",
    ),
    *("dataset.num_val_episodes=20", "dataset.num_test_episodes=20", "dataset.num_test_seeds=2"),
    *(
        "optim.base.max_steps=40",
        "optim.base.batch_size=4",
        "optim.base.num_val_samples=8",
        "optim.base.warmup_steps=0",
    ),
    *("callbacks.pictures.num_episodes=2", "callbacks.progress_bar.refresh_rate=0", f"optim.batch_size={_BATCH}"),
    "+callbacks.resources._target_=scripts.robustness.resources.ResourceLog",
    "+callbacks.resources.directory=${paths.run_dir}",
    f"+callbacks.resources.every_n_steps={_EVERY}",
)


@dataclass(frozen=True)
class Growth:
    """Of one quantity.

    Attributes:
        begin: Median of the first tenth after the warm-up.
        end: Median of the last tenth.
        highest: Of all that was seen, the warm-up too.
        slope: In 1,000 steps, after the warm-up.
    """

    begin: float
    end: float
    highest: float
    slope: float


Row = dict[str, float | str]


def read(path: Path) -> list[Row]:
    """Read a `resources.csv`: numbers, and the phase."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: v if k == "phase" else float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Median of the slopes between all pairs of (x, y) with unequal x (Theil-Sen); 0 for fewer than two points."""
    slopes = [(d - b) / (c - a) for (a, b), (c, d) in itertools.combinations(points, 2) if c != a]
    return median(slopes) if slopes else 0.0


def fit(rows: Sequence[Row]) -> dict[str, Growth]:
    """How the quantities grow over the training.

    Args:
        rows: From `read`.

    Returns:
        By name.

    Raises:
        ValueError: There are too few rows.
    """
    train = [row for row in rows if row["phase"] == "train"]
    steps = [float(row["step"]) for row in train]
    late = [row for row, step in zip(train, steps, strict=True) if step > WARM_UP * max(steps)]
    if len(late) < 4:
        raise ValueError(f"only {len(late)} measurements after the warm-up; expected at least 4: raise --steps")
    tenth = max(1, len(late) // 10)
    grown = {}
    for name in QUANTITIES:
        values = [float(row[name]) for row in late]
        grown[name] = Growth(
            begin=median(values[:tenth]),
            end=median(values[-tenth:]),
            highest=max(float(row[name]) for row in rows),
            slope=1000 * slope([(float(row["step"]), float(row[name])) for row in late]),
        )
    return grown


def grows(grown: dict[str, Growth], limit: float) -> list[str]:
    """Names of what grows: memory by its slope, of which the system gives and takes; the others by one already."""
    found = ["memory_mb"] if grown["memory_mb"].slope > limit else []
    return found + [name for name in QUANTITIES if name != "memory_mb" and grown[name].end > grown[name].begin]


def table(grown: dict[str, Growth], num_steps: int) -> str:
    """The figures as text."""
    lines = [f"{'after the warm-up':<18}{'begin':>10}{'end':>10}{'highest':>10}{'in 1,000 steps':>16}"]
    for name, one in grown.items():
        lines.append(f"{QUANTITIES[name]:<18}{one.begin:>10.1f}{one.end:>10.1f}{one.highest:>10.1f}{one.slope:>+16.2f}")
    return "\n".join([f"{num_steps} steps", *lines])


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the quantities over the steps, validations marked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 1, sharex=True, figsize=(8, 5), layout="constrained")
    train = [row for row in rows if row["phase"] == "train"]
    steps = [float(row["step"]) for row in train]
    axes[0].plot(steps, [float(row["memory_mb"]) for row in train], label="training")
    validations = [row for row in rows if row["phase"] == "validation"]
    marks = [float(row["step"]) for row in validations]
    axes[0].plot(marks, [float(row["memory_mb"]) for row in validations], "o", label="after a validation")
    axes[0].set(ylabel=QUANTITIES["memory_mb"], ylim=(0, None))
    for name in ("open_files", "threads", "processes"):
        axes[1].plot(steps, [float(row[name]) for row in train], label=QUANTITIES[name])
    axes[1].set(xlabel="step", ylim=(0, None))
    for one in axes:
        one.axvspan(0, WARM_UP * max(steps), color="0.93", label="warm-up")
        one.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    pyplot.close(figure)


def train(out: Path, *, steps: int, evaluations: int, workers: int, overrides: Sequence[str]) -> Path:
    """Train in a new folder below `out`; returns it."""
    from hdmnet.cli.compose import compose_words
    from hdmnet.config.checks import validate
    from hdmnet.config.paths import make_paths_absolute
    from hdmnet.run.pipeline import train as run

    run_dir = next(out / f"run{number}" for number in itertools.count() if not (out / f"run{number}").exists())
    words = [*_SMALL, f"paths.output_dir={out}", f"num_workers={workers}", f"optim.max_steps={steps}"]
    words += [f"dataset.episodes_per_epoch={steps // evaluations * _BATCH}", *overrides]
    cfg = compose_words("train", words)
    make_paths_absolute(cfg, run_dir)
    validate(cfg)
    run_dir.mkdir(parents=True)
    run(cfg)
    return run_dir


def soak(argv: Sequence[str] | None) -> bool:
    """Train, fit, print; returns whether nothing grows."""
    parser = OneLineParser(prog=NAME, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="key=value as of python -m hdmnet.train")
    parser.add_argument("--steps", type=int, default=2000, help="training steps (default: 2000)")
    parser.add_argument("--evaluations", type=int, default=10, help="validations during them (default: 10)")
    parser.add_argument("--workers", type=int, default=2, help="loader workers (default: 2)")
    parser.add_argument("--limit", type=float, default=5.0, help="MB that 1,000 steps may add (default: 5)")
    parser.add_argument("--out", type=Path, default=Path("soak"), help="folder (default: soak)")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.evaluations < 1 or arguments.steps < 10 * arguments.evaluations:
        parser.error(f"--steps {arguments.steps} --evaluations {arguments.evaluations}: expected 10 steps for each")
    out: Path = arguments.out.absolute()
    run_dir = train(
        out,
        steps=arguments.steps,
        evaluations=arguments.evaluations,
        workers=arguments.workers,
        overrides=arguments.overrides,
    )
    rows = read(run_dir / FILE)
    grown = fit(rows)
    growing = grows(grown, arguments.limit)
    draw(rows, out / "soak.png")
    facts = {
        "steps": arguments.steps,
        "validations": sum(row["phase"] == "validation" for row in rows),
        "workers": arguments.workers,
        "seconds": max(float(row["seconds"]) for row in rows),
        **{name: asdict(one) for name, one in grown.items()},
    }
    with replacing(out / "soak.json") as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(f"\n{table(grown, arguments.steps)}")
    print(f"grows: {', '.join(QUANTITIES[name] for name in growing)}" if growing else "nothing grows")
    return not growing


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    return run_main(lambda: soak(argv), NAME)


if __name__ == "__main__":
    sys.exit(main())
