"""Checkpoints of official releases: read, recognised, and loaded into a model; each method has its own tables.

An official checkpoint is a plain state dict, or ``{"state_dict": …}``, with or without the ``module.`` prefix that
DistributedDataParallel leaves. Every key has exactly one place in our model, and loading refuses whatever is missing,
surplus or misshapen. BAM, HDMNet and PFENet name the layers of their trunk alike, HSNet and DCAMA as torchvision does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hdmnet.models.tensor_file import read_tensors, unwrap

NUM_BASE = {"pascal": 15, "coco": 60}
OFFICIAL_BACKBONES = ("resnet50_v2", "vgg16")
M = TypeVar("M", bound=nn.Module)
OUR_KEYS = ("hdmnet", "hdmnet_base_learner")  # mark files of our own (hdmnet/run/checkpoints.py)
# Rules of `translate` from a ResNet's own keys to torchvision's.
TORCHVISION_RESNET = (
    (r"parts\.0\.0\.(.*)", r"conv1.\1"),
    (r"parts\.0\.1\.(.*)", r"bn1.\1"),
    (r"parts\.([1-4])\.(.*)", r"layer\1.\2"),
)
# The same of the ensemble that BAM and HDMNet share.
ENSEMBLE = (
    (r"gram_merge\.(.*)", r"gram_merge.\1"),
    (r"base_merge\.(.*)", r"cls_merge.\1"),
    (r"shot_weights\.(.*)", r"kshot_rw.\1"),
)


def check_variant(
    dataset: str, backbone: str, shot: int = 1, *, backbones: tuple[str, ...] = OFFICIAL_BACKBONES
) -> None:
    """Raise ValueError for a variant that the release, of these backbones, does not have."""
    if shot < 1:
        raise ValueError(f"shot={shot}: expected at least 1")
    for name, value, known in (("dataset", dataset, NUM_BASE), ("backbone", backbone, backbones)):
        if value not in known:
            raise ValueError(f"{name}={value!r}: the release has only {', '.join(known)}")


def translate(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    """The official name of our key, by the first rule whose pattern matches all of it.

    Args:
        key: A key of our state dict, or a part of one.
        rules: Patterns, and templates (as of `re.Match.expand`) of the official name.

    Raises:
        KeyError: No rule matches: the release has no such part.
    """
    for pattern, template in rules:
        match = re.fullmatch(pattern, key)
        if match:
            return match.expand(template)
    raise KeyError(key)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint of the release, prefixes as ``module.`` removed; nothing in the file is run.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, is no checkpoint, or would run code.
    """
    path = Path(os.path.expanduser(path))
    checkpoint = f"checkpoint {str(path)!r}"
    if not path.is_file():
        raise FileNotFoundError(f"{checkpoint} not found; expected a file of the official release")
    content = read_tensors(path, "checkpoint")
    if isinstance(content, dict) and any(key in content for key in OUR_KEYS):
        raise ValueError(f"{checkpoint} was written by hdmnet; expected a file of the official release")
    try:
        plain = unwrap(content)
    except ValueError as error:
        raise ValueError(f"{checkpoint} {error}") from None
    if plain is None:
        raise ValueError(f"{checkpoint} holds no state dict; expected a mapping of names to tensors")
    # What is not an ordinary array of numbers would be cast or refused with a traceback on loading.
    odd = [k for k, v in plain.items() if v.is_meta or v.layout != torch.strided or v.is_complex() or v.is_quantized]
    if odd:
        raise ValueError(f"{checkpoint}: {odd[0]} is no ordinary tensor of numbers; expected a plain state dict")
    return plain


def guess_kind(state: dict[str, Tensor]) -> dict[str, str]:
    """What a file of the release seems to be, by its keys and shapes; what cannot be told is left out.

    Args:
        state: Tensors by official key.

    Returns:
        Some of: ``kind`` ("HDMNet", "BAM", "PFENet", "HSNet", "DCAMA", "CyCTR", "SSP", "PANet" or "base learner"),
        ``dataset``, ``backbone``, ``shot``.
    """
    guess: dict[str, str] = {}
    parts = {key.partition(".")[0] for key in state}
    kinds = {"adjust_feature_qry": "CyCTR", "transformer": "HDMNet", "ppm": "base learner", "learner_base": "BAM"}
    kinds |= {"init_merge": "PFENet"}
    kinds |= {"hpn_learner": "HSNet", "feature_extractor": "DCAMA"}
    kind = next((kind for part, kind in kinds.items() if part in parts), None)
    if kind is None:  # nothing but a trunk
        trunks = {"layer0.0.0.weight": "SSP", "encoder.backbone.features.0.0.weight": "PANet"}
        kind = next((kind for key, kind in trunks.items() if key in state), None)
    if kind is not None:
        guess["kind"] = kind
    if kind in ("HDMNet", "BAM"):
        weights = state.get("kshot_rw.0.weight")
        if weights is None:
            guess["shot"] = "1"
        elif weights.ndim == 4:
            guess["shot"] = str(weights.shape[1])
    whole = re.compile(r"(?:backbone(?:\.body)?|feature_extractor)\.(?:(features\.0)|(layers\.0)|layer3\.(\d+))\..*")
    trunk = [match for match in map(whole.fullmatch, state) if match]
    if trunk:  # of HSNet, DCAMA or CyCTR
        depth = max(int(match[3] or 0) for match in trunk) + 1
        known = {1: "vgg16_plain" if trunk[0][1] else "swin_b_384", 6: "resnet50", 23: "resnet101"}
        guess["backbone"] = known.get(depth, f"a ResNet with {depth} blocks in layer 3")
        guess["backbone"] += "_v2" if (kind, depth) == ("CyCTR", 6) else ""
    if kind == "PANet":
        guess["backbone"] = "vgg16_plain"
    elif any(re.match(r"layer1\.\d+\.conv\d", key) for key in state):
        blocks = {key.split(".")[1] for key in state if key.startswith("layer3.")}
        if "layer0.6.weight" not in state and kind != "SSP":
            guess["backbone"] = "a ResNet without the deep stem"
        else:
            guess["backbone"] = "resnet50_v2" if len(blocks) == 6 else f"a ResNet with {len(blocks)} blocks in layer 3"
    elif any(re.fullmatch(r"layer1\.\d+\.weight", key) for key in state):
        guess["backbone"] = "vgg16"
    heads = ("base_learnear.2.weight", "learner_base.1.4.weight", "cls.4.weight")
    classifier = next((state[key] for key in heads if key in state), None)
    if classifier is not None and classifier.ndim == 4:
        known = {1 + num_base: dataset for dataset, num_base in NUM_BASE.items()}
        guess["dataset"] = known.get(classifier.shape[0], f"one of {classifier.shape[0] - 1} base classes")
    return guess


