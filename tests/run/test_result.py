"""result.json: fixed keys, NaN as null, atomic writing, reading back, and the printed table."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hdmnet.metrics import FewShotIoU
from hdmnet.run.result import (
    FIXED_KEYS,
    format_fold_table,
    left_out_notes,
    make_result,
    print_fold_table,
    read_result,
    write_result,
)
from hdmnet.runtime.provenance import git_state
from hdmnet.tasks.summary import summarise_seeds

NAMES = ("ring", "star", "moon")


def _entry(offset: float = 0.0) -> dict[str, Any]:
    """Two seeds: mIoU 0.5 and 0.6 (+ offset); "moon" never tested."""
    seeds = []
    for shift in (0.0, 0.1):
        iou = torch.tensor([0.4 + shift + offset, 0.6 + shift + offset, math.nan], dtype=torch.float64)
        fb_iou = torch.tensor(0.7 + shift + offset, dtype=torch.float64)
        seeds.append({"miou": iou.nanmean(), "fb_iou": fb_iou, "iou_per_class": iou, "counts": torch.tensor([6, 4, 0])})
    return summarise_seeds(seeds, NAMES)


def _result(figures: dict[str, Any] | None = None, **changes: object) -> dict[str, Any]:
    config: dict[str, Any] = {
        **{"fold": 0, "shot": 1, "seed": 0, "ablation": None, "dataset": {"name": "shapes"}},
        **{"backbone": {"name": "narrow"}, "model": {"num_stages": 3}, "paths": {"data_dir": Path("data")}},
        **{"selection": "best", "support_mask": "given", "protocol": {"name": "ours"}},
    }
    facts = {
        "manifest_sha256": ["ab", "cd"],
        "timings": {"fit": 1.5},
        "controls": {"support_mask_ones": 0.25, "every_object_foreground": 0.125},
    }
    changed = {key: changes.pop(key) for key in list(changes) if key in config}
    return make_result(config | changed, figures or {"final": _entry(), "meta": _entry(-0.05)}, facts, changes)


def test_summary_is_the_mean_over_seeds_of_pooled_figures() -> None:
    entry = _entry()
    assert entry["miou"] == pytest.approx(0.55)
    assert entry["miou_per_seed"] == pytest.approx([0.5, 0.6])
    assert entry["miou_std"] == pytest.approx(np.std([0.5, 0.6], ddof=1))
    assert entry["fb_iou"] == pytest.approx(0.75)
    assert entry["fb_iou_per_seed"] == pytest.approx([0.7, 0.8])
    assert entry["iou_per_class"]["star"] == pytest.approx(0.65)
    assert math.isnan(entry["iou_per_class"]["moon"])
    assert entry["counts_per_class"] == {"ring": 12, "star": 8, "moon": 0}
    assert entry["num_episodes"] == 10
    assert entry["num_classes_averaged"] == [2, 2]
    assert entry["classes_left_out"] == {"moon": {"seeds": 2, "reason": "no episode"}}


def test_a_class_is_told_that_some_seeds_lack_or_that_has_no_pixel() -> None:
    metric = FewShotIoU(3)
    target = torch.tensor([[[0, 1]], [[255, 255]]])
    metric.update(torch.ones(2, 1, 2, dtype=torch.long), target, torch.tensor([0, 2]))
    first = metric.compute()
    metric.update(torch.ones(2, 1, 2, dtype=torch.long), target[[0, 0]], torch.tensor([1, 2]))
    entry = summarise_seeds([first, metric.compute()], NAMES)
    assert entry["num_classes_averaged"] == [1, 3]
    assert entry["classes_left_out"] == {
        "star": {"seeds": 1, "reason": "no episode"},
        "moon": {"seeds": 1, "reason": "no pixel to count"},
    }
    assert left_out_notes(entry) == [
        "star has no episode in 1 of 2 test seeds; moon has no pixel to count in 1 of 2 test seeds: "
        "mIoU is the mean of the other classes, not of 3"
    ]
    assert left_out_notes(summarise_seeds([metric.compute()], NAMES)) == []


def test_all_classes_with_too_few_images_are_told_in_one_line() -> None:
    metric = FewShotIoU(3)
    metric.update(torch.ones(1, 1, 2, dtype=torch.long), torch.ones(1, 1, 2, dtype=torch.long), torch.tensor([1]))
    entry = summarise_seeds([metric.compute()] * 2, NAMES, too_few=("ring", "moon"))
    assert entry["classes_left_out"] == {name: {"seeds": 2, "reason": "too few images"} for name in ("ring", "moon")}
    assert left_out_notes(entry) == ["ring, moon have too few images: mIoU is the mean of the other classes, not of 3"]


def test_summary_takes_a_one_class_metric_and_refuses_wrong_names() -> None:
    metric = FewShotIoU(1)
    metric.update(torch.ones(1, 2, 2, dtype=torch.long), torch.ones(1, 2, 2, dtype=torch.long), torch.tensor([0]))
    entry = summarise_seeds([metric.compute()], ["ring"])
    assert entry["iou_per_class"] == {"ring": 1.0}
    assert math.isnan(entry["miou_std"])
    with pytest.raises(ValueError, match="1 classes but 3 class names"):
        summarise_seeds([metric.compute()], NAMES)
    with pytest.raises(ValueError, match="no test seed"):
        summarise_seeds([], NAMES)


def test_round_trip_has_the_fixed_keys_and_null_for_nan(tmp_path: Path) -> None:
    path = write_result(tmp_path / "run" / "result.json", _result(checkpoint=Path("best.ckpt")))
    assert [item.name for item in path.parent.iterdir()] == ["result.json"]  # no temporary file stays
    text = path.read_text(encoding="utf-8")
    assert "NaN" not in text
    found = read_result(path.parent)
    assert {**found, "config": None} == {**json.loads(text), "config": None}  # the config is brought into today's shape
    assert set(FIXED_KEYS) | {"controls", "git_dirty", "hardware"} <= set(found)
    assert found["test"]["iou_per_class"]["moon"] is None
    assert found["test"]["miou"] == pytest.approx(0.55)
    assert found["test_no_ensemble"]["miou_per_seed"] == pytest.approx([0.45, 0.55])
    assert found["config"]["paths"]["data_dir"] == "data"
    assert found["checkpoint"] == "best.ckpt"
    assert found["versions"]["torch"] == torch.__version__
    assert {"python", "torchvision", "lightning", "torchmetrics", "numpy", "albumentations", "hydra", "hdmnet"} < set(
        found["versions"]
    )
    assert found["hardware"]["cpu_cores"] >= 1


def test_a_failed_write_leaves_the_old_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_result(tmp_path / "result.json", _result(seed=1))

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("hdmnet.runtime.atomic.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_result(path, _result(seed=2))
    assert read_result(path)["seed"] == 1
    assert [item.name for item in tmp_path.iterdir()] == ["result.json"]


def test_writing_refuses_what_json_cannot_hold_and_missing_keys(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"result\.config\.model\.part is a object"):
        write_result(tmp_path / "result.json", _result(model={"part": object()}))
    with pytest.raises(ValueError, match=r"test lacks fb_iou, .*num_episodes"):
        write_result(tmp_path / "r.json", _result({"final": {"miou": 0.5}}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "not readable JSON"),
        ("[]", "holds a list; expected an object"),
        ('{"fold": 0}', "lacks dataset, shot, .*timings; it is no result"),
    ],
)
def test_reading_refuses_damaged_files(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=match) as error:
        read_result(path)
    assert "\n" not in str(error.value)


def test_reading_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no result at .*result\.json"):
        read_result(tmp_path)


def test_git_state_of_a_repository_and_of_an_installed_package(tmp_path: Path) -> None:
    def asked_anew() -> dict[str, str | bool | None]:
        git_state.cache_clear()
        return git_state(tmp_path)

    assert asked_anew() == {"git_commit": None, "git_dirty": None}
    package = tmp_path / "hdmnet" / "run"
    package.mkdir(parents=True)
    (package / "result.py").write_text("")
    who = ["-c", "user.name=t", "-c", "user.email=t@t"]
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "other"]):
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True)
    assert asked_anew()["git_commit"] is None  # untracked, as in a virtual environment inside a repository
    for arguments in (["add", "hdmnet"], ["commit", "-q", "-m", "code"]):
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True)
    state = asked_anew()
    assert len(str(state["git_commit"])) == 40
    assert state["git_dirty"] is False
    (package / "result.py").write_text("changed")
    assert git_state(tmp_path) == state  # of the code that was loaded, not of an edit made meanwhile
    assert asked_anew()["git_dirty"] is True


def test_fold_table_text(tmp_path: Path) -> None:
    expected = """\
