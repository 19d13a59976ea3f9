"""Plain values out of a composed config."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

HDMNET = "hdmnet"  # this package's own method, as `model.name` has it

# An interpolation that calls a resolver (`${oc.env:HOME}`) and does not just name a key.
RESOLVER = re.compile(r"\$\{.*:", re.DOTALL)


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """`"; did you mean 'fold'?"` for the known word that is closest, or nothing where none is close."""
    matches = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def to_plain(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain dicts and lists with every interpolation resolved, e.g. for `result.json`."""
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))


def to_stored(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain dicts and lists, for a checkpoint.

    Interpolations are kept, so that `evaluate dataset.image_size=257` also reaches the places that refer to it; what
    calls a resolver is not, for it means this machine. Folders are already absolute (see `make_paths_absolute`).
    """
    stored, plain = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False)), to_plain(cfg)
    for group in ("backbone", "augment"):  # the one that this data set names; another data set does not change it
        if isinstance(stored.get(group), dict) and "name" in stored[group]:
            stored[group]["name"] = plain[group]["name"]
    return cast(dict[str, Any], _without_resolvers(stored, plain)) if RESOLVER.search(str(stored)) else stored


def _without_resolvers(node: Any, plain: Any) -> Any:
    """The node, its values that call a resolver taken from the resolved one."""
    if isinstance(node, str):
        return plain if RESOLVER.search(node) else node
    if isinstance(node, dict):
        return {key: _without_resolvers(value, plain[key]) for key, value in node.items()}
    return [_without_resolvers(*pair) for pair in zip(node, plain, strict=True)] if isinstance(node, list) else node


def image_size(value: int | Sequence[int]) -> tuple[int, int]:
    """`dataset.image_size` as (H, W) in pixels: one integer stands for a square."""
    if isinstance(value, int):
        return value, value
    height, width = value
    return int(height), int(width)


def part_of_size(value: Any, share: float) -> Any:
    """Resolver `part_of_size`: about a share of an image size, 1 more than a multiple of 8, the trunks' stride.

    What is no size stays as it is: the check of `dataset.image_size` says what is wrong with it.
    """
    if isinstance(value, int):
        return 8 * max(1, round(value * share / 8)) + 1
    return [part_of_size(side, share) for side in value] if OmegaConf.is_list(value) else value


def num_devices(cfg: DictConfig) -> int:
    """Processes that the trainer starts on a machine; 1 where only Lightning can tell, or without a trainer."""
    devices = OmegaConf.select(cfg, "trainer.devices", default=1)
    return max(1, devices) if isinstance(devices, int) else 1


ABSENT = object()


def look_up(plain: Mapping[str, Any], key: str) -> Any:
    """Value at a dotted key of nested mappings, or `ABSENT`."""
    node: Any = plain
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return ABSENT
        node = node[part]
    return node


def method_of(config: Any) -> str:
    """Name of the method that a plain config is of; of one from before methods had names, told by its class."""
    model = config.get("model") if isinstance(config, Mapping) else None
    model = model if isinstance(model, Mapping) else {}
    return str(model.get("name") or ("baseline" if "baseline" in str(model.get("_target_")) else HDMNET))
