"""Turns a checkpoint of the official release into ours, or ours into the release's; every value is kept bit for bit.

    python scripts/checkpoints/convert_checkpoint.py official.pth ours.ckpt --dataset coco --backbone resnet50_v2 \
        --shot 1 --fold 0
    python scripts/checkpoints/convert_checkpoint.py ours.ckpt official.pth

Which way, and whether it is an HDMNet or a base learner (PSPNet), is seen from the file. A converted HDMNet goes to
`python -m hdmnet.evaluate ckpt=`, a base learner to `python -m hdmnet.train base_ckpt=`. An official file does not tell
its fold, so `--fold` is not checked: give the one it was trained on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor, nn

from hdmnet.cli.parser import OneLineParser, run_main
from hdmnet.config.paths import conf_dir
from hdmnet.config.schemas import register_schemas
from hdmnet.config.stored import stored_config
from hdmnet.config.values import to_stored
from hdmnet.data.class_split import split_classes
from hdmnet.data.datasets import coco, pascal
from hdmnet.models.base_learner import BaseLearner
from hdmnet.models.hdmnet.model import HDMNet
from hdmnet.models.hdmnet.official import build_official, load_official_checkpoint, official_key
from hdmnet.models.official import NUM_BASE, OFFICIAL_BACKBONES, guess_kind, read_state_dict
from hdmnet.models.official_base_learner import (
    build_official_base_learner,
    load_official_base_learner,
    official_base_learner_key,
)
from hdmnet.run.build import build_trained
from hdmnet.run.checkpoints import load_strictly, run_entry, run_state_dict, save_base_learner
from hdmnet.runtime.checkpoint_file import BASE_LEARNER_KEY, RUN_KEY, read_checkpoint, write_atomically

NAME = "convert_checkpoint"
CLASS_NAMES = {"pascal": pascal.CLASS_NAMES, "coco": coco.CLASS_NAMES}


def convert(source: Path, target: Path, *, dataset: str | None, backbone: str | None, shot: int, fold: int) -> str:
    """Convert one file.

    Args:
        source: The checkpoint, ours or the release's.
        target: Where the other form goes; must not exist.
        dataset: "pascal" or "coco"; needed for a file of the release.
        backbone: "resnet50_v2" or "vgg16"; needed for a file of the release.
        shot: K of a file of the release.
        fold: Fold of a file of the release.

    Returns:
        What was written, for the user.

    Raises:
        FileExistsError: The target is there already.
        FileNotFoundError: The source is not there.
        ValueError: The source is damaged or does not fit what was said of it.
    """
    if target.exists():
        raise FileExistsError(f"{target} exists; remove it or choose another name")
    content = read_checkpoint(source)
    run = run_entry(content, source)
    if run is not None:
        return _run_to_official(content, run, source, target)
    if BASE_LEARNER_KEY in content:
        return _base_learner_to_official(content, source, target)
    if dataset is None or backbone is None:
        raise ValueError(
            f"{source} is of the official release: --dataset and --backbone are needed, and --shot, --fold"
        )
    about = {"fold": fold, "backbone": backbone, "dataset": dataset}
    if guess_kind(read_state_dict(source)).get("kind") == "base learner":
        save_base_learner(load_official_base_learner(source, dataset, backbone), target, about)
        return f"base learner for hdmnet.train base_ckpt={target}"
    model = load_official_checkpoint(source, dataset, backbone, shot)
    cfg = _config(dataset, backbone, shot=shot, fold=fold)
    classes = split_classes(len(CLASS_NAMES[dataset]), cfg.dataset.num_folds, fold, cfg.dataset.split_rule)
    names = [CLASS_NAMES[dataset][value - 1] for value in classes.test]
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    write_atomically({"state_dict": state, RUN_KEY: {"config": to_stored(cfg), "class_names": names}}, target)
    return f"HDMNet for hdmnet.evaluate ckpt={target}"


def _config(dataset: str, backbone: str, *, shot: int, fold: int) -> DictConfig:
    """The training config that an official checkpoint corresponds to."""
    register_schemas()
    overrides = [f"dataset={dataset}", f"backbone={backbone}", f"shot={shot}", f"fold={fold}"]
    overrides += ["backbone.weights=null", "model.shot_weighting=official", "++model.matching.num_shots=null"]
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        return compose("train", overrides=overrides)


def _run_to_official(content: dict[str, Any], run: dict[str, Any], source: Path, target: Path) -> str:
    cfg = stored_config(run["config"], str(source))
    model = build_trained(cfg, run_state_dict(content), source, run["facts"])
    if not isinstance(model, HDMNet):
        raise ValueError(f"{source} holds a {type(model).__name__}; expected an HDMNet, the only one that is written")
    write_atomically({"state_dict": _contiguous(to_official_state_dict(model))}, target)
    return f"official HDMNet {target}"


def _base_learner_to_official(content: dict[str, Any], source: Path, target: Path) -> str:
    about = content[BASE_LEARNER_KEY]
    learner = build_official_base_learner(str(about.get("dataset")), str(about.get("backbone")))
    load_strictly(learner, content["state_dict"], str(source))
    write_atomically({"state_dict": _contiguous(to_official_base_learner_state_dict(learner))}, target)
    return f"official base learner {target}"


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


def _contiguous(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value.contiguous() for key, value in state.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script.

    Args:
        argv: Command line without the program's name; None = the process's own.

    Returns:
        Exit code: 0 if the file was written, else 1.
    """
    parser = OneLineParser(prog=NAME, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="checkpoint, ours or the release's")
    parser.add_argument("target", type=Path, help="file to write; must not exist")
    parser.add_argument("--dataset", choices=CLASS_NAMES, help="of a file of the release")
    parser.add_argument("--backbone", choices=("resnet50_v2", "vgg16"), help="of a file of the release")
    parser.add_argument("--shot", type=int, default=1, help="shots of a file of the release (default: 1)")
    parser.add_argument("--fold", type=int, default=0, help="fold of a file of the release (default: 0)")

    def body() -> bool:
        arguments = vars(parser.parse_args(argv))
        print(convert(arguments.pop("source"), arguments.pop("target"), **arguments))
        return True

    return run_main(body, NAME)


if __name__ == "__main__":
    raise SystemExit(main())
