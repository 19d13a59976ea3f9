"""Compares an evaluation with the result of its checkpoint's run: whether the figures are the same, and if not why.

The same checkpoint on the same episodes gives the same figures on another day: nothing depends on date, folder, workers
or order. What can move a few pixels is what computes: libraries, the processor or GPU and the number of threads, all of
which change the order of float sums. What moves many is other data or other code. All of it stands in both results.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hdmnet.config.protocol import dataset_settings
from hdmnet.run.result import read_result
from hdmnet.runtime.home import expand_home

log = logging.getLogger(__name__)

# What must be equal for two results to be of the same episodes, and beyond that for their figures to be the same.
_EPISODES = ("dataset", "fold", "shot", "way", "generalised", "protocol")
_FIGURES = ("backbone", "support_mask")
_FIGURE_GROUPS = ("dataset", "model", "backbone", "protocol")  # of the config
_NOT_OF_FIGURES = ("name", "num_test_seeds", "controls", "root", "num_val_episodes")
# Keys of the data set's config that no test episode depends on; a root is another where the folder was moved.
_NOT_OF_EPISODES = (
    *("_target_", "root", "backbone", "augment", "augment_scale", "image_size", "base_image_size", "picture_size"),
    *("filter_novel", "novel_pixels", "episodes_per_epoch", "num_val_episodes", "num_test_seeds", "check_files"),
    "controls",
)
_MACHINE = ("cpu", "cpu_capability", "gpus", "torch_threads")
_CODE = ("git_commit", "git_dirty")


def training_facts(checkpoint: str | Path, entry: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What is known of the run that made a checkpoint.

    Args:
        checkpoint: The file, usually RUN/checkpoints/best.ckpt.
        entry: What the run wrote into it (`hdmnet.run.checkpoints.run_entry`); None for others' files.

    Returns:
        The run's result with its path under `origin`; where that is not there, versions and commit out of the
        checkpoint; None where nothing is known.
    """
    run_dir = expand_home(checkpoint).absolute().parent.parent
    try:
        return {**read_result(run_dir), "origin": str(run_dir / "result.json")}
    except (ValueError, OSError):  # not finished, moved away from its folder, or damaged: then without it
        known = {key: entry[key] for key in ("versions", *_CODE) if key in entry} if entry is not None else {}
        return {**known, "origin": str(checkpoint)} if known else None


def compare_results(result: Mapping[str, Any], trained: Mapping[str, Any]) -> dict[str, Any]:
    """Compare an evaluation with what its checkpoint's run has written.

    Returns:
        `origin`; `differences`: a line each, of versions, code, machine and data; `same_episodes` and `same_figures`:
        True, False, or None where the two were not asked for the same; `asked_otherwise`: the keys of the data set that
        make other episodes, if there are any.
    """
    differences = [f"version of {line}" for line in _differing(result, trained, "versions")]
    differences += _code(result, trained)
    if "hardware" in trained:
        differences += _differing(result, trained, "hardware", _MACHINE)
    asked_alike = "test" in trained and all(result.get(key) == trained.get(key) for key in _EPISODES)
    asked_alike = asked_alike and result["test"]["num_episodes"] == trained["test"]["num_episodes"]
    same_episodes = _same_episodes(result, trained) if asked_alike else None
    asked_otherwise = _asked_otherwise(result, trained) if same_episodes is False else []
    if asked_otherwise:
        same_episodes = None
    same_figures = None
    if same_episodes and _same_question(result, trained):
        same_figures = _same_values(result, trained)
    labels = [one.get("data_sha256") for one in (trained, result)]
    if asked_alike and not asked_otherwise and None not in labels and labels[0] != labels[1]:
        differences.append("labels or list of the validation images")
    return {
        "origin": trained["origin"],
        "differences": differences,
        "same_episodes": same_episodes,
        "same_figures": same_figures,
        **({"asked_otherwise": asked_otherwise} if asked_otherwise else {}),
    }


