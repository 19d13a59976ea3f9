"""Tables of a user's own data: by its own folds and classes, beside what conf/ says of such data."""

from __future__ import annotations

import json

import pytest

from hdmnet import report
from hdmnet.reporting.collect import collect
from hdmnet.reporting.costs import Costs
from hdmnet.reporting.formats import show, to_csv
from hdmnet.reporting.own import own_tables
from hdmnet.reporting.settings import deviations
from hdmnet.reporting.tables import make_tables
from tests.helpers.reports import make_result, write_run

MINE = {"dataset": "folder", "overrides": ("dataset.name=mine", "dataset.root=/data/mine", "dataset.num_folds=2")}
WHOLE = {
    "dataset": "folder",
    "overrides": ("dataset.name=street", "dataset.root=/data/street", "dataset.num_folds=null"),
}


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
def test_settings_are_compared_with_those_of_such_data(runs_of):
    mine, tree = runs_of(MINE, {"dataset": "coco", "overrides": ("dataset.root=/elsewhere",)})
    assert deviations(mine) == ["dataset.num_folds=2"]
    assert deviations(tree) == []


def test_of_a_class_that_conf_does_not_know_nothing_of_the_data_is_compared(runs_of):
    (run,) = runs_of(MINE)
    run.config["dataset"]["_target_"] = "my_package.MyDataset"
    assert run.is_own_data
    assert deviations(run) == []


@pytest.mark.long
def test_own_data_is_in_none_of_the_papers_tables(runs_of):
    runs = runs_of(MINE, WHOLE, {"dataset": "pascal"})
    papers = {table.number: table for table in make_tables(runs, lambda run: Costs(1.0, 1.0))}
    assert [len(papers[number].runs) for number in (1, 2, 3)] == [0, 1, 1]
    assert [table.number for table in own_tables(runs)] == [
        "own_mine",
        "own_mine_classes",
        "own_street",
        "own_street_classes",
    ]


def test_folds_are_those_of_the_data_and_shots_have_rows(runs_of, tmp_path):
    parts = [
        {**MINE, "fold": fold, "shot": shot, "miou": (0.2 + fold / 10,), "fb_iou": (0.6,)}
        for fold, shot in ((0, 1), (1, 1), (1, 3))
    ]
    folds, classes = own_tables(runs_of(*parts))
    assert folds.heading == "Your data set mine"
    assert [name for _, name in folds.columns] == [
        *("backbone", "setting", "shot", "fold 0", "fold 1", "mean", "FB-IoU (%)", "classes", "runs")
    ]
    assert cells(folds) == [
        ["resnet50", "mine, resnet50", "1", "20.0", "30.0", "25.0", "60.0", "5", "folds 0–1, 1 training seed"],
        ["resnet50", "mine, resnet50", "3", "–", "30.0", "–", "60.0", "5", "fold 1, 1 training seed"],
    ]
    assert [name for _, name in classes.columns] == ["class", "1-shot", "3-shot"]
    (one, _) = own_tables([run for run in collect([tmp_path]).runs if run.result["fold"] == 0])
    assert cells(one)[0][3:5] == ["20.0", "–"]
    assert cells(classes)[0] == ["ant", "50.0", "50.0"]


def test_without_folds_all_classes_are_one_column_whatever_the_fold_of_the_training(runs_of, tmp_path):
    ious = {"ant": 0.5, "bee": None, "cat": 0.25}
    trained = {"trained_on": {"dataset": "coco", "fold": 2, "shot": 1}}
    about = {**WHOLE, **trained, "entry_point": "evaluate", "fold": 2, "miou": (0.375,), "iou_per_class": ious}
    folds, classes = own_tables(runs_of(about))
    assert [name for _, name in folds.columns][3:5] == ["all classes", "FB-IoU (%)"]
    assert cells(folds)[0][:4] == ["resnet50", "street, resnet50, trained on coco", "1", "37.5"]
    assert cells(folds)[0][5] == "2 of 3"
    assert cells(classes) == [["ant", "50.0"], ["bee", "–"], ["cat", "25.0"]]
    assert folds.notes == ["street, resnet50, trained on coco: fold 2, 1 training seed; set as in conf/"]


