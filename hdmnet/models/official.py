"""Checkpoints of the official release, in and out.

An official checkpoint is a plain state dict, or ``{"state_dict": …}``, with or without the ``module.`` prefix that
DistributedDataParallel leaves. Every key has exactly one place in our model: `official_key` gives it, and loading refuses
whatever is missing, surplus or misshapen.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hdmnet.models.backbone import build_backbone
from hdmnet.models.base_learner import BaseLearner
from hdmnet.models.hdmnet import HDMNet, build_hdmnet

NUM_BASE = {"pascal": 15, "coco": 60}
OFFICIAL_BACKBONES = ("resnet50_v2", "vgg16")

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
    (r"matching\.(\d+)\.(query|key|value|output)\.(.*)", rf"{_MIX}.match_layers.\1.0.attn.attn.<\2>.\3"),
    (r"matching\.(\d+)\.feed_forward\.(.*)", rf"{_MIX}.match_layers.\1.0.ffn.\2"),
    (r"matching\.(\d+)\.(norm\d\..*)", rf"{_MIX}.match_layers.\1.0.\2"),
    (r"decoder\.blocks\.(\d+)\.(.*)", rf"{_MIX}.parse_layers.\1.\2"),
    (r"decoder\.head\.(.*)", rf"{_MIX}.cls.\1"),
)
_LAYER = (
    (r"attention\.(query|key|value|output)\.(.*)", r"attn.attn.<\1>.\2"),
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


def _translate(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, template in rules:
        match = re.fullmatch(pattern, key)
        if match:
            return re.sub(r"<(\w+)>", lambda m: _ATTENTION[m.group(1)], match.expand(template))
    raise KeyError(key)


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
        return _translate(rest, _TRUNK)
    if head == "ensemble":
        return _translate(rest, _ENSEMBLE)
    layer = re.fullmatch(r"pyramid\.stages\.(\d+)\.layers\.(\d+)\.(.*)", rest)
    if layer:
        stage, index, inner = layer.groups()
        return f"{_MIX}.down_sample_layers.{stage}.{int(index) + 1}.{_translate(inner, _LAYER)}"
    return _translate(rest, _META)


def official_base_learner_key(key: str) -> str:
    """The official (PSPNet) name of a parameter or buffer of `BaseLearner`; raises KeyError as `official_key`."""
    if key.startswith("classifier."):
        return f"cls.{int(key.split('.')[1]) + 2}.{key.split('.', 2)[2]}"
    return _translate(key, _TRUNK)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a checkpoint of the release, running nothing in it.

    Args:
        path: The ``.pth`` file.

    Returns:
        Its tensors, the ``module.`` prefix removed.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, is no checkpoint, or would run code.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {str(path)!r} not found; expected a file of the official release")
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds here; none may pass as a traceback
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"cannot read checkpoint {str(path)!r}: damaged, or more than plain tensors (nothing was run); expected a "
            f"state dict saved by torch.save [{reason[:120]}]"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"checkpoint {str(path)!r} holds no state dict; expected a mapping of names to tensors")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def _fill(model: nn.Module, state: dict[str, Tensor], names: dict[str, str], what: str) -> None:
    """Load `state` (official keys) into `model`; `names` maps each of its keys to the official one."""
    own = model.state_dict()
    counters = {n for n in (*names.values(), *state) if n.endswith("num_batches_tracked")}  # written only by newer torch
    missing = sorted(set(names.values()) - state.keys() - counters)
    surplus = sorted(state.keys() - set(names.values()) - counters)
    misshapen = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[key].shape)}"
        for key, name in names.items()
        if name in state and state[name].shape != own[key].shape
    ]
    problems = [
        f"{len(found)} {kind}: {', '.join(found[:3])}{' …' if len(found) > 3 else ''}"
        for kind, found in (("missing", missing), ("surplus", surplus), ("misshapen", misshapen))
        if found
    ]
    if problems:
        raise ValueError(f"{what} does not fit: {'; '.join(problems)}; check data set, backbone and shot")
    model.load_state_dict({key: state.get(name, own[key]) for key, name in names.items()})


def _build_base_learner(dataset: str, backbone: str) -> BaseLearner:
    if dataset not in NUM_BASE:
        raise ValueError(f"dataset={dataset!r}: the release has only {', '.join(NUM_BASE)}")
    if backbone not in OFFICIAL_BACKBONES:
        raise ValueError(f"backbone={backbone!r}: the release has only {', '.join(OFFICIAL_BACKBONES)}")
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
    if shot < 1:
        raise ValueError(f"shot={shot}: expected at least 1")
    learner = _build_base_learner(dataset, backbone)
    return build_hdmnet(learner, num_shots=shot, shot_weighting="official").eval()


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
    model = build_official(dataset, backbone, shot)
    what = f"checkpoint {str(path)!r} as dataset={dataset} backbone={backbone} shot={shot}"
    _fill(model, read_state_dict(path), {key: official_key(key) for key in model.state_dict()}, what)
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
    learner = _build_base_learner(dataset, backbone).eval()
    state = read_state_dict(path)
    for key in [k for k in state if k.startswith("encoder.")]:
        value = state.pop(key)
        alias = f"layer{key.removeprefix('encoder.')}"
        if alias in state and not torch.equal(state[alias], value):
            raise ValueError(f"checkpoint {str(path)!r}: {key} and {alias} differ; expected aliases of the same tensor")
        state.setdefault(alias, value)
    names = {key: official_base_learner_key(key) for key in learner.state_dict()}
    _fill(learner, state, names, f"base learner {str(path)!r} as dataset={dataset} backbone={backbone}")
    return learner


def to_official_state_dict(model: HDMNet) -> dict[str, Tensor]:
    """An HDMNet's state dict under the release's keys.

    Args:
        model: With the release's parts: three stages, ensemble, 3×3 merge, ResNet-50 deep stem or VGG-16.

    Returns:
        Tensors by official key.

    Raises:
        ValueError: The model has a part the release does not know.
    """
    try:
        return {official_key(key): value for key, value in model.state_dict().items()}
    except KeyError as error:
        raise ValueError(f"the official release has no counterpart of {error.args[0]}") from error