hdmnet: shapes, fold 0, 1-shot, narrow, seed 0: 10 episodes x 2 test seeds
--------------------------------------------------------------------------
class (IoU in %)                      episodes       final   meta only
ring                                        12        45.0        40.0
star                                         8        65.0        60.0
moon                                         0           -           -
--------------------------------------------------------------------------
mIoU                                        20  55.0 ± 7.1  50.0 ± 7.1
FB-IoU                                                75.0        70.0
control: support mask all ones                        25.0
oracle: every true object foreground                  12.5
warning: moon has no episode: mIoU is the mean of the other classes, not of 3"""
    assert format_fold_table(_result()) == expected
    path = write_result(tmp_path / "result.json", _result())
    assert format_fold_table(read_result(path)) == expected  # null reads as undefined


def test_of_240_classes_those_of_lowest_and_highest_iou_are_shown() -> None:
    """As of FSS-1000's test; a quarter of the classes had no episode."""
    names = [f"class_{number:03d}" for number in range(240)]
    iou = torch.linspace(0.9, 0.1, 240, dtype=torch.float64)
    iou[::4] = math.nan
    seed = {"miou": iou.nanmean(), "fb_iou": torch.tensor(0.7), "iou_per_class": iou, "counts": iou.isfinite().long()}
    text = format_fold_table(_result({"final": summarise_seeds([seed], names)}))
    lines = text.splitlines()
    rows = [line.split()[0] for line in lines if line.startswith("class_")]
    defined = [name for place, name in enumerate(names) if place % 4]
    assert rows == [*defined[:-21:-1], *defined[19::-1]]  # ascending
    assert "of 240 classes those with the lowest and the highest IoU are shown, all are in result.json" in lines
    assert "class_072, class_076 and 40 more have no episode: mIoU is the mean of the other classes, not of 240" in text
    assert len(lines) < 60
    assert max(map(len, lines)) < 400


