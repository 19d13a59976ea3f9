"""Which runs may be compared: studies, that is runs that differ only in fold, seed and a table's rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hdmnet.config.paths import option_of
from hdmnet.config.values import HDMNET
from hdmnet.reporting.aggregate import choose, describe_runs, mixed_episodes
from hdmnet.reporting.collect import Run
from hdmnet.reporting.settings import (
    ABSENT,
    SHOTS,
    Settings,
    deviations,
    differing,
    is_papers_dataset,
    repeated,
    row_values,
    settings_of,
    told,
    without,
)

_Place = tuple[Hashable, str, tuple[str, ...]]  # of a run: key of its study, row, axes
OTHER_DATASET = "‡"
_SHOWN_DIFFERENCES = 3


@dataclass(eq=False)
class Study:
    """Runs of one setting.

    Attributes:
        rows: Runs by row of the table (an ablation, or a number of shots as text); one a fold and training seed.
        axes: Settings that the rows change.
        label: Name of the study, unlike those of the others in its table.
        left_out: Runs of the same settings, folds and seeds that are not used.
    """

    rows: dict[str, list[Run]] = field(default_factory=dict)
    axes: tuple[str, ...] = ()
    label: str = ""
    left_out: list[Run] = field(default_factory=list)

    @property
    def runs(self) -> list[Run]:
        """All of them."""
        return [run for runs in self.rows.values() for run in runs]

    @property
    def first(self) -> Run:
        """One that stands for the study's setting."""
        return self.runs[0]

    @property
    def method(self) -> str:
        """Name of the method; a table whose rows are several methods is HDMNet's."""
        methods = {run.method for run in self.runs}
        return HDMNET if HDMNET in methods else self.first.method

    def note(self, dataset: str) -> str:
        """One line on what it is: folds, seeds, and what it sets otherwise than conf/; `dataset` is the paper's."""
        parts = [describe_runs(self.runs)]
        if dataset and not is_papers_dataset(self.first, dataset):
            parts.append("another data set than the paper's")
        changed = deviations(self.first, self.axes)
        parts.append("differs from conf/ in " + ", ".join(changed) if changed else "set as in conf/")
        return f"{self.label}: {'; '.join(parts)}"


def row_of(run: Run, names: Sequence[str]) -> tuple[str | None, tuple[str, ...], str | None]:
    """Which row of an ablation table a run belongs to.

    Args:
        run: The run.
        names: The rows' ablations.

    Returns:
        The row (None: none), the settings that the rows change, and a warning where the run's name says otherwise.
    """
    values, own = _row_values(run, names), settings_of(run)
    axes = tuple(sorted({key for row in values.values() for key in row}))
    row = next((name for name, row in values.items() if all(own.get(key, ABSENT) == row[key] for key in row)), None)
    if run.ablation not in names or run.ablation == row:
        return row, axes, None
    wanted = values.get(str(run.ablation), {})
    wrong = ", ".join(told(own, key) for key in wanted if own.get(key, ABSENT) != wanted[key])
    place = f"counted as {row}" if row else "counted by its name"
    warning = f"{run.folder} is named {run.ablation} but its config is not conf/ablation's ({wrong}): {place}"
    return row or run.ablation, axes, warning


def _row_values(run: Run, names: Iterable[str]) -> dict[str, Settings]:
    return row_values(option_of("dataset", run.config["dataset"]), str(run.result["backbone"]), tuple(names))


def ablation_studies(runs: Iterable[Run], names: Sequence[str]) -> tuple[list[Study], list[str]]:
    """Studies that a table with rows of these names shows: with a run named for it, or with two of its rows.

    Returns:
        The studies, labelled, and warnings.
    """
    warnings: list[str] = []

    def place(run: Run) -> _Place | None:
        row, axes, warning = row_of(run, names)
        if warning is not None:
            warnings.append(warning)
        return None if row is None else (without(settings_of(run), axes), row, axes)

    studies = _gather(runs, place)
    shown = [study for study in studies if len(study.rows) > 1 or any(run.ablation in names for run in study.runs)]
    return _finish(shown, warnings, with_shot=True)


def full_studies(runs: Iterable[Run], names: Sequence[str]) -> tuple[list[Study], list[str]]:
    """Studies of the full method, with a row for each number of shots.

    Args:
        runs: All there are.
        names: All ablations of the tables: a run named for one counts where its config is the full method's.

    Returns:
        The studies, labelled, and warnings.
    """

    def place(run: Run) -> _Place | None:
        own = settings_of(run)
        if own["support_mask"] != json.dumps("given"):
            return None  # a control
        return (without(own, SHOTS), training(run)), str(run.result["shot"]), SHOTS

    def is_full(run: Run) -> bool:
        axes = {key for row in _row_values(run, names).values() for key in row}
        changed = {change.partition("=")[0] for change in deviations(run)}
        return run.ablation is None or axes.isdisjoint(changed)

    shown = [study for study in _gather(runs, place) if any(map(is_full, study.runs))]
    return _finish(shown, [], with_shot=False)