def test_of_240_classes_the_extremes_are_shown_and_all_are_in_the_csv(runs_of):
    ious = {f"class_{number:03d}": (number * 7 % 240) / 240 for number in range(240)} | {"class_000": None}
    _, classes = own_tables(runs_of({**WHOLE, "iou_per_class": ious}))
    shown = [float(row[1]) for row in cells(classes)]
    assert len(shown) == 40
    assert shown == sorted(shown)
    assert (shown[0], shown[19], shown[20], shown[-1]) == (0.4, 8.3, 91.7, 99.6)
    assert classes.notes == [
        "Of 240 classes those of lowest and of highest IoU by the first column; all are in the CSV"
    ]
    assert len(to_csv(classes).splitlines()) == 241


def test_what_was_trained_on_is_said_in_every_table(runs_of):
    about = {"dataset": "pascal", "entry_point": "evaluate", "trained_on": {"dataset": "coco", "fold": 0, "shot": 5}}
    (run,) = runs_of(about)
    table = next(table for table in make_tables([run], lambda run: None) if table.number == 2)
    assert table.rows[-1][1] == "HDMNet, this code: pascal, resnet50, trained on coco 5-shot"


@pytest.mark.long
def test_report_shows_own_data_first_and_writes_its_tables(tmp_path, capsys):
    for fold in (0, 1):
        write_run(tmp_path, f"runs/{fold}", **MINE, fold=fold)
    write_run(tmp_path, "runs/paper", dataset="coco")
    (tmp_path / "out/tables").mkdir(parents=True)
    (tmp_path / "out/tables/own_gone.md").touch()
    assert report.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--episodes", "0"]) == 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert (
        page.index("Your data sets") < page.index("Your data set mine, IoU (%) of every class") < page.index("Table 1.")
    )
    assert "Comparison on PASCAL" not in page.partition("Table 1.")[0]
    written = sorted(path.name for path in (tmp_path / "out/tables").glob("own*"))
    assert written == [f"own_mine{part}.{kind}" for part in ("", "_classes") for kind in ("csv", "md", "tex")]
    assert "Paper's numbers" not in (tmp_path / "out/tables/own_mine.md").read_text()
    assert '"1","fold 0"' not in (tmp_path / "out/tables/own_mine.csv").read_text()
    told = capsys.readouterr().out.splitlines()
    assert {"3 runs read", "Your data set mine: 2 runs", "Table 1: 1 runs", "Table 2: no runs"} <= set(told)


def hydra_folder(folder, command, *, mode="RUN", more=None):
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "hydra.yaml").write_text(f"hydra:\n  mode: {mode}\n  job:\n    config_name: {command}\n")
    if more is not None:
        (folder / more).write_text("")
    return folder


def test_predictions_and_refused_commands_are_no_unfinished_runs(tmp_path):
    good = write_run(tmp_path, "good")
    hydra_folder(tmp_path / "pictures", "predict", more="a_mask.png")
    hydra_folder(tmp_path / "page", "demo", more="x")
    hydra_folder(tmp_path / "refused", "train")
    stopped = hydra_folder(tmp_path / "stopped", "train", more="metrics.csv")
    broken = hydra_folder(tmp_path / "broken", "evaluate", more="x")
    job = hydra_folder(tmp_path / "sweep" / "job", "train", mode="MULTIRUN")
    found = collect([tmp_path])
    assert [run.folder for run in found.runs] == [good]
    assert sorted(found.warnings) == sorted(
        f"unfinished run, left out: {folder} has no result.json" for folder in (stopped, broken, job)
    )


def test_results_of_earlier_versions_say_nothing_of_the_training(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text(json.dumps(make_result(entry_point="evaluate")))
    (run,) = collect([tmp_path]).runs
    assert run.trained_on is None
