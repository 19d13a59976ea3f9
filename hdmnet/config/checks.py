"""Refuse wrong values of a run's own keys before anything is loaded.

Unknown keys and wrong types are Hydra's to refuse; what a class is given by its node (`model`, `loss` …) its
constructor refuses.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from hdmnet.config.values import ABSENT, did_you_mean, look_up, to_plain
from hdmnet.runtime.errors import ConfigError, one_line

LARGEST_SIDE = 4096  # px; a side of a million would only be found out when the memory is full

Check = Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _above_0(value: Any) -> bool:
    return _is_number(value) and value > 0


def _integer(least: int, most: float = math.inf) -> Check:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _optional(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _numbers(count: int, check: Check) -> Check:
    return lambda value: isinstance(value, list) and len(value) == count and all(map(check, value))


def _are_scales(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(_above_0, value))


def _are_formats(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and set(map(str, value)) <= set(_FORMATS)


def _is_range(value: Any) -> bool:
    return _numbers(2, _above_0)(value) and value[0] <= value[1]


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return all(map(_integer(1, LARGEST_SIDE), value if isinstance(value, list) and len(value) == 2 else [value]))


def _is_name(value: Any) -> bool:
    """Names become parts of file names: of a checkpoint's config they must not lead out of a folder."""
    return isinstance(value, str) and re.fullmatch(r"(?!\.)[^/\\\x00-\x1f]{1,100}", value) is not None


def _by_dataset(check: Check) -> Check:
    """Null, a value, or a mapping with one for each of some data sets."""
    return lambda value: all(map(_optional(check), value.values() if isinstance(value, Mapping) else [value]))


_FORMATS = ("png", "coco", "labelme", "yolo", "voc")
_NOVEL = ("removed", "background", "ignore")
_SIZE = (_is_size, f"an integer of 1 to {LARGEST_SIDE}, or two of them: [H,W]")
_COUNT = (_integer(1), "an integer of at least 1")
_OPTIONAL_COUNT = (_optional(_integer(1)), "null or an integer of at least 1")
_LIMIT = (lambda value: value == -1 or _integer(1)(value), "-1 (no limit) or an integer of at least 1")
_FACTOR = (lambda value: _is_number(value) and value >= 0, "a number of at least 0")
_COMPILE_MODES = (None, "default", "reduce-overhead", "max-autotune")  # of torch.compile
_OPTIONAL_BOOL = (_optional(_is_bool), "null, true or false")
_BATCHES = (
    _optional(lambda value: _integer(0)(value) or (_is_number(value) and 0 <= value <= 1)),
    "null, a number of batches, or a share from 0.0 to 1.0",
)
# Keys (of the same check, in one string), what a value must be, and how to say that.
_CHECKS: dict[str, tuple[Check, str]] = {
    "dataset.name backbone.name protocol.name": (
        _is_name,
        "a name of 1 to 100 characters, without / or \\ and with no dot in front",
    ),
    "backbone.mean": (_numbers(3, _is_number), "three numbers: red, green, blue, in 0..1"),
    "backbone.std": (_numbers(3, _above_0), "three numbers above 0: red, green, blue"),
    "backbone.feature_channels": (_optional(_integer(1, 4096)), "an integer of 1 to 4096, or null"),
    "dataset.image_size dataset.base_image_size": _SIZE,
    "dataset.augment_scale": (_is_range, "two numbers above 0, the smaller first"),
    "dataset.filter_novel dataset.allow_repeats dataset.controls optim.fall_back": (_is_bool, "true or false"),
    "dataset.novel_pixels": (lambda value: value in (None, "ignore", "background"), "null, ignore or background"),
    "dataset.min_area num_workers": (_optional(_integer(0)), "null or an integer of at least 0"),
    "recipe": (lambda value: value != "unpublished", "default or common: no paper trains this method on this data set"),
    "protocol.novel_pixels": (_by_dataset(lambda value: value in _NOVEL), f"null, {', '.join(_NOVEL)}"),
    "protocol.min_area": (_by_dataset(_integer(0)), "null, an integer of at least 0, or one for each data set"),
    "protocol.num_test_episodes protocol.num_test_seeds": (
        _by_dataset(_integer(1)),
        "null, an integer of at least 1, or one for each data set",
    ),
    "dataset.base_val_share": (lambda value: _above_0(value) and value < 1, "a number between 0 and 1"),
    "fold": (lambda value: isinstance(value, int), "an integer of at least 0"),
    "port": (_integer(0, 65535), "an integer from 0 (any free port) to 65535"),
    "test_scales": (_are_scales, "numbers above 0: [1.0], [0.67,1.0]"),
    "test_flip generalised example": (_is_bool, "true or false"),
    "generalised_threshold": (lambda value: _above_0(value) and value < 1, "a number between 0 and 1"),
    "formats": (_are_formats, f"a list of {', '.join(_FORMATS)}"),
    "baseline_episodes": (_integer(0), "an integer of at least 0 (none)"),
    "dataset.check_files seed optim.warmup_steps optim.base.warmup_steps": (
        _integer(0),
        "an integer of at least 0",
    ),
    "dataset.num_val_episodes dataset.num_test_episodes dataset.num_test_seeds shot way batch_size": _COUNT,
    "optim.val_every_epochs optim.base.val_every_epochs optim.base.batch_size": _COUNT,
    "dataset.num_folds dataset.episodes_per_epoch episodes seeds optim.base.num_val_samples": _OPTIONAL_COUNT,
    "optim.max_steps optim.max_epochs optim.base.max_steps optim.base.max_epochs": _LIMIT,
    "reuse_memory_gb optim.lr optim.base.lr optim.base.head_lr_factor": (_above_0, "a number above 0"),
    "compile": (lambda value: value in _COMPILE_MODES, "null, default, reduce-overhead or max-autotune"),
    "trainer.num_nodes trainer.accumulate_grad_batches trainer.check_val_every_n_epoch": _OPTIONAL_COUNT,
    "trainer.min_epochs trainer.min_steps trainer.log_every_n_steps": (_optional(_integer(0)), "null or an integer"),
    "trainer.max_epochs trainer.max_steps trainer.num_sanity_val_steps": (
        _optional(_integer(-1)),
        "null or an integer",
    ),
    "trainer.limit_train_batches trainer.limit_val_batches trainer.limit_test_batches": _BATCHES,
    "trainer.limit_predict_batches trainer.overfit_batches": _BATCHES,
    "trainer.gradient_clip_val": (
        _optional(lambda value: _is_number(value) and value >= 0),
        "null or a number from 0 on",
    ),
    "trainer.enable_progress_bar trainer.enable_checkpointing trainer.enable_model_summary": _OPTIONAL_BOOL,
    "trainer.use_distributed_sampler trainer.sync_batchnorm trainer.barebones trainer.inference_mode": _OPTIONAL_BOOL,
    "trainer.detect_anomaly trainer.benchmark": _OPTIONAL_BOOL,
    "trainer.deterministic": (lambda value: value == "warn" or _optional(_is_bool)(value), "null, true, false or warn"),
    "tolerance keep_features_gb optim.weight_decay optim.power optim.base.weight_decay optim.base.power": _FACTOR,
}

