"""Refuse wrong values of a config before anything is loaded. Unknown keys and wrong types are Hydra's to refuse."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import DictConfig

from hdmnet.config.values import ABSENT, did_you_mean, look_up, to_plain

LARGEST_SIDE = 4096  # px; a side of a million would only be found out when the memory is full


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _at_least(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def _between(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: _at_least(least)(value) and value <= most


def _is_size(value: Any) -> bool:
    sides = value if isinstance(value, list) and len(value) == 2 else [value]
    return all(_at_least(1)(side) and side <= LARGEST_SIDE for side in sides)


def _is_name(value: Any) -> bool:
    """Names become parts of file names: of a checkpoint's config they must not lead out of a folder."""
    return isinstance(value, str) and re.fullmatch(r"(?!\.)[^/\\\x00-\x1f]{1,100}", value) is not None


def _is_colour(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))


def _is_range(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_positive, value)) and value[0] <= value[1]


def _optional(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_not_negative(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 1


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_limit(value: Any) -> bool:
    return value == -1 or _at_least(1)(value)


_NAME = "a name of 1 to 100 characters, without / or \\ and with no dot in front"
_SIZE = f"an integer of 1 to {LARGEST_SIDE}, or two of them: [H,W]"

_CHECKS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("dataset.name", _is_name, _NAME),
    ("backbone.name", _is_name, _NAME),
    ("backbone.mean", _is_colour, "three numbers: red, green, blue, in 0..1"),
    ("backbone.std", lambda value: _is_colour(value) and min(value) > 0, "three numbers above 0: red, green, blue"),
    ("dataset.num_folds", _optional(_at_least(1)), "null or an integer of at least 1"),
    ("dataset.image_size", _is_size, _SIZE),
    ("dataset.base_image_size", _is_size, _SIZE),
    ("dataset.min_area", _optional(_at_least(0)), "null or an integer of at least 0"),
    ("dataset.filter_novel", _is_bool, "true or false"),
    ("dataset.allow_repeats", _is_bool, "true or false"),
    ("dataset.check_files", _at_least(0), "an integer of at least 0"),
    ("dataset.controls", _is_bool, "true or false"),
    ("dataset.augment_scale", _is_range, "two numbers above 0, the smaller first"),
    ("backbone.feature_channels", _optional(_between(1, 4096)), "an integer of 1 to 4096, or null"),
    ("dataset.episodes_per_epoch", _optional(_at_least(1)), "null or an integer of at least 1"),
    ("dataset.num_val_episodes", _at_least(1), "an integer of at least 1"),
    ("dataset.num_test_episodes", _at_least(1), "an integer of at least 1"),
    ("dataset.num_test_seeds", _at_least(1), "an integer of at least 1"),
    ("fold", lambda value: isinstance(value, int), "an integer of at least 0"),
    ("shot", _at_least(1), "an integer of at least 1"),
    ("seed", _at_least(0), "an integer of at least 0"),
    ("batch_size", _at_least(1), "an integer of at least 1"),
    ("num_workers", _optional(_at_least(0)), "null or an integer of at least 0"),
    ("reuse_memory_gb", _is_positive, "a number above 0"),
    ("port", lambda value: _at_least(0)(value) and value <= 65535, "an integer from 0 (any free port) to 65535"),
    ("episodes", _optional(_at_least(1)), "null or an integer of at least 1"),
    ("seeds", _optional(_at_least(1)), "null or an integer of at least 1"),
    ("model.num_rounds", _between(1, 100), "an integer of 1 to 100"),
    ("model.num_stages", lambda value: _at_least(1)(value) and value <= 4, "1, 2, 3 or 4"),
    ("model.dropout", _is_share, "a number in [0, 1)"),
    ("model.mid_dropout", _is_share, "a number in [0, 1)"),
    ("model.matching.temperature", _is_positive, "a number above 0"),
    ("model.matching.num_heads", lambda value: _at_least(1)(value) and 64 % value == 0, "a divisor of 64"),
    ("model.matching.merge_kernel", lambda value: type(value) is int and value in (1, 3), "1 or 3"),
    ("model.ensemble", _is_bool, "true or false"),
    ("model.prior_norm", _is_bool, "true or false"),
    ("loss.temperature", _is_positive, "a number above 0"),
    ("loss.final", _is_not_negative, "a number of at least 0"),
    ("loss.meta", _is_not_negative, "a number of at least 0"),
    ("loss.distillation", _is_not_negative, "a number of at least 0"),
    ("optim.lr", _is_positive, "a number above 0"),
    ("optim.weight_decay", _is_not_negative, "a number of at least 0"),
    ("optim.head_lr_factor", _is_positive, "a number above 0"),
    ("optim.power", _is_not_negative, "a number of at least 0"),
    ("optim.warmup_steps", _at_least(0), "an integer of at least 0"),
    ("optim.val_every_epochs", _at_least(1), "an integer of at least 1"),
    ("optim.max_steps", _is_limit, "-1 (no limit) or an integer of at least 1"),
    ("optim.max_epochs", _is_limit, "-1 (no limit) or an integer of at least 1"),
    ("optim.base.lr", _is_positive, "a number above 0"),
    ("optim.base.weight_decay", _is_not_negative, "a number of at least 0"),
    ("optim.base.head_lr_factor", _is_positive, "a number above 0"),
    ("optim.base.power", _is_not_negative, "a number of at least 0"),
    ("optim.base.warmup_steps", _at_least(0), "an integer of at least 0"),
    ("optim.base.val_every_epochs", _at_least(1), "an integer of at least 1"),
    ("optim.base.num_val_samples", _optional(_at_least(1)), "null or an integer of at least 1"),
    ("optim.base.batch_size", _at_least(1), "an integer of at least 1"),
    ("optim.base.max_steps", _is_limit, "-1 (no limit) or an integer of at least 1"),
    ("optim.base.max_epochs", _is_limit, "-1 (no limit) or an integer of at least 1"),
)

_CHOICES: dict[str, tuple[str, ...]] = {
    "selection": ("best", "last"),
    "protocol": ("uniform", "official"),
    "support_mask": ("given", "ones"),
    "dataset.on_error": ("raise", "skip"),
    "dataset.split_rule": ("contiguous", "interleaved"),
    "augment.name": ("official", "paper", "flip", "none"),
    "optim.on_nonfinite": ("stop", "skip"),
    "optim.base.augment": ("bam", "official", "paper", "flip", "none"),
    "optim.base.optimizer": ("sgd", "adamw"),
    "optim.base.freeze_backbone": ("none", "norm", "all"),
    "model.norm": ("fixed", "bn", "syncbn"),
    "model.shot_weighting": ("intended", "official"),
    "model.matching.score": ("cosine", "dot"),
    "model.matching.normalise": ("query", "support", "none"),
    "loss.final_on": ("probabilities", "log"),
    "loss.distillation_kind": ("kl_teacher", "ce_teacher", "ce_truth"),
}


def validate(cfg: DictConfig) -> None:
    """Refuse wrong values before anything is loaded.

    Args:
        cfg: A door's composed config. Keys that it does not have (another model's, another door's) are not checked.

    Raises:
        ValueError: A value is wrong; one line with the key, what was found and what is expected.
    """
    plain = to_plain(cfg)
    for group in sorted({key.rpartition(".")[0] for key in (*(key for key, _, _ in _CHECKS), *_CHOICES)} - {""}):
        value = look_up(plain, group)
        if value is not ABSENT and not isinstance(value, Mapping):
            raise ValueError(f"{group}={_show(value)}: expected a group of settings (--cfg job shows them)")
    for key, check, expected in _CHECKS:
        value = look_up(plain, key)
        if value is not ABSENT and not check(value):
            raise ValueError(f"{key}={_show(value)}: expected {expected}")
    for key, choices in _CHOICES.items():
        value = look_up(plain, key)
        if value is not ABSENT and value not in choices:
            hint = did_you_mean(str(value), choices)
            raise ValueError(f"{key}={_show(value)}: expected {' or '.join(choices)}{hint}")
    num_folds = look_up(plain, "dataset.num_folds")
    fold = look_up(plain, "fold")
    if ABSENT not in (num_folds, fold) and num_folds not in (None, 1) and not 0 <= fold < num_folds:
        name = look_up(plain, "dataset.name")
        raise ValueError(f"fold={fold}: expected 0 to {num_folds - 1}, {name} has {num_folds} folds")


def _show(value: Any) -> str:
    return "null" if value is None else str(value)
