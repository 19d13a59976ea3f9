"""What `compile` and `keep_features_gb` do to a model before its training."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf

from hdmnet.run import pipeline
from tests.helpers.tiny_hdmnet import make_model
from tests.helpers.toy_method import Painter

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def config(**changes):
    plain = {"compile": None, "keep_features_gb": 0.0, "augment": {"name": "flip"}, "model": {"name": "hdmnet"}}
    return OmegaConf.create(plain | changes)


def test_features_are_kept_where_asked_for():
    model = make_model()
    pipeline._speed_up(config(), model, CPU)
    pipeline._speed_up(OmegaConf.create({}), model, CPU)  # a job of an earlier version
    assert model.trunk._kept is None
    pipeline._speed_up(config(keep_features_gb=0.5), model, CPU)
    assert model.trunk._kept._limit == 0.5e9


@pytest.mark.parametrize(
    ("changes", "device", "message"),
    [
        ({"model": {"name": "other"}}, CPU, "keep_features_gb=1: model=other has no trunk that keeps features"),
        ({"augment": {"name": "official"}}, CPU, "keep_features_gb=1: augmented pictures never repeat; expected aug"),
        ({"augment": {"_target_": "mine"}}, CPU, "augmented pictures never repeat"),
        ({}, GPU, "keep_features_gb=1: only a CPU without compile keeps features; expected 0"),
        ({"compile": "default"}, CPU, "only a CPU without compile keeps features"),
    ],
)
def test_features_are_kept_only_where_it_helps(changes, device, message):
    model = Painter() if "model" in changes else make_model()
    with pytest.raises(ValueError, match=message):
        pipeline._speed_up(config(keep_features_gb=1.0, **changes), model, device)


def test_the_model_is_compiled_for_fixed_sizes(monkeypatch):
    asked = {}
    model = Painter()
    monkeypatch.setattr(model, "compile", lambda **options: asked.update(options))
    pipeline._speed_up(config(compile="reduce-overhead"), model, GPU)
    assert asked == {"mode": "reduce-overhead", "dynamic": False}
