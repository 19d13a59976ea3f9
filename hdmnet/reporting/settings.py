"""What a run's config says about the experiment, and which keys the rows of the ablation tables change.

Runs are told apart by their stored configs, not by names: a row of a table is what `conf/ablation/<row>.yaml` makes of
the data set's config, and a run belongs to it when its own config says the same in every key that the table's rows
change. So a full run fills every row that is the full method, and a free sweep over `loss.temperature` fills Table 9.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from hdmnet.config.paths import HYDRA_VERSION_BASE, conf_dir, find_option, option_of
from hdmnet.config.protocol import dataset_settings
from hdmnet.config.schemas import register_schemas
from hdmnet.config.values import HDMNET, to_plain
from hdmnet.reporting.collect import Run

Settings = dict[str, str]  # dotted key: value as JSON

ABSENT = "absent"
FOLDER = "folder"  # the option of data sets of a user
SHOTS = ("shot", "trained.shot")

# Of the config that was tested, and of the one that was trained with. The rest belongs to the machine, to the command
# at hand or to the fold and seed over which is averaged.
_TESTED = ("dataset", "backbone", "model", "shot", "protocol", "selection", "support_mask")
_TRAINED = ("loss", "optim", "augment", "batch_size")
_TRAINER = ("max_steps", "max_epochs", "max_time", "limit_train_batches", "accumulate_grad_batches", "precision")
_OF_THE_METHOD = ("model.", "loss.", "optim.")
_IGNORED = [f"dataset.{key}" for key in ("root", "fold", "num_test_episodes", "num_test_seeds", "controls")]
_IGNORED += ["backbone.weights", "backbone.weights_dir", "protocol.name"]
# What a protocol sets of the data set stands in dataset.…, see below.
_OF_DATASET = tuple(f"protocol.{key}" for key in ("novel_pixels", "train_list", "min_area", "num_test_"))


def flatten(node: Any, prefix: str = "") -> Settings:
    """Nested mappings as dotted keys; lists and scalars as JSON text, which compares 1 and 1.0 alike."""
    if isinstance(node, Mapping):
        flat: Settings = {}
        for key, value in node.items():
            flat |= flatten(value, f"{prefix}{key}.")
        return flat
    if isinstance(node, float) and node.is_integer():
        node = int(node)
    return {prefix.removesuffix("."): json.dumps(node, sort_keys=True)}


def _settings_of(tested: Mapping[str, Any], trained: Mapping[str, Any] | None) -> Settings:
    flat = flatten({key: tested[key] for key in _TESTED if key in tested} | {"dataset": dataset_settings(tested)})
    source = tested if trained is None else trained
    flat |= flatten({key: source[key] for key in _TRAINED if key in source})
    trainer = source.get("trainer") or {}
    flat |= flatten({"trainer": {key: trainer[key] for key in _TRAINER if key in trainer}})
    flat["trained.shot"] = "unknown" if trained is None else json.dumps(trained.get("shot"))
    return {key: value for key, value in flat.items() if key not in _IGNORED and not key.startswith(_OF_DATASET)}


@cache
def _composed(option: str | None, backbone: str, ablation: str | None, method: str = HDMNET) -> Settings | None:
    """Settings of a training on a data set, by its option in conf/, with a backbone; None where there is no ablation.

    Of a data set or a method from outside, which conf/ does not know, what belongs to it is left out.
    """
    words = [f"dataset={option or FOLDER}"]
    if find_option("backbone", backbone) is not None:
        words.append(f"backbone={backbone}")
    if known := find_option("model", method) is not None:
        words += [] if method == HDMNET else [f"model={method}"]
    if ablation is None:
        cfg = _compose(*words)
    elif (file := find_option("ablation", ablation)) is None:
        return None
    elif "defaults" in (row := OmegaConf.load(file)):  # names options of other groups
        cfg = _compose(*words, f"ablation={ablation}")
    else:  # a tenth of the time
        cfg = copy.deepcopy(_compose(*words))
        OmegaConf.set_struct(cfg, False)
        cfg.merge_with(row)
    plain = to_plain(cfg)
    unknown = (() if known else _OF_THE_METHOD) + (() if option else ("dataset.",))
    return {key: value for key, value in _settings_of(plain, plain).items() if not key.startswith(unknown)}


@cache
def _compose(*words: str) -> DictConfig:
    """The training's config of a command line."""
    from hydra import compose, initialize_config_dir

    register_schemas()
    with initialize_config_dir(config_dir=str(conf_dir()), version_base=HYDRA_VERSION_BASE):
        return compose("train", list(words))


