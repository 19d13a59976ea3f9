"""Time of a checkpoint's test with reuse of features, with the baselines beside it, and without reuse.

How far the counted pixels with reuse and without differ is told too.

    python scripts/benchmarks/benchmark_evaluation.py RUN/checkpoints/best.ckpt dataset.root=DIR seeds=10 episodes=1000
    python scripts/benchmarks/benchmark_evaluation.py CKPT shot=5 seeds=10 --off-seeds 1 --json out.json

Takes the overrides of `python -m hdmnet.evaluate`, and does what that does, in this process, without pictures and
oracle. Only the test itself is timed: planning, decoding, encoding, matching, pooling. `--off-seeds N` runs the slow
side on the first N seeds only; then the ratio is that of the times an episode, and the counts of these seeds are
compared. Counts may differ by pixels whose two logits are equal up to float rounding, as another batch size may choose
other kernels; `batch_size=1` leaves only the rounding between batches of pictures that are encoded together.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "scripts" / "inspect")) if path not in sys.path]

from compose_evaluation import compose_config  # noqa: E402
from omegaconf import DictConfig, OmegaConf  # noqa: E402

from hdmnet.callbacks.build import build_callbacks  # noqa: E402
from hdmnet.cli.parser import OneLineParser, run_main  # noqa: E402
from hdmnet.run.baselines import build_controls, run_along, run_apart  # noqa: E402
from hdmnet.run.build import build_trainer  # noqa: E402
from hdmnet.run.pipeline import prepare_evaluation  # noqa: E402
from hdmnet.runtime.atomic import replacing  # noqa: E402
from hdmnet.runtime.provenance import git_state, hardware, library_versions  # noqa: E402
from hdmnet.runtime.warnings import silence_known_warnings  # noqa: E402

NAME = "benchmark_evaluation"
COUNTS = ("intersection", "union", "counts")
Seeds = list[dict[str, Any]]


def measure(
    cfg: DictConfig, *, reuse: bool, seeds: int | None, checkpoint: dict[str, Any], baselines: bool = False
) -> tuple[dict[str, Any], dict[str, Seeds]]:
    """Run the test once.

    Args:
        cfg: The config of `evaluate`.
        reuse: Whether features are reused.
        seeds: Number of test seeds; None: as the config says.
        checkpoint: The checkpoint's content.
        baselines: Whether the untrained prototype and support masks of ones are run beside it (`baseline_episodes`).

    Returns:
        Figures (seconds, episodes, pictures encoded, most memory of kept features), and the counts of each prediction
        and seed.
    """
    cfg = cfg.copy()
    OmegaConf.set_struct(cfg, False)
    cfg.reuse = reuse
    cfg.seeds = cfg.seeds if seeds is None else seeds
    task, data = prepare_evaluation(cfg, checkpoint)
    controls = build_controls(cfg, task.model) if baselines else None
    stage = "with reuse" if reuse else "without reuse"
    trainer = build_trainer(cfg, stage, callbacks=build_callbacks(cfg, "control"), logger=False)
    start = time.perf_counter()
    along = controls is not None and run_along(task, data, controls)
    trainer.test(task, datamodule=data, verbose=False)
    results = task.test_results
    if controls is not None and not along:
        run_apart(cfg, task, data, controls)
    seconds = time.perf_counter() - start
    episodes = sum(map(len, data.test_manifests))
    pictures = task.features.num_encoded if reuse else episodes * (1 + data.shot)
    figures = {
        "seconds": round(seconds, 2),
        "seeds": data.num_test_seeds,
        "episodes": episodes,
        "milliseconds_per_episode": round(1000 * seconds / episodes, 3),
        "pictures_encoded": pictures,
        "peak_feature_bytes": task.features.peak_bytes,
    }
    counts = {
        name: [{key: seed[key].reshape(-1).tolist() for key in COUNTS} for seed in computed]
        for name, computed in results.items()
    }
    return figures, counts


def compare(on: Mapping[str, Seeds], off: Mapping[str, Seeds]) -> dict[str, Any]:
    """Differences of the counts, with minus without reuse, over the seeds that both have.

    Args:
        on: By prediction and seed: `intersection`, `union` (pixels) and `counts` (episodes), one entry a class.
        off: The same without reuse; its seeds are the first of `on`'s.

    Returns:
        By prediction: the differences per seed and class, the largest, and the pixels of all unions together.
    """
    found: dict[str, Any] = {}
    for name, seeds in off.items():
        pairs = list(zip(on[name], seeds, strict=False))
        differences = {
            key: [[a - b for a, b in zip(one[key], other[key], strict=True)] for one, other in pairs] for key in COUNTS
        }
        largest = {key: max(abs(value) for row in rows for value in row) for key, rows in differences.items()}
        pixels = sum(sum(other["union"]) for _, other in pairs)
        found[name] = {"largest": largest, "union_pixels": pixels, "per_seed_and_class": differences}
    return found


def report(
    on: Mapping[str, Any], beside: Mapping[str, Any], off: Mapping[str, Any], differences: Mapping[str, Any]
) -> str:
    """The table that is printed."""
    lines = [f"{'':14}{'episodes':>10}{'seconds':>10}{'ms/episode':>12}{'encoded':>10}{'features':>11}"]
    for label, row in (("with reuse", on), ("and baselines", beside), ("without reuse", off)):
        lines.append(
            f"{label:14}{row['episodes']:10,}{row['seconds']:10.1f}{row['milliseconds_per_episode']:12.2f}"
            f"{row['pictures_encoded']:10,}{row['peak_feature_bytes'] / 1e6:8.0f} MB"
        )
    lines.append(f"{ratio(on, off):.1f} times as fast; with the baselines {ratio(on, beside):.2f} times the time")
    for name, entry in differences.items():
        largest = entry["largest"]
        lines.append(
            f"{name}: at most {largest['intersection']} pixels of an intersection and {largest['union']} of a union "
            f"differ, of {entry['union_pixels']:,} in all unions; episodes counted: "
            + ("the same" if largest["counts"] == 0 else "DIFFERENT")
        )
    return "\n".join(lines)


def ratio(on: Mapping[str, Any], off: Mapping[str, Any]) -> float:
    """How many times faster an episode is with reuse."""
    return float(off["seconds"]) / float(off["episodes"]) * float(on["episodes"]) / float(on["seconds"])


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; ValueError of one line where it is wrong."""
    parser = OneLineParser(prog=NAME, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ckpt", type=Path, help="checkpoint of a run or of the official release")
    parser.add_argument("overrides", nargs="*", help="key=value as of python -m hdmnet.evaluate")
    parser.add_argument("--off-seeds", type=int, help="run the slow side on the first N seeds only")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.off_seeds is not None and arguments.off_seeds < 1:
        parser.error(f"--off-seeds {arguments.off_seeds}: expected at least 1")
    return arguments


def run(argv: Sequence[str] | None) -> bool:
    """Measure both sides, print the table, write the JSON."""
    arguments = parse(argv)
    silence_known_warnings()
    with tempfile.TemporaryDirectory() as run_dir:
        cfg, checkpoint = compose_config(arguments.ckpt, arguments.overrides, run_dir)
        on, on_counts = measure(cfg, reuse=True, seeds=None, checkpoint=checkpoint)
        beside, _ = measure(cfg, reuse=True, seeds=None, checkpoint=checkpoint, baselines=True)
        off_seeds = None if arguments.off_seeds is None else min(arguments.off_seeds, int(on["seeds"]))
        off, off_counts = measure(cfg, reuse=False, seeds=off_seeds, checkpoint=checkpoint)
    differences = compare(on_counts, off_counts)
    print(report(on, beside, off, differences))
    if arguments.json is not None:
        content = {
            "checkpoint": str(arguments.ckpt),
            "overrides": arguments.overrides,
            "shot": cfg.shot,
            "with_reuse": on,
            "with_baselines": beside,
            "without_reuse": off,
            "ratio": ratio(on, off),
            "differences": differences,
            "hardware": hardware(),
            "versions": library_versions(),
            **git_state(),
        }
        with replacing(arguments.json) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return run_main(lambda: run(argv), NAME)


if __name__ == "__main__":
    sys.exit(main())
