from __future__ import annotations

import json

import pytest

from hdmnet.reporting.collect import collect
from hdmnet.reporting.costs import Costs, count_parameters
from hdmnet.reporting.formats import show
from hdmnet.reporting.tables import make_tables
from tests.helpers.reports import write_run


@pytest.fixture
def tables_of(tmp_path):
    def make(*keys):
        for number, own in enumerate(keys):
            write_run(tmp_path, f"run{number}", **own)
        runs = collect([tmp_path]).runs
        return {table.number: table for table in make_tables(runs, lambda run: Costs(4.25, 2.75))}

    return make


def cells(table, row):
    return [show(cell) for cell in table.rows[row]]


@pytest.mark.long
def test_tables_1_and_2_by_fold_and_shot(tables_of):
    folds = [{"dataset": "coco", "fold": fold, "miou": (0.4 + fold / 10, 0.42 + fold / 10)} for fold in range(4)]
    tables = tables_of(*folds, {"dataset": "coco", "fold": 0, "shot": 5, "miou": (0.5,)}, {"miou": (0.3, 0.3)})
    assert cells(tables[1], -1) == [
        "resnet50", "HDMNet, this code: coco, resnet50", "41.0 ± 1.4", "51.0 ± 1.4", "61.0 ± 1.4", "71.0 ± 1.4",
        "56.0 ± 1.4", "50.0", "–", "–", "–", "–",
        "1-shot: folds 0–3, 1 training seed; 5-shot: fold 0, 1 training seed; ± 2 test seeds",
    ]  # fmt: skip
    assert cells(tables[2], -1)[:3] == ["resnet_narrow", "HDMNet, this code: shapes, resnet_narrow ‡", "30.0 ± 0.0"]
    assert cells(tables[2], -1)[6] == "–"  # no mean over four folds from one
    assert len(tables[1].rows) == 18
    assert tables[1].ours == [False] * 17 + [True]
    assert any(note.startswith("‡: another data set") for note in tables[2].notes)
    assert not any(note.startswith("‡") for note in tables[1].notes)


def test_table_3_has_fb_iou_and_parameters(tables_of):
    tables = tables_of({"dataset": "coco", "fb_iou": (0.7, 0.8)})
    assert cells(tables[3], -1)[2:5] == ["75.0 ± 7.1", "–", "4.2"]


def test_table_4_with_gains_where_the_folds_agree(tables_of):
    tables = tables_of(
        {"dataset": "coco", "ablation": "table4_baseline", "miou": (0.3,)},
        {"dataset": "coco", "ablation": "table4_ensemble", "miou": (0.31,)},
        {"dataset": "coco", "ablation": "table4_correlation", "fold": 1, "miou": (0.4,)},
        {"dataset": "coco", "miou": (0.353,)},
    )
    assert [cells(tables[4], row)[4:] for row in range(5)] == [
        ["44.7", "0.0", "30.0", "0.0", "fold 0, 1 training seed"],
        ["45.8", "+1.1", "31.0", "+1.0", "fold 0, 1 training seed"],
        ["47.9", "+3.2", "–", "–", ""],
        ["48.3", "+3.6", "40.0", "–", "fold 1, 1 training seed"],
        ["50.0", "+5.3", "35.3", "+5.3", "fold 0, 1 training seed"],
    ]
    assert tables[4].columns[6:] == [("coco, resnet50, 1-shot", name) for name in ("mIoU (%)", "Δ", "runs")]


def test_tables_5_6_and_7_beside_the_papers(tables_of):
    tables = tables_of(
        {"miou": (0.5, 0.6), "fold": 0},
        {"miou": (0.6, 0.7), "fold": 1},
        {"ablation": "table5_cosine", "miou": (0.2, 0.4)},
        {"ablation": "table6_none", "miou": (0.45, 0.45)},
        {"ablation": "table7_stages1", "miou": (0.25, 0.25)},
    )
    assert cells(tables[5], 1) == ["Cos", "49.2", "30.0 ± 14.1", "fold 0, 1 training seed; ± 2 test seeds"]
    assert cells(tables[5], 3)[1:] == ["50.0", "60.0 ± 7.1", "folds 0–1, 1 training seed; ± 2 test seeds"]
    assert cells(tables[6], 0)[:3] == ["w/o", "47.9", "45.0 ± 0.0"]
    assert cells(tables[7], 3)[:7] == ["Ours-S1", "47.1", "1.3", "15.1", "8.8", "25.0 ± 0.0", "2.8"]
    assert cells(tables[7], 0)[5:7] == ["–", "–"]
    assert cells(tables[7], 4)[5:7] == ["–", "–"]
    assert tables[9].notes == ["No runs."]
    assert tables[9].runs == []