def defaults_of(run: Run) -> Settings:
    """What a training would set for the run's data set, backbone and method."""
    composed = _composed(option_of("dataset", run.config["dataset"]), str(run.result["backbone"]), None, run.method)
    assert composed is not None  # only an ablation can be missing
    return composed


@cache
def settings_of(run: Run) -> Settings:
    """What makes the run's experiment, fold and seed left out.

    A key that conf/ has and the run has not, because the run is older, counts as its default: new switches are made so
    that what was computed before stays what it was.
    """
    own = _settings_of(run.config, run.trained)
    known = run.result.get("trained_on")
    if run.trained is None and isinstance(known, Mapping):
        own["trained.shot"] = json.dumps(known.get("shot"))
    defaults = defaults_of(run)
    same_model = own.get("model._target_") == defaults.get("model._target_")
    for key, value in defaults.items():
        if key not in SHOTS and (same_model or not key.startswith("model.")):
            own.setdefault(key, value)
    return own


@cache
def row_values(option: str | None, backbone: str, names: tuple[str, ...]) -> dict[str, Settings]:
    """What the rows of an ablation table set, on a data set with a backbone.

    Args:
        option: The data set's in conf/; None: it has none there.
        backbone: Its name.
        names: The rows' ablations.

    Returns:
        By row, only of those that conf/ablation holds: every key that any of the rows changes, with the row's value
        (`ABSENT` where the row has no such key).
    """
    plain = _composed(option, backbone, None)
    assert plain is not None
    rows = {name: row for name in names if (row := _composed(option, backbone, name)) is not None}
    axes = sorted(key for row in rows.values() for key in differing([plain, row]))
    return {name: {key: row.get(key, ABSENT) for key in axes} for name, row in rows.items()}


def differing(several: Iterable[Settings]) -> list[str]:
    """Keys that do not have the same value in all settings."""
    several = list(several)
    keys = sorted({key for settings in several for key in settings})
    return [key for key in keys if len({settings.get(key, ABSENT) for settings in several}) > 1]


def without(settings: Settings, keys: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Settings less some keys, as something that can be compared and hashed."""
    left_out = set(keys)
    return tuple(sorted((key, value) for key, value in settings.items() if key not in left_out))


def repeated(settings: Settings) -> set[str]:
    """Keys that only repeat another, e.g. `trainer.max_steps`: no need to tell both."""
    twins = {"trainer.": "optim.", "batch_size": "optim.batch_size"}
    return {
        key
        for key, value in settings.items()
        for start, twin in twins.items()
        if key.startswith(start) and settings.get(twin + key.removeprefix(start)) == value
    }


def deviations(run: Run, left_out: Iterable[str] = ()) -> list[str]:
    """`key=value` of what the run sets otherwise than conf/ does for its data set and backbone, names left out."""
    own, defaults = settings_of(run), defaults_of(run)
    skip = {*left_out, *SHOTS, *repeated(own), "dataset.name"}
    if "dataset._target_" not in defaults:
        skip |= {key for key in own if key.startswith("dataset.")}
    if "model._target_" not in defaults:  # a method that conf/ does not know has nothing to differ from
        skip |= {key for key in own if key.startswith(_OF_THE_METHOD)}
    return [told(own, key) for key in differing([own, defaults]) if key not in skip]


def told(settings: Settings, key: str) -> str:
    """A setting as it is written on a command line."""
    return f"{key}={settings.get(key, ABSENT).strip(chr(34))}"


def is_papers_dataset(run: Run, dataset: str) -> bool:
    """Whether the run's data set is the paper's: the same name, and the lists and classes that conf/ has for it."""
    keys = ("name", "train_list", "val_list", "split_rule", "num_folds", "min_area", "year")
    own, defaults = settings_of(run), defaults_of(run)
    same = all(own.get(f"dataset.{key}") == defaults.get(f"dataset.{key}") for key in keys)
    return run.result["dataset"] == dataset and same
