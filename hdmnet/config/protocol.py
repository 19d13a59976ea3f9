"""Applies a config's protocol to its data set's keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KEYS = ("train_list", "min_area", "num_test_episodes", "num_test_seeds")
_KEPT = {"background": None, "ignore": "ignore"}  # images with novel pixels: what `dataset.novel_pixels` is then


def by_dataset(value: Any, name: str) -> Any:
    """A protocol's value for a data set: its own where there is one for each, null of one that is not named."""
    return value.get(name) if isinstance(value, Mapping) else value


def dataset_settings(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The `dataset` node of a plain config with what its protocol sets in place of the node's own values.

    The config itself keeps both, so that another protocol may be chosen for its checkpoint.
    """
    node, protocol = dict(plain["dataset"]), plain.get("protocol")
    if not isinstance(protocol, Mapping):  # none, or a file's from before there were several
        return node
    for key in _KEYS:
        value = by_dataset(protocol.get(key), node["name"])
        if value is not None:
            node[key] = value
    rule = by_dataset(protocol.get("novel_pixels"), node["name"])
    if rule is not None:
        node |= {"filter_novel": rule == "removed", "novel_pixels": _KEPT.get(rule)}
    return node
