"""Tables of data sets that the paper does not have: a user's own, by their own folds and classes."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

from hdmnet.reporting.aggregate import FB_IOU, Value, by_fold, choose, percent, pool_numbers, pool_runs
from hdmnet.reporting.collect import Run
from hdmnet.reporting.settings import SHOTS, settings_of, without
from hdmnet.reporting.studies import Study, label_apart, training
from hdmnet.reporting.tables import Table, tell_basis
from hdmnet.runtime.console import classes_to_show

_OURS = "ours"


def own_tables(runs: Sequence[Run]) -> list[Table]:
    """Two tables for each data set of a user: mIoU by fold, and the IoU of every class.

    Args:
        runs: All there are; those of the benchmarks are in the paper's tables.
    """
    by_dataset: dict[str, list[Run]] = {}
    for run in runs:
        if run.is_own_data:
            by_dataset.setdefault(str(run.result["dataset"]), []).append(run)
    tables = []
    for name, own in sorted(by_dataset.items()):
        studies = studies_of(own)
        folds = _by_fold(name, studies)
        classes = by_class(_slug(name, "_classes"), f"Your data set {name}, IoU (%) of every class", studies)
        folds.notes = [study.note("") for study in studies]
        unused = "not used, another run of the same setting, fold and seed is"
        folds.warnings = [f"{unused}: {run.folder}" for study in studies for run in study.left_out]
        for table in (folds, classes):
            table.runs = [run for study in studies for run in study.runs]
        tables += [folds, classes]
    return tables


def studies_of(runs: Sequence[Run]) -> list[Study]:
    """Runs that differ only in fold, seed and shot; a study's rows are the shots."""
    groups: dict[Hashable, dict[int, list[Run]]] = {}
    for run in runs:
        key = without(settings_of(run), SHOTS), training(run)
        groups.setdefault(key, {}).setdefault(int(run.result["shot"]), []).append(run)
    studies = []
    for by_shot in groups.values():
        study = Study(axes=SHOTS)
        for shot, group in sorted(by_shot.items()):
            study.rows[str(shot)], rest = choose(group)
            study.left_out += rest
        studies.append(study)
    label_apart(studies, with_shot=False)
    return sorted(studies, key=lambda study: study.label)


def _by_fold(name: str, studies: Sequence[Study]) -> Table:
    """The mIoU of each study and shot by fold, and their FB-IoU; without folds all classes are novel."""
    folds = sorted({int(run.result["fold"]) for study in studies for run in study.runs if run.has_folds})
    heads = [("mIoU (%)", f"fold {fold}") for fold in folds] + [("mIoU (%)", "mean" if folds else "all classes")]
    columns = [*heads, ("", "FB-IoU (%)")]
    labels = [("", "backbone"), ("", "setting"), ("", "shot")]
    table = Table(_slug(name), f"Your data set {name}", [*labels, *columns, ("", "classes"), ("", "runs")])
    for study in studies:
        for shot, runs in study.rows.items():
            own = by_fold(runs) if study.first.has_folds else {}
            values = [percent(pool_runs(own.get(fold, []))) for fold in folds]
            number = study.first.config["dataset"].get("num_folds") or len(folds)  # a file of folds does not tell
            complete = not study.first.has_folds or len(own) == number
            values += [percent(pool_runs(runs)) if complete else Value(), percent(pool_runs(runs, FB_IOU))]
            told = [str(study.first.result["backbone"]), study.label, shot]
            table.add([*told, *values, _classes(runs), tell_basis(runs, values)], ours=True)
            table.record(", ".join(told), columns, _OURS, values)
    return table


def _classes(runs: Sequence[Run]) -> str:
    """How many classes have an IoU, of how many."""
    pairs = [pair for run in runs for pair in run.result["test"]["iou_per_class"].items()]
    known, defined = {name for name, _ in pairs}, {name for name, value in pairs if value is not None}
    return str(len(known)) if defined == known else f"{len(defined)} of {len(known)}"


def by_class(name: str, title: str, studies: Sequence[Study]) -> Table:
    """The IoU of every class, a column for each study and shot; of many classes only the extremes of the first."""
    parts = [(study, shot, runs) for study in studies for shot, runs in study.rows.items()]
    columns = [(study.label, f"{shot}-shot") for study, shot, _ in parts]
    table = Table(name, title, [("", "class"), *columns])
    names = dict.fromkeys(name for *_, runs in parts for run in runs for name in run.result["test"]["iou_per_class"])
    found = {class_name: [percent(_class_value(runs, class_name)) for *_, runs in parts] for class_name in names}
    shown = classes_to_show({class_name: values[0].mean for class_name, values in found.items()})
    for class_name in shown:
        table.add([class_name, *found[class_name]], ours=True)
    for class_name, values in found.items():
        table.record(class_name, columns, _OURS, values)
    if len(shown) < len(found):
        table.notes.append(
            f"Of {len(found):,} classes those of lowest and of highest IoU by the first column; all are in the CSV"
        )
    return table


def _class_value(runs: Sequence[Run], class_name: str) -> Value:
    values = {
        fold: [iou for run in group if (iou := run.result["test"]["iou_per_class"].get(class_name)) is not None]
        for fold, group in by_fold(runs).items()
    }
    return pool_numbers(values)


def _slug(name: str, ending: str = "") -> str:
    """Name of a table's files."""
    plain = re.sub(r"[^\w.-]+", "-", name)
    return f"own_{plain}{ending}"