def _likely_cause(state: dict[str, Tensor], asked: dict[str, str]) -> str:
    """The last part of a misfit's message: how what was asked for differs from what the file seems to be."""
    guess = guess_kind(state)
    if not guess:
        return "another model's checkpoint? It has none of the release's parts"
    different = [f"{key}={value}" for key, value in guess.items() if value != asked.get(key, value)]
    return f"the file looks like {', '.join(different)}" if different else "check dataset, backbone and shot"


def load_release(
    path: str | Path,
    build: Callable[..., M],
    official_key: Callable[[str], str],
    unused: str = "",
    /,
    *,
    kind: str,
    **asked: Any,
) -> M:
    """Read a checkpoint of a release; what every method's `load_official_checkpoint` does.

    Args:
        path: The ``.pth`` file.
        build: Makes the untrained model of `asked`, in eval mode.
        official_key: The release's key of each of the model's.
        unused: Pattern of the release's keys that a file may hold and nothing needs, e.g. a trunk's classifier.
        kind: The model's name, as of `guess_kind`.
        **asked: ``dataset``: "pascal" or "coco"; ``backbone``: one that the release has; ``shot``: K of its
            training.

    Returns:
        The model in eval mode, float32 on the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged or hostile, or does not fit what was asked for.
    """
    state = {key: value for key, value in read_state_dict(path).items() if not re.fullmatch(unused, key)}
    return load_state(partial(build, **asked), official_key, path, state, kind=kind, **asked)


def load_state(
    build: Callable[[], M], official_key: Callable[[str], str], path: str | Path, state: dict[str, Tensor], **asked: Any
) -> M:
    """Build a model and fill it with the tensors of a release.

    Args:
        build: Makes the model; called where nothing takes memory or is initialised.
        official_key: The release's key of each of the model's.
        path: Of the file, for the message.
        state: Tensors by official key, from `read_state_dict`.
        **asked: What the file should be: ``kind`` ("HDMNet"), ``dataset``, ``backbone``, ``shot``.

    Returns:
        The model in eval mode, float32 on the CPU.

    Raises:
        ValueError: A tensor is missing, surplus or misshapen.
    """
    with torch.device("meta"):  # no memory and no initialisation before the file is known to fit
        model = build().eval()
    names = {key: official_key(key) for key in model.state_dict()}
    shapes = {names[key]: tuple(value.shape) for key, value in model.state_dict().items()}
    # Counters are written only by newer torch.
    missing = sorted(name for name in shapes.keys() - state.keys() if not name.endswith("num_batches_tracked"))
    surplus = sorted(state.keys() - shapes.keys())
    misshapen = [
        f"{name} {tuple(state[name].shape)} instead of {shape}"
        for name, shape in shapes.items()
        if name in state and state[name].shape != shape
    ]
    problems = [
        f"{len(found)} {kind}: {', '.join(found[:3])}{' …' if len(found) > 3 else ''}"
        for kind, found in (("missing", missing), ("surplus", surplus), ("misshapen", misshapen))
        if found
    ]
    if problems:
        what = " ".join(f"{key}={value}" for key, value in asked.items() if key != "kind")
        cause = _likely_cause(state, {key: str(value) for key, value in asked.items()})
        raise ValueError(
            f"checkpoint {str(path)!r} does not fit {asked['kind']} {what}: {'; '.join(problems)}; {cause}"
        )
    if any(name not in names for name, _ in model.named_buffers()):
        model = build().eval()  # some of it is computed, not loaded
    else:
        model.to_empty(device="cpu")
    model.load_state_dict({key: state.get(name, torch.tensor(0)) for key, name in names.items()})
    return model
