"""Configs out of files of earlier versions, brought into today's shape.

A checkpoint, a `result.json` and a run's `run.json` hold the config that they were made with, and with it the names
that classes had then.
"""

from __future__ import annotations

from typing import Any

_DEEPEST = 20  # ours have five levels; what nests more deeply is refused elsewhere

# `_target_` then → now.
RENAMED = {
    "hdmnet.callbacks.finite.NonFiniteGuard": "hdmnet.callbacks.non_finite.NonFiniteGuard",
    "hdmnet.callbacks.metrics_file.MetricsFile": "hdmnet.loggers.csv.CsvLogger",
    "hdmnet.callbacks.visualise.EpisodePictures": "hdmnet.callbacks.pictures.EpisodePictures",
    "hdmnet.callbacks.wandb.build_wandb_logger": "hdmnet.loggers.wandb.build_wandb_logger",
    "hdmnet.data.coco.CocoSource": "hdmnet.data.datasets.coco.CocoDataset",
    "hdmnet.data.folder.FolderSource": "hdmnet.data.datasets.folder.dataset.FolderDataset",
    "hdmnet.data.pascal.PascalSource": "hdmnet.data.datasets.pascal.PascalDataset",
    "hdmnet.data.shapes.ShapesSource": "hdmnet.data.datasets.shapes.dataset.ShapesDataset",
    "hdmnet.models.backbone.build_backbone": "hdmnet.models.backbones.build.build_backbone",
    "hdmnet.models.baseline.build_baseline": "hdmnet.models.hdmnet.baseline.build_baseline",
    "hdmnet.models.hdmnet.build_hdmnet": "hdmnet.models.hdmnet.model.build_hdmnet",
}

# What stood in the backbones' files; null in the others.
_WEIGHTS = {
    **dict.fromkeys(("resnet18", "vgg16"), "IMAGENET1K_V1"),
    **dict.fromkeys(("resnet50", "resnet101", "mobilenet_v2"), "IMAGENET1K_V2"),
}


def upgrade(config: Any) -> Any:
    """A config as today's code takes it.

    Args:
        config: Plain containers, as they lie in a file of this or an earlier version; whatever else it is, is left.

    Returns:
        A copy; what has not changed since is the same.
    """
    new = _with_new_names(config, 0)
    if isinstance(new, dict) and isinstance(new.get("backbone"), dict):
        new["backbone"] = _backbone(new["backbone"])
    return new


def _backbone(node: dict[str, Any]) -> dict[str, Any]:
    """To 0.1.0 the builder stood in a block `build`, and each backbone's file held what is the default now."""
    build = node.get("build")
    if not isinstance(build, dict):
        return node
    own = {key: value for key, value in build.items() if not str(value).startswith("${..")}
    new = {"dilation": "release", **{key: value for key, value in node.items() if key != "build"}, **own}
    name = str(new.get("name"))
    if new.get("weights") == _WEIGHTS.get(name):
        new["weights"] = "default"
    if new.get("feature_channels") == (128 if name == "resnet_narrow" else 512):
        new["feature_channels"] = None
    return new


def _with_new_names(node: Any, depth: int) -> Any:
    if depth > _DEEPEST:
        return node
    if isinstance(node, list):
        return [_with_new_names(item, depth + 1) for item in node]
    if not isinstance(node, dict):
        return node
    new = {key: _with_new_names(value, depth + 1) for key, value in node.items()}
    target = new.get("_target_")
    if isinstance(target, str) and target in RENAMED:
        new["_target_"] = RENAMED[target]
    return new