def test_what_stands_beside_the_result_is_printed_with_its_warning() -> None:
    one = {"miou": 0.5, "difference": 0.04, "interval": [0.01, 0.07], "is_above": True}
    other = {"miou": 0.56, "difference": -0.02, "interval": [-math.inf, math.inf], "is_above": None}
    baselines = {
        **{"num_episodes": 10, "miou": 0.54, "untrained_prototype": one, "support_mask_ones": other},
        **{"missing": {"third": "why"}, "warning": "it is no better"},
    }
    text = format_fold_table(_result(baselines=baselines, controls={"support_mask_ones": 0.56}))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "untrained prototype, same trunk 10 50.0" in lines
    assert lines.count("control: support mask all ones 10 56.0") == 1
    assert text.count("control:") == 1 + text.count("no control:")
    assert "on these episodes: 54.0; +4.0 on untrained prototype, same trunk (+1.0 to +7.0), -2.0 on" in text
    assert "no third: why" in lines
    assert lines[-1] == "warning: it is no better"
    training = {
        **{"helped": False, "method": "hdmnet", "handed_back": "prototype", "trained_checkpoint": "/a/trained.ckpt"},
        "validation": baselines,
    }
    told = format_fold_table(_result(training=training))
    assert "training helped by no more than chance: on 10 validation episodes hdmnet reaches 54.0" in told
    training["validation"] = {**baselines, "untrained_prototype": {**one, "difference": -0.04}}
    told = format_fold_table(_result(training=training))
    assert "training did not help: on 10 validation episodes hdmnet reaches 54.0, the untrained prototype 50.0" in told
    assert "trained.ckpt" in told


def test_fold_table_without_meta_prediction_on_a_plain_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = _result({"final": _entry()}, controls=None, ablation="no_prior")
    assert result["test_no_ensemble"] == result["test"]  # of HDMNet; another method has none
    assert _result({"final": _entry()}, model={"name": "other"})["test_no_ensemble"] is None
    print_fold_table(result)
    printed = capsys.readouterr().out
    assert "ablation no_prior" in printed
    assert "meta only" not in printed
    assert "control" not in printed
    assert max(map(len, printed.splitlines())) <= 100
    with monkeypatch.context() as patch, open("/dev/null", "w", encoding="ascii") as ascii_terminal:
        patch.setattr("sys.stdout", ascii_terminal)
        print_fold_table(result)


def test_a_method_is_named_and_its_further_predictions_have_entries(tmp_path: Path) -> None:
    result = _result({"final": _entry(), "coarse": _entry(-0.1)}, model={"name": "other"})
    assert result["method"] == "other"
    assert result["test_coarse"]["miou"] == pytest.approx(0.45)
    lines = format_fold_table(read_result(write_result(tmp_path / "result.json", result))).splitlines()
    assert lines[0].startswith("other: shapes, fold 0")
    assert lines[2].split()[-2:] == ["final", "coarse"]
    with pytest.raises(ValueError, match="test_coarse lacks"):
        write_result(tmp_path / "wrong.json", {**result, "test_coarse": {}})


@pytest.mark.parametrize(
    ("name", "method"), [("hdmnet.build_hdmnet", "hdmnet"), ("baseline.build_baseline", "baseline")]
)
def test_a_result_of_before_methods_had_names_gets_one(tmp_path: Path, name: str, method: str) -> None:
    result = _result(model={"_target_": f"hdmnet.models.{name}"})
    del result["method"]
    path = tmp_path / "result.json"
    path.write_text(json.dumps({**result, "config": {**result["config"], "paths": {}}}).replace("NaN", "null"))
    assert read_result(path)["method"] == method
