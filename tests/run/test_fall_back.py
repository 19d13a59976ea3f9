"""Where training did not help, the untrained prototype is handed back."""

from __future__ import annotations

import pytest

from hdmnet.reporting.collect import collect
from hdmnet.run import fall_back
from tests.helpers import commands

WORDS = (*commands.SHAPES, "optim.fall_back=true", "dataset.num_val_episodes=6")


@pytest.fixture(scope="module")
def fallen_back(tmp_path_factory):
    """Four steps at a tiny rate from random weights: worse than no training."""
    return commands.run("train", tmp_path_factory.mktemp("fallen_back"), *WORDS)


@pytest.mark.long
def test_the_prototype_is_tested_and_is_the_best_checkpoint(fallen_back):
    result, folder = fallen_back.result, fallen_back.folder / "checkpoints"
    assert result["method"] == result["config"]["model"]["name"] == "prototype"
    training = result["training"]
    assert (training["method"], training["handed_back"], training["helped"]) == ("hdmnet", "prototype", False)
    validated = training["validation"]
    assert validated["num_episodes"] == 6
    assert validated["miou"] <= validated["untrained_prototype"]["miou"] == result["val_miou"]
    assert validated["support_mask_ones"]["miou"] >= 0
    assert result["checkpoint"] == str(folder / "best.ckpt")
    assert training["trained_checkpoint"] == str(folder / "trained.ckpt")
    assert commands.load(folder / "best.ckpt")["hdmnet"]["facts"]["method"] == "prototype"
    assert commands.load(folder / "trained.ckpt")["hdmnet"]["facts"]["method"] == "hdmnet"
    assert "training did not help: on 6 validation episodes hdmnet reaches" in fallen_back.out
    (run,) = collect([fallen_back.folder]).runs
    assert run.method == "prototype"


@pytest.mark.long
@pytest.mark.parametrize(("name", "method"), [("best", "prototype"), ("trained", "hdmnet")])
def test_both_checkpoints_are_evaluated(fallen_back, tmp_path, name, method):
    file = fallen_back.folder / "checkpoints" / f"{name}.ckpt"
    again = commands.run("evaluate", tmp_path, f"ckpt={file}", "trainer=cpu", "num_workers=0").result
    assert again["method"] == method
    if name == "best":
        assert commands.figures(again) == commands.figures(fallen_back.result)
        assert again["compared_with"]["same_figures"] is True


@pytest.mark.long
def test_a_run_that_is_resumed_has_its_trained_weights_again(fallen_back, tmp_path):
    result = fallen_back.folder / "result.json"
    result.rename(tmp_path / "result.json")
    last = fallen_back.folder / "checkpoints" / "last.ckpt"
    again = commands.run("train", fallen_back.folder.parents[2], *WORDS, f"resume={last}")
    assert again.result["method"] == "prototype"
    (tmp_path / "result.json").rename(result)


@pytest.mark.long
def test_a_training_that_helped_is_handed_back(fallen_back, tmp_path, monkeypatch):
    entry = {**fallen_back.result["training"]["validation"], "miou": 0.9}
    entry["untrained_prototype"] = {"miou": 0.5, "difference": 0.4, "interval": [0.3, 0.5], "is_above": True}
    monkeypatch.setattr(fall_back, "describe_baselines", lambda *arguments: entry)
    answer = commands.run("train", tmp_path, *WORDS)
    assert answer.result["method"] == "hdmnet"
    assert answer.result["training"]["helped"] is True
    assert answer.result["val_miou"] == 0.9
    assert "training helped: on 6 validation episodes hdmnet reaches 90.0, the untrained prototype 50.0" in answer.out
    assert not (answer.folder / "checkpoints" / "trained.ckpt").exists()


@pytest.mark.long
def test_a_gain_by_chance_is_not_handed_back(fallen_back, tmp_path, monkeypatch):
    entry = {**fallen_back.result["training"]["validation"], "miou": 0.52}
    entry["untrained_prototype"] = {"miou": 0.5, "difference": 0.02, "interval": [-0.01, 0.05], "is_above": False}
    monkeypatch.setattr(fall_back, "describe_baselines", lambda *arguments: entry)
    answer = commands.run("train", tmp_path, *WORDS)
    assert answer.result["method"] == "prototype"
    assert answer.result["training"]["helped"] is False
    assert "training helped by no more than chance: on 6 validation episodes hdmnet reaches 52.0" in answer.out


def test_trained_weights_are_put_back(tmp_path):
    (tmp_path / "best.ckpt").write_text("prototype")
    fall_back.undo(tmp_path)
    assert (tmp_path / "best.ckpt").read_text() == "prototype"
    (tmp_path / "trained.ckpt").write_text("trained")
    fall_back.undo(tmp_path)
    assert (tmp_path / "best.ckpt").read_text() == "trained"
    assert not (tmp_path / "trained.ckpt").exists()
