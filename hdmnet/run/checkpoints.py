"""What the checkpoints of a run and of a base learner hold."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hdmnet.config.renamed import upgrade
from hdmnet.config.values import look_up
from hdmnet.models.official import OFFICIAL_BACKBONES
from hdmnet.models.official_base_learner import load_official_base_learner
from hdmnet.runtime.checkpoint_file import BASE_LEARNER_KEY, RUN_KEY, read_checkpoint, write_atomically
from hdmnet.runtime.errors import CheckpointError, refusals_as

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hdmnet.models.base_learner import BaseLearner
    from hdmnet.models.method import FewShotMethod


def run_entry(content: dict[str, Any], path: str | Path) -> dict[str, Any] | None:
    """What a run of ours wrote beside the weights (``config``, ``class_names``); None for files of others.

    Raises:
        ValueError: The entry is there but is not what a run writes.
    """
    entry = content.get(RUN_KEY)
    if entry is None:
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("config"), dict) or "state_dict" not in content:
        raise CheckpointError(
            f"checkpoint {str(path)!r} lacks its config or weights; expected a file that hdmnet wrote"
        )
    for key, kind in (("dataset.name", str), ("fold", int), ("shot", int)):
        if not isinstance(look_up(entry["config"], key), kind):
            raise CheckpointError(
                f"checkpoint {str(path)!r} has no {key} in its config; expected a file that hdmnet wrote"
            )
    entry["config"] = upgrade(entry["config"])
    entry.setdefault("facts", facts_of_earlier_versions(entry["config"], content["state_dict"], "model."))
    return entry


def facts_of_earlier_versions(config: dict[str, Any], state: Any, prefix: str = "") -> dict[str, Any]:
    """What files did not tell before version 0.2, when HDMNet was the only method: read off its weights.

    Args:
        config: The config in the file, in today's shape.
        state: The state dict.
        prefix: Of the network's keys in it.

    Returns:
        ``method``, ``shot`` (K of the training) and ``num_base``.
    """
    classifier = state.get(f"{prefix}trunk.base_learner.classifier.2.bias") if isinstance(state, dict) else None
    num_base = len(classifier) - 1 if isinstance(classifier, Tensor) and classifier.ndim == 1 else 0
    return {"method": look_up(config, "model.name"), "shot": config["shot"], "num_base": num_base}


def load_official(
    method: str, path: str | Path, dataset: str, backbone: str, shot: int, settings: Mapping[str, Any] | None = None
) -> FewShotMethod:
    """Read a checkpoint of a method's official release, by its `hdmnet.models.<method>.official`.

    Of `settings`, keys of a config's `model`, the reader gets those that it takes (`refine` of SSP).

    Raises:
        ValueError: There is no such reader, or the file fits no variant of the release.
        FileNotFoundError: There is no such file.
    """
    load = official_reader(method).load_official_checkpoint
    known = inspect.signature(load).parameters
    own = {key: value for key, value in (settings or {}).items() if key in known}
    with refusals_as(CheckpointError):
        model: FewShotMethod = load(path, dataset, backbone, shot, **own)
    return model


def official_reader(method: str) -> Any:
    """The module that reads a method's official checkpoints.

    Raises:
        ValueError: There is none.
    """
    names = (f"hdmnet.models.{method}", f"hdmnet.models.{method}.official")
    if not method.isidentifier() or not all(map(importlib.util.find_spec, names)):
        raise CheckpointError(f"model={method}: no official checkpoints of it are read; expected a checkpoint of a run")
    return importlib.import_module(names[1])


def run_state_dict(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The network's state dict out of a run's checkpoint (Lightning prefixes it with ``model.``).

    Raises:
        ValueError: The checkpoint has none.
    """
    state = _state_dict(checkpoint, "the checkpoint")
    return {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}


def _state_dict(checkpoint: dict[str, Any], what: str) -> dict[str, Tensor]:
    state = checkpoint.get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise CheckpointError(f"{what} has no state_dict of tensors by name; expected a file written by hdmnet")
    return state


