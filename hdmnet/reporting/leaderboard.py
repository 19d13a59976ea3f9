"""Compares methods: how well they do on a data set and what that costs, and models under several protocols."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from hdmnet.reporting.aggregate import (
    FB_IOU,
    Value,
    by_fold,
    choose,
    describe_runs,
    percent,
    pool_intervals,
    pool_numbers,
    pool_runs,
)
from hdmnet.reporting.collect import Run
from hdmnet.reporting.costs import Costs
from hdmnet.reporting.figures import Figure, by_dataset
from hdmnet.reporting.own import by_class, studies_of
from hdmnet.reporting.studies import Study
from hdmnet.reporting.tables import Table, tell_basis
from hdmnet.visual.colours import BLUE
from hdmnet.visual.figure import new_figure, save_figure

_OURS = "ours"
_COLUMNS = ("learnable (M)", "decoder (G)", "decoder (ms)", "training (s)", "test episode (ms)", "memory (MB)")
Row = tuple[Study, str, list[Run]]  # a study, its shots, the runs


def leaderboards(runs: Sequence[Run], costs: Callable[[Run], Costs | None]) -> list[Table]:
    """Two tables for each data set and protocol with two or more methods: the best first, and the IoU of every class.

    Args:
        runs: All there are.
        costs: As of `make_tables`.
    """
    tables = []
    for name, rows in _rows(runs).items():
        board = _board(name, rows, costs)
        studies = list(dict.fromkeys(study for study, *_ in rows))
        classes = by_class(f"{board.name}_classes", f"{board.title}, IoU (%) of every class", studies)
        board.compares = classes.compares = True
        board.runs = classes.runs = [run for *_, group in rows for run in group]
        tables += [board, classes]
    return tables


def _shorter(studies: Sequence[Study]) -> list[Study]:
    """The studies, their labels without the parts that all of them share."""
    parts = [study.label.split(", ") for study in studies]
    shared = set.intersection(*map(set, parts))
    own = [", ".join(part for part in label if part not in shared) for label in parts]
    return [replace(study, label=label or study.method) for study, label in zip(studies, own, strict=True)]


def _rows(runs: Sequence[Run]) -> dict[str, list[Row]]:
    """By data set and protocol, the settings that stand beside each other: by shots, the best first."""
    found = {}
    for name, group in by_dataset(run for run in runs if not run.is_control).items():
        for protocol in dict.fromkeys(run.protocol for run in group):
            alike = [run for run in group if run.protocol == protocol]
            if len({run.method for run in alike}) > 1:
                rows = [(study, shot, own) for study in _shorter(studies_of(alike)) for shot, own in study.rows.items()]
                rows.sort(key=lambda row: (int(row[1]), -(pool_runs(row[2]).mean or 0.0)))
                found[name if protocol == "ours" else f"{name}_{protocol}"] = rows
    return found


def _board(name: str, rows: Sequence[Row], costs: Callable[[Run], Costs | None]) -> Table:
    folds = sorted({int(run.result["fold"]) for *_, group in rows for run in group})
    columns = [("mIoU (%)", f"fold {fold}") for fold in folds] + [("mIoU (%)", "mean"), ("mIoU (%)", "± folds")]
    columns += [("mIoU (%)", "± pictures"), ("", "FB-IoU (%)"), *(("", head) for head in _COLUMNS)]
    labels = [("", "setting"), ("", "recipe"), ("", "shot")]
    table = Table(f"leaderboard_{name}", f"Methods on {name}", [*labels, *columns, ("", "runs")])
    for study, shot, group in rows:
        own = {fold: percent(pool_runs(some)) for fold, some in by_fold(group).items()}
        means = [value.mean for value in own.values() if value.mean is not None]
        counted = costs(group[0])
        values = [own.get(fold, Value()) for fold in folds]
        values += [percent(pool_runs(group)), Value(stdev(means) if len(means) > 1 else None)]
        values += [
            percent(pool_intervals(group)),
            percent(pool_runs(group, FB_IOU)),
            Value(None if counted is None else counted.learnable),
        ]
        values += [Value(None if counted is None else one) for one in _measured(counted)]
        values += [pool_numbers({0: [one for run in group if (one := of(run)) is not None]}) for of in _OF_A_RUN]
        told = [study.label, str(group[0].config.get("recipe", "default")), shot]
        table.add([*told, *values, tell_basis(group, values[:-6])], ours=True)
        table.record(", ".join(told), columns, _OURS, values)
    table.notes = [
        "Best first, by shots. ± folds: standard deviation of the folds' figures, how unlike they are; the ± behind a "
        "mean, over seeds, is how sure it is. ± pictures: half of its 95 % interval over the query pictures. Decoder: "
        "an episode of the run's size and shots beyond its backbone's pass, on this machine (--costs). Training and "
        "test: processor seconds of the runs, the test with features reused; memory: the most that a run held."
    ]
    return table


def _measured(counted: Costs | None) -> tuple[float | None, float | None]:
    return (None, None) if counted is None else (counted.operations, counted.milliseconds)


def _seconds(run: Run, phase: str) -> float | None:
    """Processor seconds of a phase; of results of before they were told, those of the clock."""
    for key in ("processor_seconds", "timings"):
        value = (run.result.get(key) or {}).get(phase)
        if isinstance(value, int | float):
            return float(value)
    return None


def _training(run: Run) -> float | None:
    return _seconds(run, "train")


def _episode(run: Run) -> float | None:
    """Milliseconds of a test episode."""
    seconds, test = _seconds(run, "test"), run.result["test"]
    number = int(test["num_episodes"] or 0) * run.num_test_seeds
    return None if seconds is None or not number else 1e3 * seconds / number


def _memory(run: Run) -> float | None:
    value = run.result.get("peak_memory_mb")
    return float(value) if isinstance(value, int | float) else None


_OF_A_RUN = (_training, _episode, _memory)


def draw_leaderboards(runs: Sequence[Run], folder: Path) -> list[Figure]:
    """Accuracy over the time of a test episode, of each data set with two or more methods."""
    figures = []
    for name, rows in _rows(runs).items():
        points = []
        for study, shot, group in rows:
            times = [one for run in group if (one := _episode(run)) is not None]
            value = percent(pool_runs(group))
            if times and value.mean is not None:
                points.append((fmean(times), value.mean, f"{study.method}, {shot}-shot"))
        if len(points) < 2:
            continue
        figure = new_figure(7.5, 5)
        axes = figure.subplots()
        axes.scatter([x for x, *_ in points], [y for _, y, _ in points], color=BLUE, zorder=3)
        farthest = max(points)[0]
        for number, (x, y, label) in enumerate(sorted(points)):  # above and below by turns: neighbours stay legible
            side, shift = (
                ("right", -5) if x == farthest else ("left", 5)
            )  # the last one's to its left: it is seen whole
            where = (shift, -14 if number % 2 else 4)
            axes.annotate(label, (x, y), xytext=where, textcoords="offset points", fontsize=10, ha=side)
        if farthest > 5 * min(points)[0]:  # on less than that a scale of logarithms has hardly a tick
            axes.set_xscale("log")
            for which in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
                which("{x:.0f}")
        axes.set_title(f"{name}: accuracy over time")
        axes.set_xlabel("a test episode (ms of processor time, features reused)")
        axes.set_ylabel("mIoU (%), mean over folds")
        axes.margins(0.25)
        axes.set_ylim(bottom=-1)  # a point at 0 is seen whole
        axes.grid(alpha=0.3)
        path = save_figure(figure, folder / f"leaderboard_{name}.png")
        told = describe_runs([run for *_, group in rows for run in group])
        figures.append(Figure("leaderboard", f"{name}: accuracy over time; {told}.", path))
    return figures


def protocol_tables(runs: Sequence[Run]) -> list[Table]:
    """One trained model under each protocol that it was tested by, where there are several; a row for each model.

    Args:
        runs: All there are.
    """
    groups: dict[tuple[Any, ...], dict[str, list[Run]]] = {}
    for run in runs:
        if not run.is_control:
            keys = ("dataset", "method", "backbone", "shot")
            row = groups.setdefault((*(run.result[key] for key in keys), run.ablation or ""), {})
            row.setdefault(run.protocol, []).append(run)
    shown = {key: row for key, row in groups.items() if len(row) > 1 and len(_models(row)) > 0}
    if not shown:
        return []
    names = list(dict.fromkeys(name for row in shown.values() for name in row))
    names.sort(key=lambda name: (name != "ours", name))
    columns = [("mIoU (%) by protocol", name) for name in names]
    labels = [("", label) for label in ("data set", "method", "backbone", "shot")]
    table = Table("protocols", "The same models under each protocol", [*labels, *columns, ("", "runs")])
    for key, row in sorted(shown.items(), key=lambda item: tuple(map(str, item[0]))):
        same = _models(row)
        chosen = {name: choose([run for run in group if _model(run) in same])[0] for name, group in row.items()}
        values = [percent(pool_runs(chosen.get(name, []))) for name in names]
        told = [str(part) for part in key[:4]]
        table.add([*told, *values, tell_basis(next(iter(chosen.values())), values)], ours=True)
        table.record(", ".join(told), columns, _OURS, values)
        table.runs += [run for group in chosen.values() for run in group]
    table.notes = [
        "Nothing differs between the columns but how episodes are drawn, resized and scored: docs/protocols.md."
    ]
    return [replace(table, compares=True)]


def _model(run: Run) -> str:
    """The weights that were tested; what needs none is one model whatever the run."""
    return str(run.result.get("checkpoint"))


def _models(row: dict[str, list[Run]]) -> set[str]:
    """Models that were tested under every protocol of a row."""
    return set.intersection(*({_model(run) for run in group} for group in row.values()))
