"""Methods beside each other, and one model under several protocols."""

from __future__ import annotations

import pytest

from hdmnet import report
from hdmnet.reporting.collect import collect
from hdmnet.reporting.costs import Costs, measure_costs
from hdmnet.reporting.formats import show
from hdmnet.reporting.leaderboard import draw_leaderboards, leaderboards, protocol_tables
from hdmnet.reporting.tables import make_tables
from tests.helpers.reports import CLASSES, write_run

METHODS = {"hdmnet": 0.4, "prototype": 0.6}


def method(name, **keys):
    return {"overrides": (f"model={name}", *keys.pop("words", ())), **keys}


@pytest.fixture
def runs_of(tmp_path):
    def write(*keys):
        for number, own in enumerate(keys):
            write_run(tmp_path, f"run{number}", **own)
        return collect([tmp_path]).runs

    return write


def cells(table):
    return [[show(cell) for cell in row] for row in table.rows]


@pytest.mark.long
def test_the_best_method_comes_first_with_its_folds_and_what_it_costs(runs_of):
    cost = {"processor_seconds": {"train": 90.0, "test": 20.0}, "peak_memory_mb": 700.0, "fb_iou": (0.75,)}
    several = [
        method(name, fold=fold, miou=(miou + fold / 10,), iou_per_class=dict.fromkeys(CLASSES, miou), **cost)
        for name, miou in METHODS.items() for fold in (0, 1)
    ]  # fmt: skip
    board, classes = leaderboards(runs_of(*several), lambda run: Costs(4.2, 2.8, 27.4, 10.6))
    assert [name for _, name in board.columns] == [
        *("setting", "recipe", "shot", "fold 0", "fold 1", "mean", "± folds", "± pictures"),
        *(
            "FB-IoU (%)",
            "learnable (M)",
            "decoder (G)",
            "decoder (ms)",
            "training (s)",
            "test episode (ms)",
            "memory (MB)",
            "runs",
        ),
    ]
    # 20 s over 100 episodes; the deviation of two folds 10 points apart is 10 / sqrt(2).
    costs = ["4.2", "10.6", "27.4", "90.0", "200.0", "700.0", "folds 0–1, 1 training seed"]
    assert cells(board) == [
        ["prototype", "default", "1", "60.0", "70.0", "65.0", "7.1", "–", "75.0", *costs],
        ["hdmnet", "default", "1", "40.0", "50.0", "45.0", "7.1", "–", "75.0", *costs],
    ]
    assert cells(classes)[0] == ["ant", "60.0", "40.0"]


def test_one_method_alone_or_without_its_masks_is_no_comparison(runs_of):
    runs = runs_of(method("hdmnet"), method("prototype", words=("support_mask=ones",)))
    assert leaderboards(runs, lambda run: None) == []


def test_results_of_before_tell_the_clocks_seconds_and_no_memory(runs_of):
    board, _ = leaderboards(runs_of(*(method(name, miou=(0.5,)) for name in METHODS)), lambda run: None)
    assert cells(board)[0][-7:-1] == ["–", "–", "–", "–", "10.0", "–"]  # 1 s over 100 episodes


def test_the_scatter_has_a_point_for_each_method(runs_of, tmp_path):
    runs = runs_of(*(method(name, miou=(miou,)) for name, miou in METHODS.items()))
    (figure,) = draw_leaderboards(runs, tmp_path / "figures")
    assert figure.path.is_file()
    assert figure.heading.startswith("shapes: accuracy over time")


@pytest.mark.long
def test_one_model_stands_under_each_protocol(runs_of):
    def tested(protocol, miou, checkpoint="/a/best.ckpt", entry_point="evaluate", fold=0):
        words = (f"protocol={protocol}",)
        return {"overrides": words, "miou": (miou,), "checkpoint": checkpoint, "entry_point": entry_point, "fold": fold,
                "protocol": protocol}  # fmt: skip

    runs = runs_of(
        tested("ours", 0.5, entry_point="train"), tested("hsnet", 0.4), tested("pfenet", 0.3),
        tested("ours", 0.9, checkpoint="/b/best.ckpt"),  # another model, under one protocol only
        *(tested(name, 0.7, checkpoint="/c/best.ckpt", fold=1) for name in ("ours", "hsnet", "pfenet")),
    )  # fmt: skip
    (table,) = protocol_tables(runs)
    assert [name for _, name in table.columns[4:]] == ["ours", "hsnet", "pfenet", "runs"]
    assert cells(table) == [
        ["shapes", "hdmnet", "resnet_narrow", "1", "60.0", "55.0", "50.0", "folds 0–1, 1 training seed"]
    ]


@pytest.mark.long
def test_table_7_has_other_methods_decoders(runs_of):
    runs = runs_of(
        {"ablation": "table7_stages1", "miou": (0.4, 0.4)},
        {"ablation": "table7_stages2", "miou": (0.5, 0.5)},
        method("hsnet", miou=(0.3, 0.3)),
    )
    made = make_tables(runs, lambda run: Costs(2.6, 1.3 * (run.method == "hdmnet"), 25.5, 20.6))
    (table,) = [table for table in made if table.number == 7]
    rows = {row[0]: row for row in cells(table)}
    assert [name for _, name in table.columns[5:9]] == ["mIoU (%)", "params (M)", "time (ms)", "operations (G)"]
    assert rows["HSNet [29]"][5:9] == ["30.0 ± 0.0", "2.6", "25.5", "20.6"]
    assert rows["Ours-S1"][5:9] == ["40.0 ± 0.0", "1.3", "25.5", "20.6"]
    assert rows["CyCTR [57]"][5:9] == ["–", "–", "–", "–"]


def test_costs_are_measured_beyond_the_backbone(runs_of):
    """Of the prototype: one product of the query's positions with two prototypes, and little besides."""
    words = ("dataset.image_size=65", "model.spread_steps=0", "model.encoder=backbone")
    (run,) = runs_of(method("prototype", words=words))
    costs = measure_costs(run)
    assert costs.learnable == 0
    assert costs.milliseconds is not None
    assert 0 <= costs.operations < 0.05


def test_the_page_begins_with_the_leaderboard(runs_of, tmp_path):
    runs_of(*(method(name, miou=(miou,)) for name, miou in METHODS.items()))
    assert report.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.html").read_text()
    assert text.index("<h2>Leaderboard</h2>") < text.index("Methods on shapes") < text.index("<h2>Tables</h2>")
    assert 'id="leaderboard_shapes"' in text
    assert (tmp_path / "out" / "tables" / "leaderboard_shapes.csv").is_file()
