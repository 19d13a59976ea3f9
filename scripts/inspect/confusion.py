"""Which classes lie under a model's false positives, as a table and a picture (paper Sec. 5: similar classes)."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hdmnet.visual.figure import new_figure, save_figure

BACKGROUND = "background"
MOST_COLUMNS = 24  # in the picture; the table holds all


def to_csv(counts: NDArray[np.int64], predicted: NDArray[np.int64], rows: Sequence[str], columns: Sequence[str]) -> str:
    """The counts as CSV.

    Args:
        counts: (R, V) pixels: false positives of the class searched for, by the class that lies under them.
        predicted: (R,) pixels called foreground in all.
        rows: R names of the classes searched for.
        columns: V names of what lies under: background first.

    Returns:
        A line a row, with the pixels called foreground, the false ones, and those of each column.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", "predicted_pixels", "false_positive_pixels", *columns])
    for name, every, row in zip(rows, predicted.tolist(), counts.tolist(), strict=True):
        writer.writerow([name, every, sum(row), *row])
    return text.getvalue()


def summarise(
    counts: NDArray[np.int64], predicted: NDArray[np.int64], rows: Sequence[str], columns: Sequence[str]
) -> str:
    """The table for a terminal: of each class the share of its prediction that is false, and under what it lies most.

    Args:
        counts: As in `to_csv`, as the others.
        predicted: (R,) pixels.
        rows: R names.
        columns: V names.

    Returns:
        Lines of text.
    """
    wide = max(len(name) for name in rows)
    lines = [f"{'class':{wide}}  false, % of its prediction: under which classes"]
    for name, every, row in zip(rows, predicted, counts, strict=True):
        shares = 100 * row / max(int(every), 1)
        largest = [i for i in np.argsort(-shares, kind="stable")[:4] if shares[i] > 0]
        under = ", ".join(f"{columns[i]} {shares[i]:.1f}" for i in largest)
        lines.append(f"{name:{wide}}  {shares.sum():5.1f}: {under or 'nothing'}")
    return "\n".join(lines)


def draw(
    counts: NDArray[np.int64],
    predicted: NDArray[np.int64],
    rows: Sequence[str],
    columns: Sequence[str],
    path: Path,
    title: str,
) -> None:
    """Draw the shares: a cell is the part of a class's prediction that lies on another class, in per cent.

    Args:
        counts: As in `to_csv`, as the next three.
        predicted: (R,) pixels.
        rows: R names.
        columns: V names.
        path: PNG to write.
        title: Above the picture.
    """
    shares = 100 * counts / np.maximum(predicted, 1)[:, None]
    # Background first, then the classes that are hit at all, the most hit before the others.
    order = np.argsort(-shares[:, 1:].sum(0), kind="stable") + 1
    shown = [0, *(int(i) for i in order if shares[:, i].any())][:MOST_COLUMNS]
    figure = new_figure(2.6 + 0.5 * len(shown), 2.4 + 0.38 * len(rows))
    axes = figure.subplots()
    cells = shares[:, shown]
    image = axes.imshow(cells, cmap="viridis", vmin=0, aspect="auto")
    axes.set_xticks(range(len(shown)), [columns[i] for i in shown], rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axes.set(title=title, xlabel="what lies under the false positives", ylabel="class searched for")
    axes.title.set_fontsize(9)
    for row, column in np.ndindex(cells.shape):
        value = cells[row, column]
        if value >= 0.05:
            dark = value < 0.6 * cells.max()
            axes.text(
                column, row, f"{value:.1f}", ha="center", va="center", fontsize=7, color="white" if dark else "black"
            )
    figure.colorbar(image, label="% of the prediction")
    save_figure(figure, path)
