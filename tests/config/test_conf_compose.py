"""Every file under conf/ with train and evaluate, and one step of training on those whose code differs."""

from __future__ import annotations

import math

import pytest
from omegaconf import OmegaConf

from hdmnet.config.checks import validate
from hdmnet.config.paths import conf_dir
from hdmnet.config.values import to_plain, to_stored
from tests.helpers.commands import SHAPES, run

FILES = sorted(
    file.relative_to(conf_dir())
    for file in conf_dir().glob("*/*.yaml")
    if not file.stem.startswith("_")
    and not file.parent.name.endswith(("_defaults", "_on_dataset"))  # no options, others name them
    and file.parent.name not in ("local", "launcher", "sweep")  # test_sweeps.py
)
ONE_STEP = (
    "trainer.max_steps=1",
    "optim.base.batch_size=2",
    "trainer.limit_test_batches=1",
    "trainer.limit_val_batches=1",
)


CASES = [
    pytest.param(command, file, id=f"{command}-{file.parent}={file.stem}")
    for command in ("train", "evaluate")
    for file in FILES
    if command == "train" or file.parent.name not in ("debug", "experiment")
]


@pytest.mark.parametrize(("command", "file"), CASES)
def test_every_file_composes(compose_config, file, command):
    cfg = compose_config(command, f"{file.parent}={file.stem}")
    validate(cfg)
    # The group holds what the file says; all of it can be resolved and stored.
    own = OmegaConf.to_container(OmegaConf.load(conf_dir() / file), resolve=False)
    packaged = "# @package _global_" in (conf_dir() / file).read_text()
    node = to_stored(cfg) if packaged else to_stored(cfg)[str(file.parent)]
    for key in own.keys() - {"defaults"}:
        assert key in node, key
    to_plain(cfg)


@pytest.mark.parametrize(
    "words",
    [
        ("backbone=mobilenet_v2", "augment=official", "ablation=no_distillation", "model.num_stages=1", "shot=2"),
        (
            "backbone=timm",
            "backbone.name=convnext_atto",
            "augment=paper",
            "optim.base.augment=bam",
            "model.num_stages=4",
            "model.ensemble=false",
        ),
        ("model.norm=bn", "model.shot_weighting=official", "model.prior_norm=true", "protocol=official", "shot=2"),
        ("dataset.image_size=[65,81]", "dataset.filter_novel=false", "optim.base.freeze_backbone=norm"),
    ],
    ids=["mobilenet", "timm", "switches", "rectangle"],
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
