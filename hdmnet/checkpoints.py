"""Reading and writing checkpoints: plain containers and tensors only, so that loading one never runs anything.

Three kinds are told apart: a run of ours (Lightning's file with our ``hdmnet`` entry), a base learner of ours, and files of
the official release (`hdmnet.models.official`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hdmnet.models.official import OFFICIAL_BACKBONES, load_official_base_learner

if TYPE_CHECKING:
    from torch import Tensor

    from hdmnet.models.base_learner import BaseLearner

BASE_LEARNER_KEY = "hdmnet_base_learner"
RUN_KEY = "hdmnet"


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of any kind.

    Args:
        path: The file.

    Returns:
        Its top-level mapping.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, holds code, or is no mapping.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {str(path)!r} not found; expected the path of a .ckpt or .pth file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds here; a user sees one line
        raise ValueError(
            f"checkpoint {str(path)!r} cannot be read: damaged, or more than tensors and plain containers (nothing in it "
            "was run); expected a file written by hdmnet or by the official release"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"checkpoint {str(path)!r} holds a {type(content).__name__}; expected a mapping")
    return content


def write_atomically(content: dict[str, Any], path: str | Path) -> None:
    """Save with torch under a temporary name, then rename: the file is whole or not there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        torch.save(content, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def run_state_dict(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The network's state dict out of a run's checkpoint (Lightning prefixes it with ``model.``)."""
    state: dict[str, Tensor] = checkpoint["state_dict"]
    return {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}


def load_strictly(model: torch.nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Load a state dict whole.

    Args:
        model: Gets the values.
        state: Tensors by key.
        what: Where they come from, for the message.

    Raises:
        ValueError: Keys are missing or surplus, or shapes differ; one line that names some.
    """
    own = model.state_dict()
    found = {
        "missing": sorted(own.keys() - state.keys()),
        "surplus": sorted(state.keys() - own.keys()),
        "misshapen": sorted(k for k in own.keys() & state.keys() if own[k].shape != state[k].shape),
    }
    problems = [f"{len(keys)} {kind} ({', '.join(keys[:2])} …)" for kind, keys in found.items() if keys]
    if problems:
        raise ValueError(f"{what} does not fit this model: {'; '.join(problems)}; check dataset, backbone, model and shot")
    model.load_state_dict(state)


def save_base_learner(model: BaseLearner, path: str | Path, about: dict[str, Any]) -> None:
    """Write a base learner with plain facts about its training, atomically."""
    write_atomically({BASE_LEARNER_KEY: about, "state_dict": model.state_dict()}, path)


def load_base_learner(model: BaseLearner, path: str | Path, *, dataset: str, backbone: str) -> BaseLearner:
    """Read a trained base learner, ours or the official release's.

    Args:
        model: An untrained base learner of the right kind; filled (ours) or left alone (official).
        path: The file.
        dataset: "pascal" or "coco" for official files.
        backbone: Name of the backbone.

    Returns:
        The filled base learner.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged or does not fit.
    """
    content = read_checkpoint(path)
    if BASE_LEARNER_KEY in content:
        load_strictly(model, content["state_dict"], f"base learner {str(path)!r}")
        return model
    if RUN_KEY in content:
        raise ValueError(f"base_ckpt={str(path)!r} is a whole run; expected a base learner (base_learner.pt in a run's folder)")
    if backbone not in OFFICIAL_BACKBONES:
        raise ValueError(
            f"base_ckpt={str(path)!r} is no base learner of ours, and the official release has none for backbone={backbone}; "
            f"expected base_learner.pt of a run, or an official file with backbone={'|'.join(OFFICIAL_BACKBONES)}"
        )
    return load_official_base_learner(path, dataset, backbone)
