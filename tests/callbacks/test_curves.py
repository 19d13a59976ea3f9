"""Curves: reading Lightning's sparse CSV log, choosing columns, and drawing at the end of fitting."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from hdmnet.callbacks.curves import TrainingCurves, _choose, _draw, plot_curves, read_metrics, running_mean
from hdmnet.visual.figure import new_figure

LOG = """epoch,step,train/loss_step,train/loss_epoch,train/final,train/lr,val/miou,val/fb_iou,val/loss
0,0,2.0,,1.5,0.1,,,
0,1,1.0,,nan,0.1,,,
0,1,,1.5,,,,,
0,1,,,,,0.25,0.5,3.0
1,3,,0.5,,,,,
1,3,,,,,0.5,,2.0
"""


def test_sparse_rows_become_series_without_gaps_and_nan(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(LOG)
    series = read_metrics(tmp_path / "metrics.csv")
    assert series["train/loss_step"] == ([0, 1], [2.0, 1.0])
    assert series["train/final"] == ([0], [1.5])
    assert series["val/miou"] == ([1, 3], [0.25, 0.5])
    losses, scores = _choose(series)
    assert losses == {"loss": ([0, 1], [2.0, 1.0]), "final": ([0], [1.5])}  # per step where there is both
    assert set(scores) == {"val/miou", "val/fb_iou"}


def test_running_mean_by_hand() -> None:
    assert running_mean([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]


@pytest.mark.long
@pytest.mark.parametrize("log", [LOG, "epoch,step,other\n0,0,1\n"])
def test_picture_is_drawn_also_when_nothing_fits(tmp_path: Path, log: str) -> None:
    (tmp_path / "metrics.csv").write_text(log)
    path = plot_curves(tmp_path / "metrics.csv", tmp_path / "deep" / "curves.png")
    with Image.open(path) as picture:
        assert picture.size == (1430, 601)
        assert np.asarray(picture.convert("L")).std() > 5


@pytest.mark.parametrize("number", [1, 16])
def test_the_legend_lies_below_the_lines(number: int) -> None:
    figure = new_figure(11, 5.5)
    axes = figure.subplots()
    _draw(axes, {f"auxiliary_{one}": ([0, 1], [1.0, 2.0]) for one in range(number)}, "losses", "")
    figure.canvas.draw()
    legend, label = axes.get_legend(), axes.xaxis.label
    assert len(legend.get_texts()) == number
    assert 0 <= legend.get_window_extent().y0 < legend.get_window_extent().y1 <= label.get_window_extent().y0


def test_scores_have_the_fields_names() -> None:
    axes = new_figure(5, 3).subplots()
    _draw(axes, {name: ([0], [1.0]) for name in ("val/miou", "val/fb_iou_meta", "val/iou/cat")}, "scores", "o")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["mIoU", "FB-IoU meta", "IoU cat"]


def test_wrong_logs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no metrics at .*metrics\.csv"):
        plot_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"columns \['a', 'b'\]; expected Lightning's CSV log"):
        plot_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")


class _Task(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: Tensor) -> Tensor:
        loss = self.layer(batch).square().mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")  # nothing is read from disk
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # Lightning 2.6.6 under torch 2.15
@pytest.mark.parametrize("kept", [True, False])
def test_callback_draws_beside_the_log_where_one_is_kept(tmp_path: Path, kept: bool) -> None:
    logger = CSVLogger(tmp_path, name="", version="", flush_logs_every_n_steps=1000) if kept else False
    trainer = Trainer(
        default_root_dir=tmp_path,
        max_epochs=1,
        logger=logger,
        log_every_n_steps=1,
        callbacks=[TrainingCurves()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(_Task(), DataLoader(torch.ones(3, 1), batch_size=1))
    assert (tmp_path / "curves.png").is_file() is kept
    if kept:
        assert read_metrics(tmp_path / "metrics.csv")["train/loss"][0] == [0, 1, 2]