def _gather(runs: Iterable[Run], place: Callable[[Run], _Place | None]) -> list[Study]:
    """Group runs by their places."""
    studies: dict[Hashable, Study] = {}
    for run in runs:
        if (found := place(run)) is not None:
            key, row, axes = found
            studies.setdefault(key, Study(axes=axes)).rows.setdefault(row, []).append(run)
    for study in studies.values():
        for row, group in study.rows.items():
            study.rows[row], rest = choose(group)
            study.left_out += rest

    def order(study: Study) -> tuple[str, int]:
        return base_label(study.first, told_method(study.method)), -len(study.runs)

    return sorted(studies.values(), key=order)


def _finish(studies: list[Study], warnings: list[str], *, with_shot: bool) -> tuple[list[Study], list[str]]:
    label_apart(studies, with_shot=with_shot)
    for study in studies:
        unused = "not used, another run of the same setting, fold and seed is"
        warnings += [f"{unused}: {run.folder}" for run in study.left_out]
        warnings += mixed_episodes(study.runs)
        warnings += _unequal_seeds(study)
    return studies, warnings


def _unequal_seeds(study: Study) -> list[str]:
    """A warning for each row whose folds have unequal training seeds."""
    found = []
    for row, runs in study.rows.items():
        seeds: dict[int, set[int]] = {}
        for run in runs:
            seeds.setdefault(run.result["fold"], set()).add(run.result["seed"])
        if len(set(map(frozenset, seeds.values()))) > 1:
            each = "; ".join(f"fold {fold}: {', '.join(map(str, sorted(own)))}" for fold, own in sorted(seeds.items()))
            name = f"{row}-shot" if row.isdigit() else row
            found.append(f"{study.label}, {name}: folds with unequal training seeds are averaged ({each})")
    return found


def training(run: Run) -> str:
    """How training differs from the test in data set and shots; empty where it does not."""
    shot, dataset = settings_of(run)["trained.shot"], run.trained_on
    told = [f"on {dataset}"] if dataset not in (None, run.result["dataset"]) else []
    told += [f"{shot}-shot"] if shot not in ("unknown", str(run.result["shot"])) else []
    if not told:
        return "training run not found" if shot == "unknown" else ""
    return f"trained {' '.join(told)}"


def base_label(run: Run, method: str, *, with_shot: bool = True) -> str:
    """Data set, backbone, method (unless empty), shots (if told) and how it was trained."""
    shot = f"{run.result['shot']}-shot" if with_shot else ""
    parts = [run.result["dataset"], run.result["backbone"], method, shot, training(run)]
    return ", ".join(str(part) for part in parts if part)


def told_method(method: str) -> str:
    """The name that is told of a method where no other occurs: none of HDMNet."""
    return "" if method == HDMNET else method


def label_apart(studies: Sequence[Study], *, with_shot: bool) -> None:
    """Give each study of a table a label of its own, in place: where data set and backbone agree, what differs."""
    groups: dict[str, list[Study]] = {}
    several = len({study.method for study in studies}) > 1
    for study in studies:
        method = study.method if several else told_method(study.method)
        label = base_label(study.first, method, with_shot=with_shot)
        groups.setdefault(label, []).append(study)
    for label, group in groups.items():
        settings: list[dict[str, Any]] = [settings_of(study.first) for study in group]
        axes = {axis for study in group for axis in study.axes}
        untold = {*SHOTS, *axes, *set.intersection(*map(repeated, settings))}
        keys = [key for key in differing(settings) if key not in untold]
        for study, own in zip(group, settings, strict=True):
            study.label = "; ".join([label, *(told(own, key) for key in keys[:_SHOWN_DIFFERENCES])])
        taken: dict[str, int] = {}
        for study in group:  # those that differ only in what is not shown
            number = taken[study.label] = taken.get(study.label, 0) + 1
            study.label += f" ({number})" if number > 1 else ""


def marked(study: Study, dataset: str) -> str:
    """The label, with the mark of another data set than the paper's where it is one."""
    other = bool(dataset) and not is_papers_dataset(study.first, dataset)
    return f"{study.label} {OTHER_DATASET}" if other else study.label