# Where a misfit is found → what it tells of.
_CAUSES = (
    ("ensemble.shot_weights", "trained with another number of shots (shot)"),
    ("ensemble.", "trained with another model.ensemble"),
    ("classifier.", "trained on another data set, with another number of base classes (dataset)"),
    ("matching.", "trained with another model.num_stages or model.matching.merge_kernel"),
    ("pyramid.stages.", "trained with another model.num_stages"),
    ("meta_learner.", "trained with another backbone"),
    ("backbone.", "trained with another backbone"),
)


def _likely_cause(found: dict[str, list[str]], own: set[str]) -> str:
    odd = [key for keys in found.values() for key in keys]
    if own <= set(found["missing"]):
        return "another model's checkpoint?"
    # The backbone changes nearly everything else too, so it is looked for first.
    if any("backbone." in key for key in odd):
        return "trained with another backbone?"
    causes = [next((cause for part, cause in _CAUSES if part in key), "") for key in odd]
    likely = next((cause for _, cause in _CAUSES if cause in causes), "")
    return f"{likely}?" if likely else "check dataset, backbone, model and shot"


def _like(value: object, own: Tensor) -> bool:
    """Whether a file's value is an ordinary tensor of numbers, of the shape of ours."""
    plain = isinstance(value, Tensor) and value.layout == torch.strided and not (value.is_meta or value.is_quantized)
    return plain and isinstance(value, Tensor) and value.shape == own.shape and value.is_complex() == own.is_complex()


def load_strictly(model: torch.nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Load a state dict whole; `what` it comes from, for the message.

    Raises:
        ValueError: Keys are missing or surplus, or shapes differ; one line that names some.
    """
    own = model.state_dict()
    found = {
        "missing": sorted(own.keys() - state.keys()),
        "surplus": sorted(state.keys() - own.keys()),
        "misshapen": sorted(k for k in own.keys() & state.keys() if not _like(state[k], own[k])),
    }
    problems = [f"{len(keys)} {kind} ({', '.join(keys[:2])} …)" for kind, keys in found.items() if keys]
    if problems:
        raise CheckpointError(
            f"{what} does not fit this model: {'; '.join(problems)}; {_likely_cause(found, set(own))}"
        )
    model.load_state_dict(state)


def save_base_learner(model: BaseLearner, path: str | Path, about: dict[str, Any]) -> None:
    """Write a base learner with plain facts about its training, atomically."""
    write_atomically({BASE_LEARNER_KEY: about, "state_dict": model.state_dict()}, path)


def load_base_learner(
    model: BaseLearner, path: str | Path, *, dataset: str, backbone: str, fold: int | None = None
) -> BaseLearner:
    """Read a trained base learner, ours or the official release's.

    Args:
        model: An untrained base learner of the right kind; filled (ours) or left alone (official).
        path: The file.
        dataset: Name of the data set; "pascal" or "coco" for official files.
        backbone: Name of the backbone.
        fold: The fold whose base classes it must have been trained on; another's has seen the novel classes. None =
            any. An official file does not tell its fold.

    Returns:
        The filled base learner.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged or does not fit.
    """
    content = read_checkpoint(path)
    if BASE_LEARNER_KEY in content:
        about = content[BASE_LEARNER_KEY]
        for key, wanted in (("dataset", dataset), ("backbone", backbone), ("fold", fold)):
            found = about.get(key) if isinstance(about, dict) else None
            if wanted is not None and found is not None and found != wanted:
                raise CheckpointError(
                    f"base learner {str(path)!r} was trained with {key}={found}, this run has {key}={wanted}; give the "
                    "one that fits, or none to train it"
                )
        load_strictly(model, _state_dict(content, f"base learner {str(path)!r}"), f"base learner {str(path)!r}")
        return model
    if RUN_KEY in content:
        raise CheckpointError(
            f"base_ckpt={str(path)!r} is a whole run; expected a base learner (base_learner.pt in a run's folder)"
        )
    if backbone not in OFFICIAL_BACKBONES:
        raise CheckpointError(
            f"base_ckpt={str(path)!r} is no base learner of ours, and the official release has none for "
            f"backbone={backbone}; expected "
            f"base_learner.pt of a run, or an official file with backbone={'|'.join(OFFICIAL_BACKBONES)}"
        )
    return load_official_base_learner(path, dataset, backbone)
