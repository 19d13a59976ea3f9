"""Every file under conf/ with train and evaluate, and one step of training on those whose code differs."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
from omegaconf import OmegaConf

from hdmnet.config.checks import validate
from hdmnet.config.paths import conf_dir
from hdmnet.config.schemas import EvaluateSchema
from hdmnet.config.values import to_plain, to_stored
from tests.helpers.commands import SHAPES, run
from tests.helpers.configs import OPTIONS, differences, lines_of, recorded, word_of, words_of

RECORDED = recorded()
ONE_STEP = (
    "trainer.max_steps=1",
    "optim.base.batch_size=2",
    "trainer.limit_test_batches=1",
    "trainer.limit_val_batches=1",
)


def is_global(file):
    """Whether a file sets keys of other groups too."""
    return "# @package _global_" in (conf_dir() / file).read_text()


def check(cfg, file):
    """The config is sound; all of it can be resolved and stored, and the group holds what the file says."""
    validate(cfg)
    own = OmegaConf.to_container(OmegaConf.load(conf_dir() / file), resolve=False)
    node = to_stored(cfg) if is_global(file) else to_stored(cfg)[str(file.parent)]
    for key in own.keys() - {"defaults"}:
        assert key in node, key
    to_plain(cfg)


@pytest.mark.long
@pytest.mark.parametrize("file", OPTIONS, ids=word_of)
def test_every_option_composes_as_recorded(compose_config, file):
    cfg = compose_config("train", *words_of(file))
    found = differences(RECORDED["train"], lines_of(cfg))
    assert found == RECORDED[f"train {word_of(file)}"], "composed otherwise; see the top of tests/frozen/test_frozen.py"
    if file.parent.name not in ("launcher", "sweep"):  # of Hydra's own config
        check(cfg, file)


OF_EVALUATE = [file for file in OPTIONS if file.parent.name not in ("launcher", "sweep", "debug", "experiment")]


def test_evaluate_has_all_that_the_options_set():
    """They share conf/base.yaml, and with it the groups."""
    known = {field.name for field in fields(EvaluateSchema)}
    for file in OF_EVALUATE:
        own = OmegaConf.to_container(OmegaConf.load(conf_dir() / file), resolve=False)
        assert str(file.parent) in known, file
        assert not is_global(file) or own.keys() <= known | {"defaults"}, file


@pytest.mark.long
@pytest.mark.parametrize("file", {file.parent: file for file in OF_EVALUATE}.values(), ids=word_of)
def test_one_option_of_each_group_composes_with_evaluate_too(compose_config, file):
    check(compose_config("evaluate", *words_of(file)), file)


@pytest.mark.long
@pytest.mark.parametrize(
    "words",
    [
        ("backbone=mobilenet_v2", "augment=official", "ablation=no_distillation", "model.num_stages=1", "shot=2"),
        (
            "backbone=timm",
            "backbone.model=convnext_atto",
            "augment=paper",
            "optim.base.augment=bam",
            "model.num_stages=4",
            "model.ensemble=false",
        ),
        ("backbone=timm", "backbone.model=vit_tiny_patch16_224", "trainer.precision=bf16-mixed"),
        ("model.norm=bn", "model.shot_weighting=official", "model.prior_norm=true", "protocol=official", "shot=2"),
        ("protocol=hsnet", "protocol.resize=pad", "protocol.num_test_episodes=4", "recipe=common"),
        ("dataset.image_size=[65,81]", "dataset.filter_novel=false", "optim.base.freeze_backbone=norm"),
    ],
    ids=["mobilenet", "timm", "vit", "switches", "protocol", "rectangle"],
)
def test_one_step_of_training(tmp_path, words):
    weights = ("backbone.weights=null", "backbone.feature_channels=32")
    result = run("train", tmp_path, *SHAPES, *ONE_STEP, *weights, *words).result
    assert math.isfinite(result["test"]["fb_iou"])


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["vgg16", "resnet50", "resnet50_v2", "resnet101"])
def test_one_step_on_the_papers_backbones(tmp_path, backbone):
    words = (f"backbone={backbone}", "backbone.weights=null", "optim=hdmnet_pascal", "optim.batch_size=2")
    assert run("train", tmp_path, *SHAPES, *words, *ONE_STEP).result["backbone"] == backbone


@pytest.mark.slow
def test_weights_and_biases_goes_offline_without_a_key(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "")
    answer = run("train", tmp_path, *SHAPES, *ONE_STEP, "logger=wandb")
    assert (answer.folder / "metrics.csv").is_file()
    assert list((answer.folder / "wandb").glob("offline-run-*"))
