"""Finds finished runs: `result.json` files under the given folders, read and checked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hdmnet.config.paths import option_of
from hdmnet.run.result import read_result, test_entries
from hdmnet.runtime.errors import InputError, MissingFileError, one_line
from hdmnet.runtime.home import expand_home
from hdmnet.runtime.walk import walk_folders

RESULT = "result.json"
BENCHMARKS = ("pascal", "coco", "shapes")  # data sets that this package brings along
_WITHOUT_RESULT = ("predict", "demo")  # commands
_FOLDS = 4  # of the paper's tables


@dataclass(frozen=True, eq=False)
class Run:
    """One `result.json`.

    Attributes:
        path: The file.
        result: Its content; undefined figures are None.
        parent: Result of the training whose checkpoint was evaluated, if this is an evaluation and it is still there.
    """

    path: Path
    result: Mapping[str, Any]
    parent: Mapping[str, Any] | None = None

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.path.parent

    @property
    def config(self) -> Mapping[str, Any]:
        """What was tested, as plain containers."""
        config: Mapping[str, Any] = self.result["config"]
        return config

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.result["method"])

    @property
    def is_evaluation(self) -> bool:
        """Whether `hdmnet.evaluate` wrote it: only that one knows `episodes` and `seeds`."""
        return "episodes" in self.config

    @property
    def trained(self) -> Mapping[str, Any] | None:
        """Config of the training; None for an evaluation whose training run is not there any more."""
        if not self.is_evaluation:
            return self.config
        if self.config.get("ckpt", "") is None:
            return self.config  # nothing was to be trained
        return None if self.parent is None else self.parent["config"]

    @property
    def trained_on(self) -> str | None:
        """Name of the data set of the training; None where nothing tells."""
        if self.trained is not None:
            return str(self.trained["dataset"]["name"])
        known = self.result.get("trained_on")
        return str(known["dataset"]) if isinstance(known, Mapping) and "dataset" in known else None

    @property
    def is_own_data(self) -> bool:
        """Whether the data set is none that this package brings along: a user's folder, or a class from outside."""
        about = self.config["dataset"]
        return option_of("dataset", about) != about.get("name") or about.get("name") not in BENCHMARKS

    @property
    def has_folds(self) -> bool:
        """Whether the data set's classes are split into folds; else all are novel, and the fold is the training's."""
        about = self.config["dataset"]
        return about.get("folds") is not None or about.get("num_folds") not in (None, 1)

    @property
    def has_four_folds(self) -> bool:
        """Whether it fits a table with a column for each of four folds."""
        return not self.is_own_data or self.config["dataset"].get("num_folds") == _FOLDS

    @property
    def ablation(self) -> str | None:
        """Name of the ablation; None for the full method."""
        name = self.result["ablation"]
        return None if name in (None, "none") else str(name)

    @property
    def protocol(self) -> str:
        """Name of the protocol that it was tested by."""
        about = self.config.get("protocol")
        return str(about.get("name")) if isinstance(about, Mapping) else "ours"

    @property
    def is_control(self) -> bool:
        """Whether its support masks were not the supports' own."""
        return bool(self.config.get("support_mask", "given") != "given")

    @property
    def manifests(self) -> tuple[str, ...]:
        """Hash of the test episodes, one a test seed."""
        found = self.result["manifest_sha256"]
        return (found,) if isinstance(found, str) else tuple(found)

    @property
    def num_test_seeds(self) -> int:
        """Test seeds."""
        return len(self.result["test"]["miou_per_seed"])

    @cached_property
    def modified(self) -> float:
        """Time of the file, seconds since 1970."""
        return self.path.stat().st_mtime

    @property
    def checkpoint(self) -> Path | None:
        """The weights that were tested, where they are still there (a moved run folder brings its own along)."""
        named = self.result.get("checkpoint")
        if named is None:
            return None
        candidates = [Path(named)] + ([] if self.is_evaluation else [self.folder / "checkpoints" / Path(named).name])
        return next((path for path in candidates if path.is_file()), None)


_MOST_NAMED = 5  # unfinished runs of a folder, as a sweep that was stopped leaves many


@dataclass(frozen=True)
class Collection:
    """What was found."""

    runs: list[Run]  # by path; each file once
    warnings: list[str]  # one line each: damaged results, folders without one, unfinished runs


