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


def upgrade(config: Any) -> Any:
    """A config as today's code takes it.

    Args:
        config: Plain containers, as they lie in a file of this or an earlier version; whatever else it is, is left.

    Returns:
        A copy; what has not changed since is the same.
    """
    new = _with_new_names(config, 0)
    if (
        isinstance(new, dict)
        and isinstance(new.get("dataset"), dict)
        and isinstance(new["dataset"].get("source"), dict)
    ):
        new["dataset"] = _without_source(new["dataset"])
    return new


def _without_source(dataset: dict[str, Any]) -> dict[str, Any]:
    """A `dataset` node whose class and arguments stood in a block of their own, `source`, beside the run's keys."""
    node = {key: value for key, value in dataset.items() if key != "source"}
    source = dict(dataset["source"])
    if source.get("_target_") == "hdmnet.data.datasets.shapes.dataset.ShapesDataset":
        for old, new in (("seed", "generator_seed"), ("image_size", "picture_size")):
            if old in source:
                source[new] = source.pop(old)
    for key, value in source.items():
        if not isinstance(value, str) or not value.startswith("${.."):
            node[key] = value
        elif value != f"${{..{key}}}":
            node[key] = value.replace("${..", "${.", 1)
    return node


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
