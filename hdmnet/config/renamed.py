"""Translates configs from files of earlier versions into today's keys.

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
    "hdmnet.callbacks.wandb.build_wandb_logger": "hdmnet.loggers.wandb.DashboardLogger",
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


# conf/protocol/ours.yaml of when the protocol, before that the name of a walk over the queries, became a group.
_PROTOCOL = {
    **{"name": "ours", "novel_pixels": None, "train_list": None, "min_area": None, "num_test_episodes": None},
    **{"num_test_seeds": None, "queries": "uniform", "supports": "distinct", "resize": "square", "padding": "ignore"},
    **{"score_at": "original", "absent_classes": "left_out"},
}


def upgrade(config: Any) -> Any:
    """A copy of a config, or whatever lies in its place, as today's code takes it; what has not changed is the same."""
    new = _with_new_names(config, 0)
    if isinstance(new, dict):
        _move_keys(new)
    return new


def _move_keys(config: dict[str, Any]) -> None:
    """Bring the keys of version 0.1 into today's places; keys that are there already are left."""
    groups = ("dataset", "backbone", "model", "loss", "optim", "augment", "callbacks")
    dataset, backbone, model, loss, optim, augment, callbacks = (
        node if isinstance(node := config.get(group), dict) else {} for group in groups
    )
    if isinstance(config.get("protocol"), str):
        config["protocol"] = {**_PROTOCOL, "name": protocol_name(config["protocol"]), "queries": config["protocol"]}
    if isinstance(dataset.get("source"), dict):
        config["dataset"] = dataset = _without_source(dataset)
    if backbone:
        config["backbone"] = _backbone(backbone)
    if dataset:
        dataset.setdefault("backbone", backbone.get("name"))
        dataset.setdefault("augment", augment.get("name"))
        dataset.setdefault("novel_pixels", None)  # files of before have neither this nor a year
        if dataset.get("_target_") == "hdmnet.data.datasets.coco.CocoDataset":
            dataset.setdefault("year", 2014)
        if str(dataset.get("_target_")).endswith("FolderDataset"):
            dataset.setdefault("colours", None)
        dataset.setdefault("base_val_share", 0.2)  # of no effect on what was trained before there was `selection=base`
    if model and "name" not in model:  # HDMNet was the only method
        model["name"] = "baseline" if str(model.get("_target_")).endswith("baseline") else "hdmnet"
        model["encoder"] = "base_learner"
    if loss and "_target_" not in loss:
        loss["_target_"] = "hdmnet.models.hdmnet.loss.HDMNetLoss"
    if "lr" in optim and "optimizer" not in optim:
        refers = "${" in str(config)  # a checkpoint's config refers to its own keys, a result's holds values
        keys = {"weight_decay": "weight_decay", "power": "power", "warmup_steps": "warmup_iterations"}
        values = {new: f"${{..{old}}}" if refers else optim.get(old) for old, new in keys.items()}
        decay = {"weight_decay": values.pop("weight_decay")}
        optim["optimizer"] = {"_target_": "torch.optim.AdamW", "_partial_": True, **decay}
        optim["schedule"] = {"_target_": "hdmnet.tasks.schedule.poly_schedule", "_partial_": True, **values}
        optim["groups"] = {"head_lr_factor": optim.pop("head_lr_factor", 10)}
    if optim:
        optim.setdefault("on_nonfinite", "stop")
        optim.setdefault("fall_back", False)
        if isinstance(optim.get("base"), dict):
            optim["base"].setdefault("images", "filtered")
    if callbacks and isinstance(config.get("optim"), dict):  # every run had this one before it stood in the config
        guard = {"policy": "${optim.on_nonfinite}", "directory": "${paths.run_dir}"}
        callbacks.setdefault("non_finite", {"_target_": "hdmnet.callbacks.non_finite.NonFiniteGuard", **guard})


def protocol_name(walk: Any) -> Any:
    """Today's name of what earlier results call their protocol."""
    return "ours" if walk == "uniform" else walk


def _without_source(dataset: dict[str, Any]) -> dict[str, Any]:
    """A `dataset` node whose class and arguments stood in a block of their own, `source`, beside the run's keys."""
    node = {"check_files": 0, "on_error": "raise"} | {key: dataset[key] for key in dataset if key != "source"}
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