def print_comparison(compared: Mapping[str, Any]) -> None:
    """Log what `compare_results` gave: one line where all is well, a warning for each thing that is not."""
    origin, differences = compared["origin"], "; ".join(compared["differences"])
    if "asked_otherwise" in compared:
        log.info("other test episodes than in %s, by another %s", origin, ", ".join(compared["asked_otherwise"]))
    if compared["same_episodes"] is False:
        log.warning("other test episodes than in %s, though asked for the same: other data or other code", origin)
    if compared["same_figures"] is False:
        why = differences or "nothing that is known of: batch size or reuse may move a few pixels"
        log.warning("other figures than in %s on the same episodes; what differs: %s", origin, why)
    elif differences:
        log.warning("made with other means than %s: %s", origin, differences)
    if compared["same_figures"]:
        log.info("the same figures as in %s, on the same episodes", origin)


def _differing(
    result: Mapping[str, Any], trained: Mapping[str, Any], entry: str, keys: tuple[str, ...] | None = None
) -> list[str]:
    """Lines of what differs in a mapping; a key that only one of the two has is not compared."""
    old, new = trained.get(entry) or {}, result.get(entry) or {}
    chosen = [key for key in (old if keys is None else keys) if key in old and key in new and old[key] != new[key]]
    return [f"{key}: {old[key]} there, {new[key]} here" for key in chosen]


def _code(result: Mapping[str, Any], trained: Mapping[str, Any]) -> list[str]:
    old, new = trained.get("git_commit"), result.get("git_commit")
    if old is None or new is None:
        return []
    if old != new:
        return [f"code: commit {old[:10]} there, {new[:10]} here"]
    dirty = [where for where, one in (("there", trained), ("here", result)) if one.get("git_dirty")]
    return [f"code: edited since the commit {' and '.join(dirty)}"] if dirty else []


def _asked_otherwise(result: Mapping[str, Any], trained: Mapping[str, Any]) -> list[str]:
    """Keys of data set and protocol whose values differ and decide which episodes are drawn."""
    found = []
    for group, keys in (("dataset", None), ("protocol", ("queries", "supports"))):
        old, new = (_group(one["config"], group) for one in (trained, result))
        asked = [key for key in (new if keys is None else keys) if key in old and key in new]
        found += [f"{group}.{key}" for key in asked if key not in _NOT_OF_EPISODES and old[key] != new[key]]
    return found


def _group(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A group of a result's config; the data set's with what its protocol sets."""
    if name == "dataset" and isinstance(config.get("dataset"), Mapping):
        return dataset_settings(config)
    node = config.get(name)
    return node if isinstance(node, Mapping) else {}


def _same_episodes(result: Mapping[str, Any], trained: Mapping[str, Any]) -> bool:
    """Whether the hashes agree, for as many seeds as both have."""
    old, new = (
        [one["manifest_sha256"]] if isinstance(one["manifest_sha256"], str) else list(one["manifest_sha256"])
        for one in (trained, result)
    )
    return all(a == b for a, b in zip(old, new, strict=False))


def _same_question(result: Mapping[str, Any], trained: Mapping[str, Any]) -> bool:
    """Whether the same weights were tested in the same way."""
    if any(result.get(key) != trained.get(key) for key in _FIGURES):
        return False
    names = [Path(str(one.get("checkpoint"))).name for one in (result, trained)]
    return names[0] == names[1] and all(
        _of_figures(result["config"].get(group)) == _of_figures(trained["config"].get(group))
        for group in _FIGURE_GROUPS
    )


def _of_figures(group: Any) -> Any:
    """A group of the config without what changes no seed's figures; folders may have moved."""
    if not isinstance(group, Mapping):
        return group
    return {key: _of_figures(value) for key, value in group.items() if key not in _NOT_OF_FIGURES}


def _same_values(result: Mapping[str, Any], trained: Mapping[str, Any]) -> bool:
    """Whether the figures of each seed that both have are equal, to the bit; undefined ones are NaN or None."""
    for name in ("test", "test_no_ensemble"):
        new, old = result.get(name), trained.get(name)
        if new is None or old is None:
            continue
        for key in ("miou_per_seed", "fb_iou_per_seed"):
            for a, b in zip(new[key], old.get(key, new[key]), strict=False):
                if a != b and not (b is None and math.isnan(a)):
                    return False
    return True
