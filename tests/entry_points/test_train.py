"""`train` and `evaluate` on the embedded data: the run's folder, the same numbers again, checkpoints."""

from __future__ import annotations

import csv
import math
import re

import pytest
import torch
from PIL import Image

from tests.helpers.commands import SHAPES, figures, load, run, same_weights


@pytest.fixture(scope="module")
def best(finished_run):
    return finished_run.folder / "checkpoints" / "best.ckpt"


def evaluate(best, tmp_path, *words):
    words = ("trainer=cpu", "num_workers=0", "callbacks.pictures=null", *words)
    return run("evaluate", tmp_path, f"ckpt={best}", *words)


# -------------------------------------------------------------------------------------------------- the run's folder


def test_a_run_leaves_what_design_promises(first_run):
    folder = first_run.folder
    for name in (
        *(
            "result.json",
            "checkpoints/best.ckpt",
            "checkpoints/last.ckpt",
            "metrics.csv",
            "episodes.csv",
            "curves.png",
            "base_learner.pt",
        ),
        *(".hydra/config.yaml", ".hydra/overrides.yaml", "pictures/test.png"),
    ):
        assert (folder / name).stat().st_size > 0, name
    for name in ("pictures/test.png", "curves.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 100
    assert len(list((folder / "pictures").glob("val_epoch*.png"))) == 2
    assert not (folder / "base_learner").exists()  # stage 1's own checkpoints are not kept beside the result


def test_the_result_has_the_fixed_keys_and_sound_values(finished_run):
    result = finished_run.result
    assert (result["dataset"], result["fold"], result["shot"], result["seed"]) == ("shapes", 0, 1, 0)
    assert (result["backbone"], result["ablation"]) == ("resnet_narrow", None)
    assert {"manifest_sha256", "config", "versions", "git_commit", "timings"} <= result.keys()
    assert {"data", "base_learner", "train", "test"} <= result["timings"].keys()
    assert result["config"]["dataset"]["image_size"] == 65
    for key in ("test", "test_no_ensemble"):
        entry = result[key]
        assert {"miou", "fb_iou", "miou_per_seed", "iou_per_class", "num_episodes"} <= entry.keys()
        assert len(entry["miou_per_seed"]) == 2
        assert math.isclose(entry["miou"], sum(entry["miou_per_seed"]) / 2)
        assert 0 <= entry["miou_interval"][0] <= entry["miou"] <= entry["miou_interval"][1] <= 1
        assert 0 < entry["fb_iou"] <= 1
        assert entry["num_episodes"] == 6
        assert set(entry["iou_per_class"]) <= {
            "striped star", "checkered gear", "dotted heart", "quartered leaf", "bricked house"
        }  # fmt: skip


def test_the_console_shows_bars_the_table_and_the_folder(first_run):
    out, err = first_run.out, first_run.err
    for text in ("stage 1 (base learner), epoch 0", "stage 2, epoch 0", "test: 100%", "striped star", "mIoU"):
        assert text in out, text
    *_, look, after, where = out.strip().splitlines()
    assert where == f"result, checkpoints and pictures: {first_run.folder}"
    assert look == f"look first at {first_run.folder / 'pictures' / 'test.png'}"
    assert re.fullmatch(rf"next: \S.* report \S*{first_run.folder.name} --out report   \(one page of it\)", after)
    plan = out[out.index("hdmnet on shapes:\n") :].splitlines()
    assert [line.split(":")[0] for line in plan[1:4]] == ["  1. stage 1", "  2. stage 2", "  3. test"]
    assert "15 base classes, 4 steps, or that of an earlier run" in plan[1]
    assert plan[3].startswith("  3. test: 5 classes of fold 0, 1-shot, 6 episodes x 2 seeds")
    assert "DataLoader" not in out
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.strip()]
    assert all("masks" in line for line in lines), lines  # the catalogs' bars; no warning of a library


def test_the_losses_are_logged_by_term_and_stage_and_so_is_the_validation(finished_run):
    with (finished_run.folder / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for name in (
        *("train/loss", "train/final", "train/distillation"),
        *("train/distillation_stage1", "train/distillation_stage2", "val/miou", "val/fb_iou"),
    ):
        values = [float(row[name]) for row in rows if row.get(name)]
        assert values, name
        assert all(math.isfinite(value) for value in values), name
    assert not any("meta" in name for name in rows[0])  # nothing is fused: there is one prediction


# ------------------------------------------------------------------------------------------------------ checkpoints


def test_checkpoints_hold_plain_containers_and_tensors(first_run):
    def plain(value):
        if isinstance(value, dict):
            return all(plain(key) and plain(item) for key, item in value.items())
        if isinstance(value, list | tuple):
            return all(map(plain, value))
        return value is None or isinstance(value, str | int | float | bool | torch.Tensor)

    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "base_learner.pt"):
        content = load(first_run.folder / name)  # weights only
        assert plain({key: value for key, value in content.items() if key != "state_dict"}), name
    assert load(first_run.folder / "checkpoints/best.ckpt")["hdmnet"]["config"]["fold"] == 0


def test_the_frozen_trunk_is_the_base_learner_bit_for_bit(first_run):
    given = load(first_run.folder / "base_learner.pt")["state_dict"]
    trained = load(first_run.folder / "checkpoints" / "last.ckpt")["state_dict"]
    assert any("running_mean" in key for key in given)
    for key, value in given.items():
        assert torch.equal(trained[f"model.trunk.base_learner.{key}"], value), key


