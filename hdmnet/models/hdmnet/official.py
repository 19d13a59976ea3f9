"""Checkpoints of HDMNet's official release and of its base learner, in and out.

Every key has exactly one place in our model: `official_key` gives it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.base_learner import BaseLearner
from hdmnet.models.hdmnet.model import HDMNet, build_hdmnet
from hdmnet.models.official import NUM_BASE, OFFICIAL_BACKBONES, check_variant, fill_model, read_state_dict, translate

IMAGE_SIZES = {"pascal": 473, "coco": 633}  # side of the square, in pixels

# Our key → the official one; the first pattern that matches the whole key wins.
_TRUNK = (
    (r"backbone\.parts\.(\d+)\.(.*)", r"layer\1.\2"),
    (r"pyramid_pooling\.branches\.(\d+)\.(.*)", r"ppm.features.\1.\2"),
    (r"reduce\.(.*)", r"cls.\1"),
)
_MIX = "transformer.mix_transformer"
_ATTENTION = {"query": "linear_q", "key": "linear_k", "value": "linear_v", "output": "linear_o"}
_META = (
    (r"down_query\.(.*)", r"down_query.\1"),
    (r"down_support\.(.*)", r"down_supp.\1"),
    (r"query_merge\.(.*)", r"query_merge.\1"),
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
_ENSEMBLE = (
    (r"gram_merge\.(.*)", r"gram_merge.\1"),
    (r"base_merge\.(.*)", r"cls_merge.\1"),
    (r"shot_weights\.(.*)", r"kshot_rw.\1"),
)


def official_key(key: str) -> str:
    """The official name of a parameter or buffer of `HDMNet`.

    Args:
        key: A key of ``HDMNet.state_dict()``.

    Returns:
        The key of the release.

    Raises:
        KeyError: The release has no such part (a fourth stage, for one).
    """
    head, _, rest = key.partition(".")
    if head == "trunk":
        rest = rest.removeprefix("base_learner.")
        if rest.startswith("classifier."):  # the release cuts the PSPNet's "cls" in two, and this is its spelling
            return f"base_learnear.{rest.removeprefix('classifier.')}"
        return translate(rest, _TRUNK)
    if head == "ensemble":
        return translate(rest, _ENSEMBLE)
    layer = re.fullmatch(r"pyramid\.stages\.(\d+)\.layers\.(\d+)\.(.*)", rest)
    if layer:
        stage, index, inner = layer.groups()
        return f"{_MIX}.down_sample_layers.{stage}.{int(index) + 1}.{translate(inner, _LAYER)}"
    return translate(rest, _META)


def official_base_learner_key(key: str) -> str:
    """The official (PSPNet) name of a parameter or buffer of `BaseLearner`; raises KeyError as `official_key`."""
    if key.startswith("classifier."):
        return f"cls.{int(key.split('.')[1]) + 2}.{key.split('.', 2)[2]}"
    return translate(key, _TRUNK)


def build_official_base_learner(dataset: str, backbone: str) -> BaseLearner:
    """An untrained base learner of the release; arguments and refusals as in `build_official`."""
    check_variant(dataset, backbone)
    return BaseLearner(backbone=build_backbone(backbone), num_base=NUM_BASE[dataset])


def build_official(dataset: str, backbone: str, shot: int) -> HDMNet:
    """An untrained HDMNet with exactly the release's switches.

    Args:
        dataset: "pascal" or "coco".
        backbone: "resnet50_v2" (deep stem) or "vgg16" (BN).
        shot: K, at least 1.

    Returns:
        The network, in eval mode.

    Raises:
        ValueError: A value the release does not have.
    """
    check_variant(dataset, backbone, shot)
    learner = build_official_base_learner(dataset, backbone)
    # The release never rescales its matching for another number of supports.
    return build_hdmnet(learner, num_shots=shot, shot_weighting="official", matching={"num_shots": None}).eval()


def load_official_checkpoint(path: str | Path, dataset: str, backbone: str, shot: int) -> HDMNet:
    """Read an official HDMNet checkpoint.

    Args:
        path: The ``.pth`` file.
        dataset: "pascal" or "coco".
        backbone: "resnet50_v2" (deep stem) or "vgg16" (BN).
        shot: K it was trained with.

    Returns:
        The model in eval mode, float32 on the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged or hostile, or does not fit data set, backbone or shot.
    """
    state = read_state_dict(path)
    with torch.device("meta"):  # no memory and no initialisation before the file is known to fit
        model = build_official(dataset, backbone, shot)
    asked = {"kind": "HDMNet", "dataset": dataset, "backbone": backbone, "shot": str(shot)}
    fill_model(model, state, {key: official_key(key) for key in model.state_dict()}, path, asked)
    return model


def load_official_base_learner(path: str | Path, dataset: str, backbone: str) -> BaseLearner:
    """Read an official base-learner (PSPNet) checkpoint, as shared with BAM.

    Args:
        path: The ``.pth`` file; its ``encoder.*`` aliases of the layers are understood.
        dataset: "pascal" or "coco".
        backbone: "resnet50_v2" or "vgg16".

    Returns:
        The base learner in eval mode, float32 on the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged or hostile, or does not fit data set or backbone.
    """
    state = read_state_dict(path)
    with torch.device("meta"):
        learner = build_official_base_learner(dataset, backbone).eval()
    for key in [k for k in state if k.startswith("encoder.")]:
        value = state.pop(key)
        alias = f"layer{key.removeprefix('encoder.')}"
        if alias in state and not torch.equal(state[alias], value):
            raise ValueError(f"checkpoint {str(path)!r}: {key} and {alias} differ; expected aliases of the same tensor")
        state.setdefault(alias, value)
    names = {key: official_base_learner_key(key) for key in learner.state_dict()}
    asked = {"kind": "base learner", "dataset": dataset, "backbone": backbone}
    fill_model(learner, state, names, path, asked)
    return learner


def to_official_state_dict(model: HDMNet) -> dict[str, Tensor]:
    """An HDMNet's state dict under the release's keys.

    Args:
        model: With the release's parts (three stages, ensemble, 3×3 merge, ResNet-50 deep stem or VGG-16) and switches.

    Returns:
        Tensors by official key.

    Raises:
        ValueError: The release has no such part or switch: it would compute something else from these weights.
    """
    learner, ensemble = model.trunk.base_learner, model.ensemble
    if ensemble is None:
        raise ValueError("model.ensemble=false has no counterpart in the official release; expected a model with it")
    switches: list[tuple[str, object, object]] = [("model.prior_norm", model.prior_norm, False)]
    for match in model.meta_learner.matching:
        switches.append(("model.matching.num_heads", match.num_heads, 2))
        switches.append(("model.matching.temperature", match.temperature, 0.1))
    if ensemble.num_shots > 1:
        switches.append(("model.shot_weighting", ensemble.shot_weighting, "official"))
    for name, found, expected in switches:
        if found != expected:
            raise ValueError(
                f"{name}={found}: the official release has only {expected}, and would predict something else"
            )
    _check_twin(model, learner, lambda backbone, dataset: build_official(dataset, backbone, ensemble.num_shots))
    return {official_key(key): value for key, value in model.state_dict().items()}


def _check_twin(model: nn.Module, learner: BaseLearner, build: Callable[[str, str], nn.Module]) -> None:
    """Refuse a model whose keys and shapes are not those of one of the release's own."""
    dataset = next((name for name, num_base in NUM_BASE.items() if num_base == learner.num_base), None)
    if dataset is None:
        raise ValueError(f"{learner.num_base} base classes: the official release has only {tuple(NUM_BASE.values())}")
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    for backbone in OFFICIAL_BACKBONES:
        with torch.device("meta"):  # shapes only, no memory
            twin = {key: value.shape for key, value in build(backbone, dataset).state_dict().items()}
        odd = sorted(key for key in shapes.keys() | twin.keys() if shapes.get(key) != twin.get(key))
        if not odd:
            return
        if all(not key.startswith(("trunk.", "backbone.")) for key in odd):
            raise ValueError(
                f"the official release has no counterpart of {odd[0]}; expected three stages and a 3×3 merge"
            )
    raise ValueError(f"the official release has no such backbone; expected {' or '.join(OFFICIAL_BACKBONES)}")


def to_official_base_learner_state_dict(model: BaseLearner) -> dict[str, Tensor]:
    """A base learner's state dict under the release's (PSPNet's) keys, its ``encoder.*`` aliases included.

    Args:
        model: On ResNet-50 with deep stem or VGG-16.

    Returns:
        Tensors by official key; an alias shares its tensor.

    Raises:
        ValueError: The release has no such backbone or number of base classes.
    """
    _check_twin(model, model, lambda backbone, dataset: build_official_base_learner(dataset, backbone))
    state = {official_base_learner_key(key): value for key, value in model.state_dict().items()}
    aliases = {f"encoder.{key.removeprefix('layer')}": value for key, value in state.items() if key.startswith("layer")}
    return state | aliases
