"""Checkpoints of the official release, in and out.

An official checkpoint is a plain state dict, or ``{"state_dict": …}``, with or without the ``module.`` prefix that
DistributedDataParallel leaves. Every key has exactly one place in our model: `official_key` gives it, and loading
refuses whatever is missing, surplus or misshapen.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.base_learner import BaseLearner
from hdmnet.models.hdmnet.model import HDMNet, build_hdmnet

NUM_BASE = {"pascal": 15, "coco": 60}
OFFICIAL_BACKBONES = ("resnet50_v2", "vgg16")
IMAGE_SIZES = {"pascal": 473, "coco": 633}  # side of the square, in pixels
OUR_KEYS = ("hdmnet", "hdmnet_base_learner")  # mark files of our own (hdmnet/run/checkpoints.py)

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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on odd files before it refuses them
            state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds here; none may pass as a traceback
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"cannot read checkpoint {str(path)!r}: damaged, or more than plain tensors (nothing was run); expected a "
            f"state dict saved by torch.save [{reason[:120]}]"
        ) from error
    if isinstance(state, dict) and any(key in state for key in OUR_KEYS):
        raise ValueError(f"checkpoint {str(path)!r} was written by hdmnet; expected a file of the official release")
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"checkpoint {str(path)!r} holds no state dict; expected a mapping of names to tensors")
    plain = {str(key).removeprefix("module."): value for key, value in state.items()}
    if len(plain) < len(state):
        raise ValueError(
            f"checkpoint {str(path)!r} names some tensors twice, with and without 'module.'; expected one of each"
        )
    # What is not an ordinary array of numbers would be cast or refused with a traceback on loading.
    odd = [k for k, v in plain.items() if v.is_meta or v.layout != torch.strided or v.is_complex() or v.is_quantized]
    if odd:
        raise ValueError(
            f"checkpoint {str(path)!r}: {odd[0]} is no ordinary tensor of numbers; expected a plain state dict"
        )
    return plain


def is_base_learner(state: dict[str, Tensor]) -> bool:
    """Whether tensors by official key are those of a base learner (PSPNet) and not of an HDMNet."""
    return _guess_kind(state).get("kind") == "base learner"


def _guess_kind(state: dict[str, Tensor]) -> dict[str, str]:
    """What a file of the release seems to be, by its keys and shapes; what cannot be told is left out.

    Args:
        state: Tensors by official key.

    Returns:
        Some of: ``kind`` ("HDMNet" or "base learner"), ``dataset``, ``backbone``, ``shot``.
    """
    guess: dict[str, str] = {}
    if any(key.startswith("transformer.") for key in state):
        guess["kind"] = "HDMNet"
        weights = state.get("kshot_rw.0.weight")
        if weights is None:
            guess["shot"] = "1"
        elif weights.ndim == 4:
            guess["shot"] = str(weights.shape[1])
    elif any(key.startswith("ppm.") for key in state):
        guess["kind"] = "base learner"
    if any(re.match(r"layer1\.\d+\.conv\d", key) for key in state):
        deep_stem = "layer0.6.weight" in state
        guess["backbone"] = "resnet50_v2" if deep_stem else "a ResNet without the deep stem"
        blocks = {key.split(".")[1] for key in state if key.startswith("layer3.")}
        if deep_stem and len(blocks) != 6:
            guess["backbone"] = f"a ResNet with {len(blocks)} blocks in layer 3"
    elif any(re.fullmatch(r"layer1\.\d+\.weight", key) for key in state):
        guess["backbone"] = "vgg16"
    classifier = state.get("base_learnear.2.weight", state.get("cls.4.weight"))
    if classifier is not None and classifier.ndim == 4:
        known = {1 + num_base: dataset for dataset, num_base in NUM_BASE.items()}
        guess["dataset"] = known.get(classifier.shape[0], f"one of {classifier.shape[0] - 1} base classes")
    return guess


def _likely_cause(state: dict[str, Tensor], asked: dict[str, str]) -> str:
    """The last part of a misfit's message: how what was asked for differs from what the file seems to be."""
    guess = _guess_kind(state)
    if not guess:
        return "another model's checkpoint? It has none of the release's parts"
    different = [f"{key}={value}" for key, value in guess.items() if value != asked.get(key, value)]
    if not different:
        return "check dataset, backbone and shot"
    return f"the file looks like {', '.join(different)}"


def _fill(
    model: nn.Module, state: dict[str, Tensor], names: dict[str, str], path: str | Path, asked: dict[str, str]
) -> None:
    """Load `state` (official keys) into `model`, built without memory; `names` maps its keys to official ones."""
    own = model.state_dict()
    counters = {
        n for n in (*names.values(), *state) if n.endswith("num_batches_tracked")
    }  # written only by newer torch
    missing = sorted(set(names.values()) - state.keys() - counters)
    surplus = sorted(state.keys() - set(names.values()))
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
        what = " ".join(f"{key}={value}" for key, value in asked.items() if key != "kind")
        raise ValueError(
            f"checkpoint {str(path)!r} does not fit {asked['kind']} {what}: {'; '.join(problems)}; "
            f"{_likely_cause(state, asked)}"
        )
    model.to_empty(device="cpu")
    model.load_state_dict({key: state.get(name, torch.tensor(0)) for key, name in names.items()})


def build_official_base_learner(dataset: str, backbone: str) -> BaseLearner:
    """An untrained base learner of the release; arguments and refusals as in `build_official`."""
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
    _fill(model, state, {key: official_key(key) for key in model.state_dict()}, path, asked)
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
    _fill(learner, state, names, path, asked)
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
