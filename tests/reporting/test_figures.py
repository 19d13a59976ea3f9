from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from hdmnet.reporting.collect import collect
from hdmnet.reporting.figures import (
    class_counts,
    distillation_pairs,
    draw_class_counts,
    draw_curves,
    draw_episode_numbers,
    pairs_of,
)
from hdmnet.reporting.maps import draw_maps
from hdmnet.run.result import read_result, write_result
from tests.helpers.reports import TINY, write_run

HEADER = "epoch,step,train/final,val/miou\n"


@pytest.fixture
def runs_of(tmp_path):
    def write(*keys):
        for number, own in enumerate(keys):
            folder = write_run(tmp_path, f"run{number}", **own)
            rows = [f"0,{step},{1 / (step + 1):.3f}," for step in range(0, 100, 10)] + ["0,99,,0.4"]
            (folder / "metrics.csv").write_text(HEADER + "\n".join(rows) + "\n")
        return collect([tmp_path]).runs

    return write


def is_drawn(figure):
    """Whether the PNG is whole, and more than paper: its size in pixels."""
    with Image.open(figure.path) as image:
        picture = np.asarray(image.convert("RGB"))
    assert picture.std() > 5
    return picture.shape[1], picture.shape[0]


@pytest.mark.long
def test_curves_with_and_without_distillation_by_fold(runs_of, tmp_path):
    keys = [{"fold": fold, "ablation": name} for fold in (0, 2) for name in (None, "table6_none")]
    runs = runs_of(*keys, {"fold": 3, "ablation": "table6_none"}, {"fold": 0, "seed": 1}, {"ablation": "table9_t2"})
    (study,) = distillation_pairs(runs, lambda run: True)
    assert [(one.folder.name, two.folder.name) for one, two in pairs_of(study)] == [("run0", "run1"), ("run2", "run3")]
    (figure,) = draw_curves(runs, tmp_path / "figures")
    assert figure.path.stem == "figure6_shapes"
    assert "shapes, resnet_narrow, 1-shot, training seed 0." in figure.caption
    assert is_drawn(figure) == (936, 728)  # 7.2 x 5.6 inches at 130 dots


def test_curves_over_seeds_and_none_without_a_pair(runs_of, tmp_path):
    runs = runs_of(*({"seed": seed, "ablation": name} for seed in (0, 1) for name in ("none", "table6_none")))
    (figure,) = draw_curves(runs, tmp_path / "figures")
    assert "training seeds 0, 1 (thin), their mean thick" in figure.caption
    is_drawn(figure)
    assert draw_curves([run for run in runs if run.ablation is None], tmp_path) == []


def test_curves_of_runs_too_short_to_log_a_loss(runs_of, tmp_path):
    runs = runs_of({}, {"ablation": "table6_none"})
    for run in runs:
        (run.folder / "metrics.csv").write_text(HEADER + "0,3,,0.4\n")
    (figure,) = draw_curves(runs, tmp_path / "figures")
    is_drawn(figure)


def test_classes_in_a_picture_by_fold(runs_of, tmp_path):
    overrides = (*TINY, f"paths.cache_dir={tmp_path / 'none'}")
    (run,) = runs_of({"overrides": overrides})
    counts = class_counts(run)
    assert list(counts) == [0, 1, 2, 3]
    assert [sum(numbers) for numbers in counts.values()] == [20] * 4  # each validation picture has a novel object
    (figure,), warnings = draw_class_counts([run], tmp_path / "figures")
    assert warnings == []
    assert is_drawn(figure) == (910, 494)
    assert not (tmp_path / "none").exists()


def test_a_data_set_that_is_not_there_is_left_out(runs_of, tmp_path):
    runs = runs_of({"dataset": "coco", "overrides": (f"paths.data_dir={tmp_path / 'nothing'}",)})
    figures, (warning,) = draw_class_counts(runs, tmp_path)
    assert figures == []
    assert warning.startswith("Figure 8: coco left out, its pictures are not there: ")


def test_few_and_many_episodes_over_seeds(runs_of, tmp_path):
    runs = runs_of(
        {"episodes": 1000, "miou": (0.4, 0.5, 0.45)},
        {"episodes": 10000, "miou": (0.45, 0.46, 0.44)},
        {"fold": 1, "episodes": 1000},
        {"fold": 1, "episodes": 1000, "seed": 1},
        {"fold": 2, "episodes": 1000, "miou": (0.4,)},
        {"fold": 2, "episodes": 10000, "miou": (0.4,)},  # one test seed has no spread
    )
    (figure,) = draw_episode_numbers(runs, tmp_path / "figures")
    assert "with 1,000 and 10,000 episodes a seed; shapes" in figure.caption
    assert is_drawn(figure) == (780, 598)  # fold 0 only
    assert draw_episode_numbers(runs[2:], tmp_path) == []


@pytest.mark.long
def test_correlation_maps_of_a_pair_of_checkpoints(finished_run, tmp_path):
    for name, weight in (("with", 1.0), ("without", 0.0)):
        shutil.copytree(finished_run.folder / "checkpoints", tmp_path / name / "checkpoints")
        result = read_result(finished_run.folder)
        result["config"]["loss"]["distillation"] = weight
        result["checkpoint"] = str(tmp_path / name / "checkpoints" / "last.ckpt")
        write_result(tmp_path / name / "result.json", result)
    runs = collect([tmp_path]).runs
    figures, warnings = draw_maps(runs, tmp_path / "figures", 3)
    assert warnings == []
    assert [figure.path.stem for figure in figures] == ["figure7_shapes", "figure12_shapes", "figure13_shapes"]
    heights = [is_drawn(figure)[1] for figure in figures]
    row = 288  # one episode
    assert heights == [40 + 4 * row, 40 + 3 * row, 40 + 3 * row]
    assert draw_maps(runs, tmp_path, 0) == ([], [])
    (tmp_path / "with" / "checkpoints" / "last.ckpt").write_bytes(b"damaged")
    figures, (warning,) = draw_maps(runs, tmp_path, 1)
    assert figures == []
    assert warning.startswith("Figures 7, 12 and 13: shapes left out, its runs cannot be shown: checkpoint ")