_CHOICES: dict[str, tuple[str, ...]] = {
    "selection": ("best", "base", "last"),
    "protocol.queries": ("uniform", "official", "pairs", "classes", "turns"),
    "protocol.supports": ("distinct", "repeated"),
    "protocol.resize": ("square", "pad"),
    "protocol.padding": ("ignore", "background"),
    "protocol.score_at": ("original", "network"),
    "protocol.absent_classes": ("left_out", "zero"),
    "support_mask": ("given", "ones"),
    "dataset.on_error": ("raise", "skip"),
    "augment.name": ("official", "paper", "pfenet", "crop", "flip", "none"),
    "optim.on_nonfinite": ("stop", "skip"),
    "optim.base.images": ("filtered", "all"),
    "optim.base.augment": ("bam", "bam_release", "official", "paper", "pfenet", "crop", "flip", "none"),
    "optim.base.optimizer": ("sgd", "adamw"),
    "optim.base.freeze_backbone": ("none", "norm", "all"),
}
_GROUPS = ("dataset", "backbone", "model", "loss", "optim", "optim.base", "augment", "protocol")


def validate(cfg: DictConfig) -> None:
    """Refuse wrong values of an entry point's composed config before anything is loaded; absent keys are not checked.

    Raises:
        ConfigError: A value is wrong or refers to nothing; one line with the key, what was found and what is expected.
    """
    try:
        plain = to_plain(cfg)
    except OmegaConfBaseException as error:
        raise ConfigError(one_line(error)) from error
    for group in _GROUPS:
        value = look_up(plain, group)
        chosen = value is not None or "dataset" in plain  # predict and demo may do without
        if value is not ABSENT and chosen and not isinstance(value, Mapping):
            raise _wrong(group, value, "a group of settings (--cfg job shows them)")
    for keys, (check, expected) in _CHECKS.items():
        for key in keys.split():
            value = look_up(plain, key)
            if value is not ABSENT and not check(value):
                raise _wrong(key, value, expected)
    for key, choices in _CHOICES.items():
        value = look_up(plain, key)
        if value is not ABSENT and value not in choices:
            raise _wrong(key, value, f"{' or '.join(choices)}{did_you_mean(str(value), choices)}")
    num_folds, fold = look_up(plain, "dataset.num_folds"), look_up(plain, "fold")
    if ABSENT not in (num_folds, fold) and num_folds not in (None, 1) and not 0 <= fold < num_folds:
        name = look_up(plain, "dataset.name")
        raise _wrong("fold", fold, f"0 to {num_folds - 1}, {name} has {num_folds} folds")


def _wrong(key: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(f"{key}={'null' if value is None else value}: expected {expected}")