def test_a_run_goes_on_from_the_weights_of_another(finished_run, start):
    """Its base learner comes with them: none is trained. What may learn has learnt, the trunk has not moved."""
    assert "stage 1" not in finished_run.out
    before, after = (load(path)["state_dict"] for path in (start, finished_run.folder / "checkpoints" / "last.ckpt"))
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert "model.meta_learner.decoder.head.4.weight" in moved
    assert not any(key.startswith("model.trunk.") for key in moved)


# -------------------------------------------------------------------------------------------------- the same again


@pytest.mark.long
def test_the_same_seed_gives_the_same_bits_whatever_loads_the_data(first_run, tmp_path):
    """Base learner included: the second run has a cache of its own."""
    again = run("train", tmp_path, *SHAPES, "num_workers=1")
    assert figures(again.result) == figures(first_run.result)
    for name in ("base_learner.pt", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        assert same_weights(again.folder / name, first_run.folder / name), name


@pytest.mark.long
def test_another_seed_gives_other_weights_on_the_same_test_episodes(finished_run, start, tmp_path):
    other = run("train", tmp_path, *SHAPES, f"ckpt={start}", "seed=1")
    assert other.result["manifest_sha256"] == finished_run.result["manifest_sha256"]
    assert not same_weights(*(answer.folder / "checkpoints" / "last.ckpt" for answer in (other, finished_run)))


@pytest.mark.long
def test_evaluating_the_best_checkpoint_gives_the_runs_own_figures(finished_run, best, tmp_path):
    assert figures(evaluate(best, tmp_path).result) == figures(finished_run.result)


@pytest.mark.long
def test_workers_and_batch_sizes_do_not_change_the_test(finished_run, best, tmp_path):
    assert figures(evaluate(best, tmp_path, "num_workers=3", "batch_size=3").result) == figures(finished_run.result)


# -------------------------------------------------------------------------------------------------------- evaluate


@pytest.mark.long
def test_the_test_protocol_can_be_chosen(finished_run, best, tmp_path):
    result = evaluate(best, tmp_path, "shot=2", "episodes=4", "seeds=3", "protocol=official").result
    assert (result["shot"], result["protocol"]) == (2, "official")
    assert len(result["test"]["miou_per_seed"]) == len(result["manifest_sha256"]) == 3
    assert result["test"]["num_episodes"] == 4
    assert result["manifest_sha256"] != finished_run.result["manifest_sha256"]


@pytest.mark.long
def test_a_checkpoint_can_be_tested_on_another_data_set(best, data_dir, tmp_path):
    """Its base classes, 15 and not COCO's 60, come from the file."""
    words = ("dataset=coco", "fold=1", "dataset.image_size=65", "dataset.min_area=128", f"paths.data_dir={data_dir}")
    result = evaluate(best, tmp_path, *words, "episodes=2", "seeds=1").result
    assert (result["dataset"], result["fold"], result["backbone"]) == ("coco", 1, "resnet_narrow")
    assert result["test"]["num_episodes"] == 2
    assert len(result["test"]["iou_per_class"]) == 20


@pytest.mark.long
def test_all_ones_support_masks_are_another_test_of_the_same_episodes(finished_run, best, tmp_path):
    result = evaluate(best, tmp_path, "support_mask=ones").result
    assert result["support_mask"] == "ones"
    assert result["manifest_sha256"] == finished_run.result["manifest_sha256"]
    assert figures(result) != figures(finished_run.result)


@pytest.mark.long
def test_the_controls_are_printed_beside_the_result(best, tmp_path):
    answer = evaluate(best, tmp_path, "dataset.controls=true")
    ones = evaluate(best, tmp_path, "support_mask=ones", "seeds=1").result["test"]["miou"]
    controls = answer.result["controls"]
    assert controls["support_mask_ones"] == pytest.approx(ones, rel=1e-12)  # classes are summed in another order
    assert 0 < controls["every_object_foreground"] < 1
    assert "oracle: every true object foreground" in answer.out
    assert answer.out.count("control: support mask all ones") == 1
    baselines = answer.result["baselines"]
    assert baselines["support_mask_ones"]["miou"] == pytest.approx(ones)
    assert baselines["missing"] == {}


def test_the_untrained_prototype_and_masks_of_ones_stand_beside_every_result(finished_run, best, tmp_path):
    """Of the training, of an evaluation, however it runs, and not where it is switched off."""
    trained = finished_run.result["baselines"]
    assert trained["num_episodes"] == 6
    assert trained["miou"] == pytest.approx(finished_run.result["test"]["miou_per_seed"][0])
    for more in (("reuse=false",), ("reuse_memory_gb=0.002", "batch_size=1")):
        again = evaluate(best, tmp_path, *more).result["baselines"]
        for name in ("untrained_prototype", "support_mask_ones"):
            assert again[name]["miou"] == pytest.approx(trained[name]["miou"], abs=2e-3), (more, name)
    short = evaluate(best, tmp_path, "baseline_episodes=2").result["baselines"]
    assert short["num_episodes"] == 2
    off = evaluate(best, tmp_path, "baseline_episodes=0")
    assert off.result["baselines"] is None
    assert figures(off.result) == figures(finished_run.result)
    assert "untrained prototype" not in off.out
