"""`curves.png`: the training losses by term and the validation IoUs, drawn from the run's `metrics.csv`."""

from __future__ import annotations

import csv
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only

from hdmnet.runtime.errors import InputError, MissingFileError
from hdmnet.visual.colours import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION
from hdmnet.visual.figure import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

log = logging.getLogger(__name__)

_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, "#000000")
_STYLES = ("-", "--", ":", "-.")
_COLUMNS = 3  # of a legend
_SMOOTH_FROM = 200  # points from which a running mean is drawn over the raw curve
_NO_LOSS = ("lr", "iou", "accuracy", "norm")  # what else may be logged under train/

Series = dict[str, tuple[list[float], list[float]]]


def read_metrics(path: str | Path) -> Series:
    """Read Lightning's CSV log, in which each row fills only some columns.

    Returns:
        Per column the steps and the values, in the order of the file; cells empty or not finite are left out.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it has no `step` column.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"no metrics at {path}; the CSV logger writes them: give a run's folder that trained")
    series: Series = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if "step" not in (reader.fieldnames or ()):
            raise InputError(f"{path} has columns {reader.fieldnames}; expected Lightning's CSV log with a step column")
        for row in reader:
            for name, cell in row.items():
                if name in ("step", "epoch") or not cell or not row["step"]:
                    continue
                value = float(cell)
                if math.isfinite(value):
                    steps, values = series.setdefault(name, ([], []))
                    steps.append(float(row["step"]))
                    values.append(value)
    return series


def _choose(series: Series) -> tuple[Series, Series]:
    """Split the columns into training losses and validation IoUs.

    A loss logged both per step and per epoch is drawn per step, unless there are fewer than two steps.
    """
    losses: Series = {}
    for name in sorted(series, key=lambda name: (name.endswith("_epoch"), name)):
        if name.startswith("train/") and not any(word in name for word in _NO_LOSS):
            label = name.removeprefix("train/").removesuffix("_step").removesuffix("_epoch")
            if label not in losses or len(losses[label][0]) < 2:
                losses[label] = series[name]
    ious = [name for name in series if name.startswith("val/") and "iou" in name.lower()]
    scores = {name: series[name] for name in sorted(ious, key=lambda name: ("miou" not in name, name))}
    return losses, scores


def running_mean(values: list[float], window: int) -> list[float]:
    """Mean of the last `window` values at each position (of fewer at the start)."""
    means, total = [], 0.0
    for index, value in enumerate(values):
        total += value - (values[index - window] if index >= window else 0.0)
        means.append(total / min(index + 1, window))
    return means


def _draw(axes: Axes, series: Series, title: str, marker: str) -> None:
    """Draw one panel: a line for each series, named in a legend below it."""
    names = {"miou": "mIoU", "fb_iou": "FB-IoU", "iou": "IoU"}
    for number, (name, (steps, values)) in enumerate(series.items()):
        first, *rest = re.split(r"(?<=iou)[_/]", name.removeprefix("val/"), maxsplit=1)
        label = " ".join([names.get(first, first), *rest])
        # A score may equal the next one, of another prediction: dashes show the line below.
        colour, kind = _COLOURS[number % len(_COLOURS)], number % 2 if marker else number // len(_COLOURS)
        style = _STYLES[kind % len(_STYLES)]
        if len(values) >= _SMOOTH_FROM:
            axes.plot(steps, values, color=colour, alpha=0.18, linewidth=0.6)
            values = running_mean(values, len(values) // 50)
        axes.plot(steps, values, style, color=colour, label=label, linewidth=1.6, marker=marker, markersize=3.5)
    axes.set(title=title, xlabel="optimiser step")
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)
    if series:  # not on the lines
        axes.legend(fontsize=10, frameon=False, ncols=_COLUMNS, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    else:
        axes.text(0.5, 0.5, "nothing logged", transform=axes.transAxes, ha="center", va="center", color="#666666")


def plot_curves(metrics_csv: str | Path, output: str | Path, title: str = "") -> Path:
    """Draw the losses under `train/` and the `val/*iou*` columns of Lightning's CSV log as PNG; returns its path.

    Args:
        metrics_csv: The log.
        output: The PNG.
        title: What was trained, written on top.

    Raises:
        FileNotFoundError: If there is no log.
        ValueError: If the log has no `step` column.
    """
    losses, scores = _choose(read_metrics(metrics_csv))
    rows = -(-max(len(losses), len(scores), 1) // _COLUMNS)  # of the longer legend
    figure = new_figure(11, 4.4 + 0.23 * rows)
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    _draw(left, losses, "training loss by term", marker="")
    if losses and all(min(values) > 0 for _, values in losses.values()):
        left.set_yscale("log")
    _draw(right, scores, "validation IoU", marker="o")
    if scores:
        top = max(max(values) for _, values in scores.values())
        highest = min(1.0, 1.15 * top) if top > 0 else 1.0
        right.set_ylim(-0.02 * highest, 1.02 * highest)  # points on 0 and 1 are seen whole
    return save_figure(figure, output)


class TrainingCurves(Callback):
    """Draw `curves.png` beside the CSV log when fitting ends."""

    _title = ""

    def describe_run(self, description: Mapping[str, Any]) -> None:
        """Keep what runs, for the picture's title."""
        self._title = description["title"]

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Flush the CSV logger and draw; do nothing when no CSV log was kept."""
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger.save()
                metrics = Path(logger.log_dir) / "metrics.csv"
                try:
                    if metrics.is_file():
                        plot_curves(metrics, metrics.with_name("curves.png"), self._title)
                except OSError as error:  # a full disk costs the picture, not the run
                    log.warning("%s cannot be drawn: %s", metrics.with_name("curves.png"), error)
