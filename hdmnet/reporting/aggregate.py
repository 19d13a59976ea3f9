"""Mean over folds, ± over seeds, of the runs of one cell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

from hdmnet.reporting.collect import Run

MIOU, FB_IOU = "miou", "fb_iou"


@dataclass(frozen=True)
class Value:
    """One number: ours, a mean over folds, or the paper's.

    Attributes:
        mean: None where there is none.
        spread: Sample standard deviation; None where there is one seed only.
        over: What the spread is over: "3 training seeds" or "2 test seeds"; empty without one.
        folds: Which folds it is the mean of.
        num_runs: How many runs it was made from.
        signed: Whether it is shown with a plus.
    """

    mean: float | None = None
    spread: float | None = None
    over: str = ""
    folds: tuple[int, ...] = ()
    num_runs: int = 0
    signed: bool = False


def choose(runs: Iterable[Run]) -> tuple[list[Run], list[Run]]:
    """One run a fold and training seed: the one tested on most episodes, then a training run, then the newest.

    Returns:
        The chosen of a setting's runs, by fold and seed, and those left out.
    """

    def rank(run: Run) -> tuple[int, bool, float]:
        episodes = int(run.result["test"]["num_episodes"] or 0) * run.num_test_seeds
        return episodes, not run.is_evaluation, run.modified

    best: dict[tuple[int, int], Run] = {}
    left_out = []
    for run in runs:
        key = (run.result["fold"], run.result["seed"])
        other = best.get(key)
        if other is not None:
            run, other = (run, other) if rank(run) > rank(other) else (other, run)
            left_out.append(other)
        best[key] = run
    return [best[key] for key in sorted(best)], left_out


def by_fold(runs: Sequence[Run]) -> dict[int, list[Run]]:
    """Runs by fold, in order."""
    folds = sorted({int(run.result["fold"]) for run in runs})
    return {fold: [run for run in runs if run.result["fold"] == fold] for fold in folds}


def pool_runs(runs: Sequence[Run], key: str = MIOU) -> Value:
    """Pool the runs of one setting, of one or several folds.

    The mean is over folds of the fold's mean over training seeds. The spread is that of the mean over folds from one
    training seed to the next, where two or more training seeds have every fold; else from one test seed to the next.

    Args:
        runs: One a fold and training seed, see `choose`.
        key: `MIOU` or `FB_IOU`.

    Returns:
        The number; runs whose own is undefined are left out.
    """
    folds = by_fold([run for run in runs if run.result["test"][key] is not None])
    value = pool_numbers({fold: [run.result["test"][key] for run in group] for fold, group in folds.items()})
    spread, over = _spread(list(folds.values()), key) if folds else (None, "")
    return replace(value, spread=spread, over=over)


def _spread(groups: Sequence[Sequence[Run]], key: str) -> tuple[float | None, str]:
    """The spread of the runs of several folds, and what it is over."""
    seeds = set.intersection(*({int(run.result["seed"]) for run in group} for group in groups))
    if len(seeds) > 1:
        runs = [run for group in groups for run in group]
        means = [fmean(run.result["test"][key] for run in runs if run.result["seed"] == seed) for seed in seeds]
        return stdev(means), f"{len(means)} training seeds"
    rows: list[list[Any]] = [run.result["test"].get(f"{key}_per_seed") or [] for group in groups for run in group]
    if len({len(row) for row in rows}) != 1 or len(rows[0]) < 2 or any(None in row for row in rows):
        return None, ""
    # Training seeds first, then folds, as in the mean: folds may have unequal numbers of runs.
    per_fold = [
        [fmean(column) for column in zip(*(run.result["test"][f"{key}_per_seed"] for run in group), strict=True)]
        for group in groups
    ]
    means = [fmean(column) for column in zip(*per_fold, strict=True)]
    return stdev(means), f"{len(means)} test seeds"


def pool_intervals(runs: Sequence[Run]) -> Value:
    """Half of the mIoU's 95 % interval, of the mean over folds; no number where a run tells none.

    Folds have other classes and add up as independent ones. Training seeds are tested on the same pictures, which makes
    nothing more certain: of these the mean.
    """
    halves = {}
    for fold, group in by_fold(runs).items():
        ends = [run.result["test"].get("miou_interval") or [None] for run in group]
        if any(None in interval for interval in ends):
            return Value()
        halves[fold] = fmean((high - low) / 2 for low, high in ends)
    total = sum(half**2 for half in halves.values()) ** 0.5
    return Value(total / len(halves), folds=tuple(halves), num_runs=len(runs)) if halves else Value()


def percent(value: Value) -> Value:
    """A fraction of 1 as %."""
    mean, spread = (None if number is None else 100 * number for number in (value.mean, value.spread))
    return replace(value, mean=mean, spread=spread)


def pool_numbers(values: dict[int, list[float]]) -> Value:
    """Pool plain numbers by fold, without a spread."""
    kept = {fold: numbers for fold, numbers in sorted(values.items()) if numbers}
    if not kept:
        return Value()
    mean = fmean(fmean(numbers) for numbers in kept.values())
    return Value(mean, None, "", tuple(kept), sum(map(len, kept.values())))


def describe_runs(runs: Sequence[Run]) -> str:
    """On what a value stands: "folds 0-3, 1 training seed"."""
    folds = by_fold(runs)
    if not folds:
        return ""
    numbers = sorted(folds)
    consecutive = len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1))
    names = f"{numbers[0]}–{numbers[-1]}" if consecutive else ", ".join(map(str, numbers))
    counts = sorted({len({run.result["seed"] for run in group}) for group in folds.values()})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"fold{'s' if len(numbers) > 1 else ''} {names}, {seeds} training seed{'' if counts == [1] else 's'}"


def mixed_episodes(runs: Iterable[Run]) -> list[str]:
    """Warnings where runs of one fold and shot, set beside each other or averaged, were tested on unequal episodes."""
    found: dict[tuple[int, int], dict[tuple[str, ...], Run]] = {}
    for run in runs:
        found.setdefault((run.result["fold"], run.result["shot"]), {}).setdefault(run.manifests, run)
    return [
        f"fold {fold}, {shot}-shot: runs with {len(manifests)} different sets of test episodes (manifests), e.g. "
        + " and ".join(f"{run.folder} ({run.result['test']['num_episodes']} x {run.num_test_seeds})" for run in some)
        for (fold, shot), manifests in sorted(found.items())
        if len(manifests) > 1
        for some in [list(manifests.values())[:2]]
    ]
