"""Which classes lie under a model's false positives, as a table and a picture (paper Sec. 5: similar classes)."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray

from hdmnet.data.types import EvaluationBatch
from hdmnet.tasks.feature_store import resize
from hdmnet.visual.figure import new_figure, save_figure

BACKGROUND = "background"
MOST_COLUMNS = 24  # in the picture; the table holds all

if TYPE_CHECKING:
    from hdmnet.data.datasets.base import SegmentationDataset


class FalsePositives(Callback):
    """Counts what lies under the false positives of a test, of one process.

    Args:
        dataset: The data set that is tested, for all classes of the queries.
        num_classes: That are searched for, R.

    Attributes:
        counts: (R, V) pixels of the last test, as in `to_csv`.
    """

    def __init__(self, dataset: SegmentationDataset, num_classes: int) -> None:
        self.dataset = dataset
        self.counts = np.zeros((num_classes, 1 + len(dataset.class_names)), dtype=np.int64)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier test."""
        self.counts[:] = 0

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Count what the batch holds."""
        self.add(outputs)

    def add(self, outputs: Mapping[str, Any]) -> None:
        """Count the episodes of a batch, of what the task's test step returns."""
        batch = outputs["episode"]
        if isinstance(batch, EvaluationBatch):  # one of the B stands for several episodes
            queries = [key.image_id for key in batch.queries]
            masks, places, items = batch.query_masks_original, batch.mask_index, batch.item
        else:
            queries, masks = batch.query_id, batch.query_mask_original
            places = items = list(range(len(queries)))
        logits, classes = outputs["output"].logits, batch.class_index.reshape(-1).tolist()
        for item, (place, query) in enumerate(zip(places, queries, strict=True)):
            truth = masks[place].cpu()
            resized = resize(logits[item : item + 1], truth.shape)[0]
            wrong = (resized[1] > resized[0]).cpu() & (truth == 0)  # as `count_pixels` decides
            self.counts[classes[item]] += items.count(item) * self._classes_under(wrong.numpy(), query)

    def _classes_under(self, wrong: NDArray[np.bool_], query: str) -> NDArray[np.int64]:
        """(V,) pixels of (H0, W0) by the class that they have; of several each."""
        values = np.zeros(self.counts.shape[1], dtype=np.int64)
        background = wrong.copy()
        for value in self.dataset.class_areas(query):
            of_class = self.dataset.read_class_mask(query, value) == 1
            values[value] = (wrong & of_class).sum()
            background &= ~of_class
        values[0] = background.sum()
        return values


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
