"""A table of the two baselines of every result: the untrained prototype, and support masks of ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hdmnet.reporting.aggregate import Value
from hdmnet.reporting.collect import Run
from hdmnet.reporting.settings import deviations
from hdmnet.reporting.tables import Table
from hdmnet.run.result import baseline_warnings

_CONTROLS = {"untrained_prototype": "untrained prototype", "support_mask_ones": "support masks of ones"}
_LABELS = [
    ("", "data set"),
    ("", "method"),
    ("", "backbone"),
    ("", "setting"),
    ("", "fold"),
    ("", "shot"),
    ("", "seed"),
]


def baseline_table(runs: Sequence[Run]) -> list[Table]:
    """A row for each run whose result tells of baselines; no table where none does.

    Args:
        runs: All there are.
    """
    measured = [run for run in runs if any(name in _baselines(run) for name in _CONTROLS)]
    if not measured:
        return []
    columns = [("mIoU (%)", "this method"), *(("mIoU (%)", label) for label in _CONTROLS.values())]
    differences = [("better by (points)", f"than {label}") for label in _CONTROLS.values()]
    title = "Baselines of every result: no training, and no support mask"
    table = Table("baselines", title, [*_LABELS, *columns, *differences, ("", "episodes")])
    table.runs = measured
    table.notes = [
        "On the same episodes of the first test seed and the same trunk. In brackets: the 95 % interval "
        "of the difference, over the query pictures; † is not better than chance."
    ]
    for run in measured:
        found = _baselines(run)
        values = [_percent(found.get("miou")), *(_percent(found.get(name, {}).get("miou")) for name in _CONTROLS)]
        result = run.result
        labels = [str(result["dataset"]), run.method, str(result["backbone"]), ", ".join(deviations(run)) or "default"]
        labels += [str(result[key]) for key in ("fold", "shot", "seed")]
        told = [_difference(found.get(name, {})) for name in _CONTROLS]
        table.add([*labels, *values, *told, str(found["num_episodes"])], ours=True)
        table.record(", ".join(labels), columns, "ours", values)
        table.warnings += [f"{run.folder}: {text}" for text in baseline_warnings(result)]
    return [table]


def _baselines(run: Run) -> Mapping[str, Any]:
    return run.result.get("baselines") or {}


def _percent(value: float | None) -> Value:
    return Value() if value is None else Value(100 * value, num_runs=1)


def _difference(found: Mapping[str, Any]) -> str:
    """How much better, with its interval; † where that is no more than chance, nothing where it was not measured."""
    if not found:
        return ""
    low, high = found["interval"]
    text = f"{100 * found['difference']:+.1f}"
    if low is not None and high is not None:
        text += f" ({100 * low:+.1f} to {100 * high:+.1f})"
    return text + ("†" if found["is_above"] is False else "")