def _find(named: Path, warnings: list[str]) -> list[Path]:
    """Result files of one argument; `warnings` gets lines on the runs below it that have none."""
    if named.is_file():
        return [named]
    if not named.is_dir():
        raise MissingFileError(f"{named} not found; expected a run folder, a folder of runs or a result.json")
    found, unfinished = [], []
    twice: list[str] = []  # no news: what a second link leads to is found all the same
    for folder, folders, files in walk_folders(named, twice, unreadable=warnings):
        if RESULT in files:
            found.append(folder / RESULT)
        elif ".hydra" in folders and _is_run(folder):
            unfinished.append(folder)
    if len(unfinished) > _MOST_NAMED:
        named_ones = ", ".join(map(str, unfinished[:_MOST_NAMED]))
        warnings.append(f"{len(unfinished)} unfinished runs without {RESULT}, left out: {named_ones} …")
    else:
        warnings += [f"unfinished run, left out: {folder} has no {RESULT}" for folder in unfinished]
    return found


def _is_run(folder: Path) -> bool:
    """Whether a folder without result is of a training or evaluation that has begun, as far as Hydra's files tell.

    Predictions leave pictures, and a command that was refused leaves nothing.
    """
    try:
        about = (folder / ".hydra" / "hydra.yaml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return True
    command, mode = (re.search(rf"^ +{key}: (\w+)$", about, re.MULTILINE) for key in ("config_name", "mode"))
    begun = (mode is not None and mode[1] != "RUN") or any(entry.name != ".hydra" for entry in folder.iterdir())
    return begun and (command is None or command[1] not in _WITHOUT_RESULT)


def _usable(result: Mapping[str, Any]) -> str | None:
    """Why a result that has its fixed keys cannot be used; None if it can."""
    config = result["config"]
    if not isinstance(config, Mapping) or not isinstance(config.get("dataset"), Mapping):
        return "config is no mapping with a dataset"
    for key in ("fold", "shot", "seed"):
        if not isinstance(result[key], int) or isinstance(result[key], bool):
            return f"{key} is {result[key]!r}, expected an integer"
    for entry, test in test_entries(result).items():
        per_seed = test["miou_per_seed"]
        if not isinstance(per_seed, list) or not isinstance(test["iou_per_class"], Mapping):
            return f"{entry}.miou_per_seed or {entry}.iou_per_class has another kind than a result's"
        for value in (test["miou"], test["fb_iou"], *per_seed, *test["iou_per_class"].values()):
            if value is not None and (not isinstance(value, int | float) or not 0 <= value <= 1):
                return f"{entry} holds the IoU {value!r}, expected a fraction of 1"
    return None


def _read(path: Path) -> dict[str, Any]:
    """A checked result; one that is damaged raises ValueError, with the path."""
    try:
        result = read_result(path)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not readable JSON ({error})") from error
    if (reason := _usable(result)) is not None:
        raise InputError(f"{path}: {reason}")
    return result


def _parent(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Result of the run that an evaluated checkpoint belongs to (RUN/checkpoints/best.ckpt)."""
    checkpoint = result.get("checkpoint")
    if "episodes" not in result["config"] or not isinstance(checkpoint, str):
        return None
    try:
        return _read(Path(checkpoint).parent.parent / RESULT)
    except (ValueError, OSError):
        return None


def collect(named: Iterable[str | Path]) -> Collection:
    """Read every result under some paths.

    Args:
        named: Run folders, folders of runs (searched to any depth) or `result.json` files.

    Returns:
        The runs, and a line for each that is left out.

    Raises:
        FileNotFoundError: A path does not exist, or there is no result under any of them.
        ValueError: There are results, but all are damaged.
    """
    paths = [expand_home(name) for name in named]
    warnings: list[str] = []
    files: dict[Path, None] = {}  # in order, each once
    for path in paths:
        found = _find(path, warnings)
        if not found:
            warnings.append(f"no {RESULT} in or below {path}")
        files |= dict.fromkeys(file.absolute() for file in found)
    if not files:
        told = ", ".join(map(str, paths))
        raise MissingFileError(f"no {RESULT} in or below {told}; a run leaves one when it has finished")
    runs = []
    for file in files:
        try:
            result = _read(file)
            if "way" in result or "generalised" in result:
                warnings.append(f"of several classes at once, left out, as no table is of such tests: {file}")
                continue
            runs.append(Run(file, result, _parent(result)))
        except (ValueError, OSError) as error:
            warnings.append(f"damaged result, left out: {one_line(error)}")
    if not runs:
        raise InputError(f"{len(files)} {RESULT} found, none readable: {warnings[-1]}")
    dirty = [str(run.folder) for run in runs if run.result.get("git_dirty")]
    if dirty:
        warnings.append(f"uncommitted changes in the code of {len(dirty)} of {len(runs)} runs: {', '.join(dirty)}")
    return Collection(runs, list(dict.fromkeys(warnings)))