def test_table_8_from_runs_or_from_their_controls(tables_of):
    folds = [{"fold": fold, "miou": (0.5,), "controls": {"support_mask_ones": 0.2 + fold / 100}} for fold in range(4)]
    tables = tables_of(*folds, {"dataset": "pascal", "miou": (0.6,)},
                       {"dataset": "pascal", "ablation": "table8_without_mask", "miou": (0.4,)})  # fmt: skip
    ours = [cells(tables[8], row) for row in range(4, 8)]
    assert ours[0][:3] == ["this code: pascal, resnet50, 1-shot", "w/ Mˢ", "60.0"]
    assert ours[1][1:4] == ["w/o Mˢ", "40.0", "–"]
    assert ours[2][2:7] == ["50.0", "50.0", "50.0", "50.0", "50.0"]
    assert ours[3][2:7] == ["20.0", "21.0", "22.0", "23.0", "21.5"]
    assert ours[3][7] == "folds 0–3, 1 training seed; control of the same runs, first test seed"


def test_table_9_sets_ours_below_the_papers(tables_of):
    tables = tables_of({"miou": (0.5,)}, {"ablation": "table9_t0.5", "miou": (0.4,)})
    label = "shapes, resnet_narrow, 1-shot ‡"
    assert [cells(tables[9], row)[:4] for row in range(4)] == [
        ["0.5", "paper, COCO-20ⁱ", "42.1", "54.9"],
        ["0.5", label, "40.0", "–"],
        ["1", "paper, COCO-20ⁱ", "43.8", "55.3"],
        ["1", label, "50.0", "–"],
    ]


def test_methods_stand_apart_and_are_named(tables_of):
    tables = tables_of(
        {"dataset": "coco", "miou": (0.5,)}, {"dataset": "coco", "overrides": ("model=baseline",), "miou": (0.3,)}
    )
    ours = [cells(tables[1], row)[1:3] for row in (-2, -1)]
    assert ours == [
        ["HDMNet, this code: coco, resnet50, hdmnet", "50.0"],
        ["this code: coco, resnet50, baseline", "30.0"],
    ]
    assert tables[9].runs == []  # neither one fills a table of the other's rows


def test_a_method_from_outside_has_rows_of_its_own(tables_of, tmp_path):
    tables_of({"dataset": "coco", "miou": (0.5,)}, {"dataset": "coco", "miou": (0.4,)})
    path = tmp_path / "run1" / "result.json"
    result = json.loads(path.read_text())
    result["method"] = result["config"]["model"]["name"] = "mine"
    result["config"]["model"]["_target_"] = "mine.Method"
    result["config"]["loss"] = {"_target_": "mine.Loss"}
    path.write_text(json.dumps(result))
    tables = {table.number: table for table in make_tables(collect([tmp_path]).runs, lambda run: None)}
    assert [cells(tables[1], row)[1:3] for row in (-2, -1)] == [
        ["HDMNet, this code: coco, resnet50, hdmnet", "50.0"],
        ["this code: coco, resnet50, mine", "40.0"],
    ]
    assert "coco, resnet50, mine: fold 0, 1 training seed; set as in conf/" in tables[1].notes


@pytest.mark.long
def test_parameters_are_those_of_the_model_that_ran(tmp_path):
    write_run(tmp_path, "one", ablation="table7_stages1")
    write_run(tmp_path, "three")
    one, three = (count_parameters(run) for run in collect([tmp_path]).runs)
    assert 0 < one.transformer < three.transformer < three.learnable < 10
    # The layers in front of the transformer do not depend on the stages; the rest is the transformer's.
    assert three.learnable - one.learnable == pytest.approx(three.transformer - one.transformer)
