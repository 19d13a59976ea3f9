"""Checkpoints of HDMNet's official release; those of its base learner are read by `official_base_learner`.

Every key has exactly one place in our model: `official_key` gives it.
"""

from __future__ import annotations

import re
from pathlib import Path

from hdmnet.models.hdmnet.model import HDMNet, build_hdmnet
from hdmnet.models.official import ENSEMBLE, check_variant, load_release, translate
from hdmnet.models.official_base_learner import build_official_base_learner

# Known by this module's name too.
from hdmnet.models.official_base_learner import load_official_base_learner as load_official_base_learner
from hdmnet.models.official_base_learner import official_base_learner_key as official_base_learner_key

IMAGE_SIZES = {"pascal": 473, "coco": 633}  # side of the square, in pixels

# Our key → the official one; the first pattern that matches the whole key wins.
_MIX = "transformer.mix_transformer"
_ATTENTION = {"query": "linear_q", "key": "linear_k", "value": "linear_v", "output": "linear_o"}
_META = (
    (r"(down_query|query_merge)\.(.*)", r"\1.\2"),
    (r"down_support\.(.*)", r"down_supp.\1"),
    (r"support_merge\.(.*)", r"supp_merge.\1"),
    (r"pyramid\.stages\.(\d+)\.embed\.(.*)", rf"{_MIX}.down_sample_layers.\1.0.projection.\2"),
    (r"pyramid\.stages\.(\d+)\.embed_norm\.(.*)", rf"{_MIX}.down_sample_layers.\1.0.norm.\2"),
    (r"pyramid\.stages\.(\d+)\.norm\.(.*)", rf"{_MIX}.down_sample_layers.\1.3.\2"),
    (r"matching\.(\d+)\.merge\.0\.(.*)", rf"{_MIX}.match_layers.\1.1.conv.\2"),
    (r"matching\.(\d+)\.merge\.1\.(.*)", rf"{_MIX}.match_layers.\1.1.bn.\2"),
    *((rf"matching\.(\d+)\.{a}\.(.*)", rf"{_MIX}.match_layers.\1.0.attn.attn.{b}.\2") for a, b in _ATTENTION.items()),
    (r"matching\.(\d+)\.feed_forward\.(.*)", rf"{_MIX}.match_layers.\1.0.ffn.\2"),
    (r"matching\.(\d+)\.(norm\d\..*)", rf"{_MIX}.match_layers.\1.0.\2"),
    (r"decoder\.blocks\.(\d+)\.(.*)", rf"{_MIX}.parse_layers.\1.\2"),
    (r"decoder\.head\.(.*)", rf"{_MIX}.cls.\1"),
)
_LAYER = (
    *((rf"attention\.{ours}\.(.*)", rf"attn.attn.{theirs}.\1") for ours, theirs in _ATTENTION.items()),
    (r"attention\.reduce\.(.*)", r"attn.sr.\1"),
    (r"attention\.norm\.(.*)", r"attn.norm.\1"),
    (r"feed_forward\.(.*)", r"ffn.\1"),
    (r"(norm\d\..*)", r"\1"),
)


def official_key(key: str) -> str:
    """The release's key of one of ``HDMNet.state_dict()``; KeyError if it has no such part (a fourth stage)."""
    head, _, rest = key.partition(".")
    if head == "trunk":
        rest = rest.removeprefix("base_learner.")
        if rest.startswith("classifier."):  # the release cuts the PSPNet's "cls" in two, and this is its spelling
            return f"base_learnear.{rest.removeprefix('classifier.')}"
        return official_base_learner_key(rest)
    if head == "ensemble":
        return translate(rest, ENSEMBLE)
    layer = re.fullmatch(r"pyramid\.stages\.(\d+)\.layers\.(\d+)\.(.*)", rest)
    if layer:
        stage, index, inner = layer.groups()
        return f"{_MIX}.down_sample_layers.{stage}.{int(index) + 1}.{translate(inner, _LAYER)}"
    return translate(rest, _META)


def build_official(dataset: str, backbone: str, shot: int) -> HDMNet:
    """An untrained HDMNet with exactly the release's switches, in eval mode; as `load_official_checkpoint`."""
    check_variant(dataset, backbone, shot)
    learner = build_official_base_learner(dataset, backbone)
    # The release never rescales its matching for another number of supports.
    return build_hdmnet(learner, num_shots=shot, shot_weighting="official", matching={"num_shots": None}).eval()


def load_official_checkpoint(path: str | Path, dataset: str, backbone: str, shot: int) -> HDMNet:
    """Read an official HDMNet checkpoint, as `load_release` says; its backbone is "resnet50_v2" or "vgg16" (BN)."""
    asked = {"dataset": dataset, "backbone": backbone, "shot": shot}
    return load_release(path, build_official, official_key, kind="HDMNet", **asked)
