"""Methods that have nothing to learn, through every entry point: no stage 2, and no checkpoint where none is given."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hdmnet import Segmenter, report
from hdmnet.reporting.collect import collect
from tests.helpers import commands

WORDS = (*commands.WHOLE, "model=prototype", "model.encoder=backbone", "dataset.num_val_episodes=6")
MACHINE = ("trainer=cpu", "num_workers=0")
UNTRAINED = ("backbone=resnet18", "backbone.weights=null", "device=cpu", "image_size=65")


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    return commands.run("train", tmp_path_factory.mktemp("untrained"), *WORDS)


@pytest.fixture
def picture(tmp_path):
    """A red square on grey, and its mask."""
    pixels = np.full((60, 80, 3), 128, np.uint8)
    pixels[10:40, 20:60] = 255, 0, 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(255 * (pixels[..., 1] == 0).astype(np.uint8)).save(tmp_path / "a_mask.png")
    return tmp_path / "a.png"


@pytest.mark.long
def test_train_tests_it_as_it_is_and_leaves_a_checkpoint(untrained):
    result = untrained.result
    assert "model=prototype has nothing to learn" in untrained.out
    assert result["method"] == "prototype"
    assert {"data", "validation", "test"} <= result["timings"].keys()
    assert "train" not in result["timings"]
    assert 0 <= result["val_miou"] <= 1
    assert result["test"]["num_episodes_per_seed"] == [6, 6]
    best = untrained.folder / "checkpoints" / "best.ckpt"
    assert result["checkpoint"] == str(best)
    assert [file.name for file in best.parent.iterdir()] == ["best.ckpt"]
    state = commands.load(best)["state_dict"]
    assert state
    assert all(key.startswith("model.trunk.backbone.") for key in state)
    assert not list(untrained.folder.parents[2].rglob("base_learner*"))
    assert (untrained.folder / "pictures" / "test.png").is_file()


@pytest.mark.long
def test_it_is_tested_without_a_validation_where_none_is_wanted(tmp_path):
    result = commands.run(
        "train", tmp_path, *WORDS, "trainer.limit_val_batches=0", "dataset.num_test_episodes=2"
    ).result
    assert result["val_miou"] is None
    assert result["test"]["num_episodes_per_seed"] == [2, 2]
    assert result["checkpoint"] is not None


@pytest.mark.long
def test_the_checkpoint_is_evaluated_to_the_same_figures(untrained, tmp_path):
    best = untrained.folder / "checkpoints" / "best.ckpt"
    again = commands.run("evaluate", tmp_path, f"ckpt={best}", *MACHINE)
    assert commands.figures(again.result) == commands.figures(untrained.result)
    assert again.result["compared_with"]["same_figures"] is True


@pytest.mark.long
def test_evaluate_needs_no_checkpoint(untrained, tmp_path):
    words = (*(word for word in WORDS if "num_val_episodes" not in word), "episodes=6")
    alone = commands.run("evaluate", tmp_path, *words)
    assert alone.result["checkpoint"] is None
    assert commands.figures(alone.result) == commands.figures(untrained.result)  # the same seed: the same random trunk
    (run,) = collect([alone.folder]).runs
    assert run.is_evaluation
    assert run.trained is run.config  # nothing was to be trained: no run is missed


@pytest.mark.long
def test_several_views_are_evaluated(untrained, tmp_path):
    best, views = untrained.folder / "checkpoints" / "best.ckpt", ("test_scales=[1.0,0.5]", "test_flip=true")
    reused = commands.run("evaluate", tmp_path / "reused", f"ckpt={best}", *views, *MACHINE)
    assert commands.figures(reused.result) != commands.figures(untrained.result)
    apart = commands.run("evaluate", tmp_path / "apart", f"ckpt={best}", *views, "reuse=false", *MACHINE)
    assert apart.result["test"]["miou"] == pytest.approx(reused.result["test"]["miou"], abs=1e-3)
    assert reused.result["baselines"]["untrained_prototype"]["miou"] > 0  # at one view


@pytest.mark.long
def test_a_row_of_the_report(untrained, tmp_path):
    assert report.main([str(untrained.folder), "--out", str(tmp_path / "report")]) == 0
    table = json.loads((untrained.folder / "result.json").read_text())
    assert table["config"]["model"]["encoder"] == "backbone"
    assert "prototype" in (tmp_path / "report" / "report.html").read_text()


@pytest.mark.long
def test_a_stopped_run_begins_again(untrained, tmp_path):
    (untrained.folder / "result.json").rename(tmp_path / "result.json")
    try:
        again = commands.run("train", untrained.folder.parents[2], *WORDS, "resume=auto")
        assert again.folder == untrained.folder
        assert again.result["test"] == json.loads((tmp_path / "result.json").read_text())["test"]
    finally:
        (tmp_path / "result.json").rename(untrained.folder / "result.json")


@pytest.mark.long
@pytest.mark.parametrize("model", ["prototype", "cluster_matching"])
def test_predict_needs_no_checkpoint_and_keeps_supports(model, picture, tmp_path):
    words = (f"support=[{picture}:{tmp_path / 'a_mask.png'}]", f"query=[{picture}]", "maps=true")
    kept = tmp_path / "kept.pt"
    commands.run(
        "predict", tmp_path, f"model={model}", *UNTRAINED, *words, f"output={tmp_path / 'out'}", f"save={kept}"
    )
    mask = np.asarray(Image.open(tmp_path / "out" / "a_mask.png"))
    assert mask.shape == (60, 80)
    assert np.asarray(Image.open(tmp_path / "out" / "a_prior_1.png")).shape == (60, 80, 3)
    again = Segmenter.from_checkpoint(kept, device="cpu").predict(picture)
    assert (again.mask * 255 == mask).all()


@pytest.mark.long
def test_predict_of_several_views_is_the_segmenters(picture, tmp_path):
    views = ("test_scales=[1.0,0.5]", "test_flip=true")
    words = (f"support=[{picture}:{tmp_path / 'a_mask.png'}]", f"query=[{picture}]", f"output={tmp_path / 'out'}")
    commands.run("predict", tmp_path, "model=prototype", *UNTRAINED, *words, *views)
    mask = np.asarray(Image.open(tmp_path / "out" / "a_mask.png"))
    torch.manual_seed(0)
    options = {"backbone": "resnet18", "image_size": 65, "device": "cpu", "overrides": ["backbone.weights=null"]}
    plain = Segmenter.without_training("prototype", **options)
    assert plain.with_views() is plain
    several = plain.with_views([1.0, 0.5], flip=True)
    assert several.classes == ()
    prediction = several.fit(picture, tmp_path / "a_mask.png").predict(picture)
    assert prediction.mask.shape == mask.shape
    assert ((prediction.probability > 0.5) == prediction.mask).all()
    with pytest.raises(ValueError, match=r"^supports of several views cannot be saved; expected test_scales="):
        several.save(tmp_path / "kept.pt")


def test_in_python(picture, tmp_path):
    torch.manual_seed(0)
    options = {"backbone": "resnet18", "image_size": (65, 81), "device": "cpu", "overrides": ["backbone.weights=null"]}
    segmenter = Segmenter.without_training("prototype", **options).fit(picture, tmp_path / "a_mask.png")
    assert segmenter.image_size == (65, 81)
    prediction = segmenter.predict(picture)
    assert prediction.mask.shape == (60, 80)
    assert ((prediction.probability > 0.5) == prediction.mask).all()


@pytest.mark.long
@pytest.mark.parametrize(
    ("door", "words", "message"),
    [
        (
            "evaluate",
            commands.SHAPES,
            "ckpt is not given; expected a checkpoint, e.g. ckpt=RUN/checkpoints/best.ckpt: ",
        ),
        ("evaluate", (*commands.SHAPES, "model=prototype"), "model=prototype needs a base learner (model.encoder)"),
        ("evaluate", (*commands.SHAPES, "model=correlation", "model.encoder=backbone"), "model=correlation has to be"),
        ("predict", ("model=correlation", "support=[a:b]", "query=[a.png]"), "model=correlation has to be trained"),
        ("evaluate", (*commands.SHAPES, "test_scales=[0]"), "test_scales=[0]: expected numbers above 0"),
        (
            "predict",
            ("model=prototype", "test_scales=[]", "support=[a:b]", "query=[a.png]"),
            "test_scales=[]: expected",
        ),
        ("predict", ("model=prototype", "query=[a.png]", *UNTRAINED), "support is not given; expected support="),
        (
            "predict",
            ("model=prototype", "ckpt=a.ckpt", "support=[a:b]", "query=[a.png]"),
            "are both given; expected one",
        ),
        ("predict", ("model=prototpye", "query=[a.png]"), "model=prototpye: no such option; did you mean 'prototype'"),
    ],
)
def test_refusals_are_one_line(door, words, message, tmp_path):
    assert message in commands.call(door, tmp_path, *words).refusal()


@pytest.mark.long
def test_python_refuses_what_the_command_line_does():
    with pytest.raises(ValueError, match=r"^model=hdmnet needs a base learner|model=hdmnet needs a base learner"):
        Segmenter.without_training("hdmnet", device="cpu")
    with pytest.raises(ValueError, match="prototpye"):
        Segmenter.without_training("prototpye", device="cpu")
