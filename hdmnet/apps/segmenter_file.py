"""Loads a model for a user's own pictures, and keeps a fitted segmenter as a file of tensors and plain values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from hdmnet.config.paths import HYDRA_VERSION_BASE, conf_dir
from hdmnet.config.renamed import upgrade
from hdmnet.config.schemas import register_schemas
from hdmnet.config.stored import stored_config
from hdmnet.config.values import image_size as as_size
from hdmnet.config.values import to_plain
from hdmnet.models.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from hdmnet.models.method import Features, FewShotMethod
from hdmnet.models.packed import PackedRows
from hdmnet.run.build import build_encoder, build_model, build_trained, refuse_to_learn
from hdmnet.run.checkpoints import (
    facts_of_earlier_versions,
    load_official,
    load_strictly,
    official_reader,
    run_entry,
    run_state_dict,
)
from hdmnet.run.pretrained import build_pretrained
from hdmnet.runtime.checkpoint_file import BASE_LEARNER_KEY, read_checkpoint, write_atomically
from hdmnet.runtime.errors import CheckpointError, ConfigError, one_line

UNTRAINED_SIZE = 473  # px, side of the square without a training that says another
UNTRAINED_BACKBONE = "efficientnet_lite2"  # as conf/predict.yaml and conf/demo.yaml have it
SEGMENTER_KEY = "hdmnet_segmenter"


@dataclass(frozen=True)
class SegmenterSpec:
    """How to build a network again, without its weights, and what goes into it.

    Attributes:
        image_size: (H, W) of the network's input.
        mean: RGB mean of the normalisation, in [0, 1].
        std: RGB standard deviation.
        config: Of a run: its config as stored in the checkpoint.
        official: Of a release: the arguments `method`, and of its `build_official` `dataset`, `backbone` and `shot`.
        facts: Of a run: what its checkpoint tells of the training.
    """

    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    config: dict[str, Any] | None = None
    official: dict[str, Any] | None = None
    facts: dict[str, Any] | None = None


def read_segmenter(
    path: str | Path,
    dataset: str | None,
    backbone: str | None,
    shot: int,
    method: str,
    image_size: int | Sequence[int] | None,
) -> tuple[FewShotMethod, SegmenterSpec, dict[str, Any]]:
    """The model with its weights, on the CPU; its recipe; the file's content.

    Arguments and refusals as of `Segmenter.from_checkpoint`.
    """
    content = read_checkpoint(path)
    if BASE_LEARNER_KEY in content:
        raise CheckpointError(f"ckpt={path} is a base learner; expected checkpoints/best.ckpt of a run's folder")
    if SEGMENTER_KEY in content:
        return _from_saved(content, path, image_size)
    about = run_entry(content, path)
    if about is not None:
        cfg = stored_config(about["config"], f"ckpt={path}")
        model = build_trained(cfg, run_state_dict(content), path, about["facts"])
        size = cfg.dataset.image_size if image_size is None else image_size
        statistics = tuple(cfg.backbone.mean), tuple(cfg.backbone.std)
        return model, SegmenterSpec(_size(size), *statistics, about["config"], facts=about["facts"]), content
    if dataset is None or backbone is None:
        raise CheckpointError(
            f"ckpt={path} is not of an hdmnet run (dataset={dataset}, backbone={backbone}); expected "
            "checkpoints/best.ckpt of a run's folder, or a file of a method's official release with its dataset, "
            "backbone and shot (predict: official.dataset=… official.backbone=… official.shot=K)"
        )
    official: dict[str, Any] = {"method": method, "dataset": dataset, "backbone": backbone, "shot": shot}
    loaded = load_official(path=path, **official)
    size = official_reader(method).IMAGE_SIZES[dataset] if image_size is None else image_size
    return loaded, SegmenterSpec(_size(size), IMAGENET_MEAN, IMAGENET_STD, official=official), content


def compose_predict(words: Sequence[str]) -> DictConfig:
    """The config of `python -m hdmnet.predict`, for Python; raises ValueError for words that Hydra refuses."""
    from hydra import compose, initialize_config_dir

    register_schemas()
    with initialize_config_dir(config_dir=str(conf_dir()), version_base=HYDRA_VERSION_BASE):
        try:
            return compose("predict", overrides=list(words))
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(one_line(error)) from error


def build_untrained_segmenter(
    cfg: DictConfig, image_size: int | Sequence[int] | None
) -> tuple[FewShotMethod, SegmenterSpec]:
    """The method of a config's `model` and `backbone`, with the backbone's own weights, and its recipe.

    Raises:
        FileNotFoundError: The weights are not there.
        ValueError: `model` has to be trained.
    """
    plain = to_plain(cfg)
    size = _size(UNTRAINED_SIZE if image_size is None else image_size)
    config = {key: plain[key] for key in ("model", "backbone")}
    config |= {"dataset": {"name": "none", "image_size": list(size)}, "fold": 0, "shot": 1}
    run = OmegaConf.create(config)
    refuse_to_learn(run)
    model = build_model(run, build_encoder(run, num_base=0))
    facts = {"method": plain["model"]["name"], "shot": 1, "num_base": 0}
    statistics = tuple(run.backbone.mean), tuple(run.backbone.std)
    return model, SegmenterSpec(size, *statistics, config, facts=facts)


def build_pretrained_segmenter(image_size: int | Sequence[int] | None) -> tuple[FewShotMethod, SegmenterSpec]:
    """The packaged segmenter and its recipe.

    Raises:
        ValueError: A package that it needs is not installed, or the size is none.
    """
    model, cfg = build_pretrained()
    plain = to_plain(cfg)
    config = {key: plain[key] for key in ("model", "backbone", "dataset", "fold", "shot")}
    facts = {"method": cfg.model.name, "shot": cfg.shot, "num_base": 0}
    size = _size(cfg.dataset.image_size if image_size is None else image_size)
    return model, SegmenterSpec(size, tuple(cfg.backbone.mean), tuple(cfg.backbone.std), config, facts=facts)


def _size(value: Any) -> tuple[int, int]:
    """`image_size` as (H, W)."""
    try:
        size = as_size(value)
    except (TypeError, ValueError):
        size = (0, 0)
    if min(size) < 1:
        raise CheckpointError(f"image_size={value}: expected an integer of at least 1, or two of them: [H,W]")
    return size


def _from_saved(
    content: dict[str, Any], path: str | Path, image_size: int | Sequence[int] | None
) -> tuple[FewShotMethod, SegmenterSpec, dict[str, Any]]:
    """The model of a file that `write_segmenter` wrote."""
    try:
        stored, state = content[SEGMENTER_KEY]["recipe"], content["state_dict"]
        statistics = {name: tuple(map(float, stored[name])) for name in ("mean", "std")}
        recipe = SegmenterSpec(**{**stored, **statistics, "image_size": _size(stored["image_size"])})
        recipe = replace(recipe, config=upgrade(recipe.config))
        if (recipe.config is None) == (recipe.official is None):
            raise KeyError("config")
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise CheckpointError(f"checkpoint {str(path)!r}: {error}") from None
        raise CheckpointError(
            f"checkpoint {str(path)!r} lacks parts of a fitted segmenter; expected what save wrote"
        ) from None
    if image_size is not None and as_size(image_size) != recipe.image_size:
        raise CheckpointError(
            f"image_size={image_size}: {path} was fitted at {list(recipe.image_size)}; fit again to change it"
        )
    if recipe.config is not None:
        cfg = stored_config(recipe.config, f"ckpt={path}")
        facts = recipe.facts or facts_of_earlier_versions(recipe.config, state)
        return build_trained(cfg, state, path, facts), recipe, content
    variant = {"method": "hdmnet", **(recipe.official or {})}
    model: FewShotMethod = official_reader(variant.pop("method")).build_official(**variant)
    load_strictly(model, state, str(path))
    return model, recipe, content


# ----------------------------------------------------------------------------------------------------------- supports


def write_segmenter(
    path: str | Path, model: nn.Module, recipe: SegmenterSpec, fitted: Mapping[str, tuple[Any, int]]
) -> None:
    """Write a network with encoded supports, features and their number K by class, atomically."""
    supports = [
        {"name": name, "shots": shots, "features": {f.name: _pack(getattr(features, f.name)) for f in fields(features)}}
        for name, (features, shots) in fitted.items()
    ]
    state = {key: value.cpu() for key, value in model.state_dict().items()}
    about = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(recipe).items()}
    write_atomically({SEGMENTER_KEY: {"recipe": about, "supports": supports}, "state_dict": state}, path)


def read_supports(
    content: dict[str, Any], path: str | Path, kind: type[Features], device: torch.device
) -> Iterator[tuple[str, tuple[Features, int]]]:
    """The supports in a checkpoint's content, none unless `write_segmenter` wrote it: class name, features, number K.

    Args:
        content: From `read_segmenter`.
        path: For messages.
        kind: What the model encodes supports to.
        device: Where the features go.

    Raises:
        ValueError: Parts are missing.
    """
    if SEGMENTER_KEY not in content:
        return
    try:
        for one in content[SEGMENTER_KEY]["supports"]:
            parts = {name: _unpack(value, device) for name, value in one["features"].items()}
            yield str(one["name"]), (kind(**parts), int(one["shots"]))
    except (KeyError, TypeError, AttributeError, ValueError):
        raise CheckpointError(
            f"checkpoint {str(path)!r} lacks parts of its supports; expected what save wrote"
        ) from None


def _pack(value: Any) -> Any:
    """Features as plain containers of tensors on the CPU."""
    if isinstance(value, PackedRows):
        return {"values": value.values.cpu(), "counts": list(value.counts)}
    if isinstance(value, list):
        return [_pack(one) for one in value]
    return value.cpu() if isinstance(value, Tensor) else value


def _unpack(value: Any, device: torch.device) -> Any:
    """The inverse of `_pack`."""
    if isinstance(value, dict):
        return PackedRows(value["values"].to(device), tuple(int(count) for count in value["counts"]))
    if isinstance(value, list):
        return [_unpack(one, device) for one in value]
    return value.to(device) if isinstance(value, Tensor) else value
