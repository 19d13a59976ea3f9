"""Checkpoints of the official base learner, a PSPNet: BAM's, from which HDMNet starts too."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.base_learner import BaseLearner
from hdmnet.models.official import NUM_BASE, check_variant, load_state, read_state_dict, translate

# Our key → the official one; the first pattern that matches the whole key wins.
_RULES = (
    (r"backbone\.parts\.(\d+)\.(.*)", r"layer\1.\2"),
    (r"pyramid_pooling\.branches\.(\d+)\.(.*)", r"ppm.features.\1.\2"),
    (r"reduce\.(.*)", r"cls.\1"),
    (r"classifier\.2\.(.*)", r"cls.4.\1"),
)


def official_base_learner_key(key: str) -> str:
    """The release's key of one of ``BaseLearner.state_dict()``; KeyError if it has no such part."""
    return translate(key, _RULES)


def build_official_base_learner(dataset: str, backbone: str) -> BaseLearner:
    """An untrained base learner of the release; as `load_official_base_learner`."""
    check_variant(dataset, backbone)
    return BaseLearner(backbone=build_backbone(backbone), num_base=NUM_BASE[dataset])


def load_official_base_learner(path: str | Path, dataset: str, backbone: str) -> BaseLearner:
    """Read an official base-learner (PSPNet) checkpoint, as BAM and HDMNet share it.

    Its ``encoder.*`` aliases of the layers are understood; otherwise as `load_release`.
    """
    state = read_state_dict(path)
    for key in [k for k in state if k.startswith("encoder.")]:
        value = state.pop(key)
        alias = f"layer{key.removeprefix('encoder.')}"
        if alias in state and not torch.equal(state[alias], value):
            raise ValueError(f"checkpoint {str(path)!r}: {key} and {alias} differ; expected aliases of the same tensor")
        state.setdefault(alias, value)
    build = partial(build_official_base_learner, dataset, backbone)
    asked = {"kind": "base learner", "dataset": dataset, "backbone": backbone}
    return load_state(build, official_base_learner_key, path, state, **asked)
