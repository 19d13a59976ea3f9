"""The figures of several test seeds as plain values."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hdmnet.runtime.errors import ConfigError

# Of `SeveralClassesIoU`: beyond those that a result always has.
FURTHER = ("iou_background", "miou_with_background", "exact_match", "miou_base", "miou_novel", "harmonic_mean")


def _nanmean(values: Sequence[float]) -> float:
    """Mean of the finite values, NaN if there is none (numpy would warn)."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _numbers(value: Any) -> list[float]:
    """A tensor (any device and shape), array or number as Python floats."""
    return torch.as_tensor(value).double().flatten().tolist()


def summarise_seeds(
    computed: Sequence[Mapping[str, Any]], class_names: Sequence[str], *, too_few: Collection[str] = ()
) -> dict[str, Any]:
    """Make the `test` entry of a result from one `FewShotIoU.compute` value per test seed.

    Every figure is the mean over the seeds of that seed's pooled figure, as the field reports it.

    Args:
        computed: Per seed: `miou` and `fb_iou` (), `iou_per_class` (C,) fractions, `counts` (C,) episodes; maybe more.
        class_names: The C names in the order of `class_index`.
        too_few: Those that have too few images to have any episode.

    Returns:
        What `result.json` holds under `test`. `miou_std` is the sample standard deviation over the seeds
        (NaN for one seed). `num_episodes` counts one seed (the largest, should a run have been cut short). Of episodes
        of several classes each also the further figures of `SeveralClassesIoU`, with their values of each seed.

    Raises:
        ValueError: If there is no seed or the number of classes differs from `class_names`.
    """
    if not computed:
        raise ConfigError(
            "no test seed was evaluated; expected at least one: set the number of test seeds to 1 or more"
        )
    per_class = [_numbers(values["iou_per_class"]) for values in computed]
    counts = [[int(count) for count in _numbers(values["counts"])] for values in computed]
    for length in {*map(len, per_class), *map(len, counts)}:
        if length != len(class_names):
            raise ConfigError(
                f"metric has {length} classes but {len(class_names)} class names; pass the fold's own names"
            )
    miou = [_numbers(values["miou"])[0] for values in computed]
    fb_iou = [_numbers(values["fb_iou"])[0] for values in computed]
    finite = [value for value in miou if math.isfinite(value)]
    episodes = [int(values.get("num_episodes", sum(row))) for values, row in zip(computed, counts, strict=True)]
    further: dict[str, Any] = {}
    for name in FURTHER:
        if name in computed[0]:
            per_seed = [_numbers(values[name])[0] for values in computed]
            further |= {name: _nanmean(per_seed), f"{name}_per_seed": per_seed}
    return {
        "miou": _nanmean(miou),
        "miou_std": float(np.std(finite, ddof=1)) if len(finite) > 1 else math.nan,
        "miou_per_seed": miou,
        "fb_iou": _nanmean(fb_iou),
        "fb_iou_per_seed": fb_iou,
        "iou_per_class": {
            name: _nanmean(row) for name, row in zip(class_names, zip(*per_class, strict=True), strict=True)
        },
        "counts_per_class": {name: sum(row) for name, row in zip(class_names, zip(*counts, strict=True), strict=True)},
        "num_episodes": max(episodes),
        "num_episodes_per_seed": episodes,
        "num_classes_averaged": [sum(map(math.isfinite, row)) for row in per_class],
        "classes_left_out": _left_out(per_class, counts, class_names, too_few),
        **further,
    }


def _left_out(
    per_class: Sequence[Sequence[float]],
    counts: Sequence[Sequence[int]],
    class_names: Sequence[str],
    too_few: Collection[str],
) -> dict[str, dict[str, Any]]:
    """Classes that a seed's mIoU is not averaged over, as they have no IoU there; the rows are seeds."""
    left_out = {}
    for place, name in enumerate(class_names):
        seeds = [seed for seed, row in enumerate(per_class) if not math.isfinite(row[place])]
        if seeds:
            has_none = all(counts[seed][place] == 0 for seed in seeds)
            reason = "too few images" if name in too_few else "no episode" if has_none else "no pixel to count"
            left_out[name] = {"seeds": len(seeds), "reason": reason}
    return left_out
