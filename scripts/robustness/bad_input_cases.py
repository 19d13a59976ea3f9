"""Wrong commands, files and folders: what is given, and what the one line must name. See bad_inputs.py."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bad_input_bench import TINY, Bench, cut

Prepare = Callable[[Bench, Path], list[str]]
COMMAND, FILES = 2, 1  # exit codes: the command line is wrong; a file, a folder or data are


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        given: What is given, for people.
        command: `train`, `evaluate`, `predict`, `report`, or the name of a script.
        code: The exit code.
        names: What the line must hold: the culprit. `{place}` stands for the case's folder.
        words: Makes the files and returns the command's words; gets the whole files and an empty folder.
    """

    given: str
    command: str
    code: int
    names: str
    words: Prepare


CASES: list[Case] = []


def _add(given: str, command: str, code: int, names: str, words: Prepare) -> None:
    CASES.append(Case(given, command, code, names, words))


# ------------------------------------------------------------------------------------------------------- command lines


def _fixed(*words: str) -> Prepare:
    """Words that need no file."""
    return lambda bench, place: list(words)


for _words, _code, _names in (
    ("fold=7", 2, "fold=7: expected 0 to 3, shapes has 4 folds"),
    ("fold=-1", 2, "fold=-1: expected"),
    ("shot=0", 2, "shot=0: expected an integer of at least 1"),
    ("shot=40", 1, "classes of shapes fold 0 train has the 41 images that shot=40 needs"),
    ("seed=abc", 2, "seed=abc: "),
    ("fodl=1", 2, "fodl: no such key; did you mean 'fold'?"),
    ("fold", 2, "fold: expected key=value"),
    ("--fold 1", 2, "unrecognized arguments: --fold 1"),
    ("fold=0,1", 2, "fold=0,1: several values; add -m"),
    ("backbone=resnet5", 2, "backbone=resnet5: no such option; did you mean 'resnet50'?"),
    ("ablation=null", 2, "a config group cannot be null"),
    ("batch_size=100000", 1, "fill no batch of 100000"),
    ("num_workers=-1", 2, "num_workers=-1: expected null or an integer of at least 0"),
    ("loss.temperature=0", 2, "loss.temperature=0: expected a number above 0"),
    ("optim.lr=nan", 2, "optim.lr=nan: expected a number above 0"),
    ("selection=bset", 2, "selection=bset: expected best or base or last; did you mean 'best'"),
    ("trainer.max_step=2", 2, "trainer.max_step: no such key; did you mean 'trainer.max_steps'?"),
    ("+trainer.max_stepps=2", 2, "trainer: "),
    ("trainer.precision=3", 2, "trainer: "),
    ("dataset.image_size=16", 1, "is 16, expected sides of 48..512 px"),
    ("dataset.image_size=100000", 2, "dataset.image_size=100000: expected an integer of 1 to 4096"),
    ("dataset.num_train=1000000000", 1, "num_train=1000000000"),
    ("dataset.name=../../elsewhere", 2, "dataset.name=../../elsewhere: expected a name"),
    ("dataset._target_=os.system", 2, "Target 'os.system' is blocklisted"),
    ("backbone=resnet18 backbone.weights=IMAGENET", 2, "unknown torchvision weights 'IMAGENET'"),
    ("backbone.weights=no/such.pth", 1, "backbone weights 'no/such.pth' not found"),
    ("ckpt=no/such.ckpt", 1, "checkpoint 'no/such.ckpt' not found"),
    ("base_ckpt=no/such.pt", 1, "checkpoint 'no/such.pt' not found"),
    (
        "trainer=ddp_cpu trainer.devices=3 dataset.episodes_per_epoch=8",
        1,
        "optim.base.batch_size=4 cannot be shared by 3 processes",
    ),
    (
        "trainer=ddp_cpu trainer.devices=4 dataset.episodes_per_epoch=8",
        1,
        "optim.base.batch_size=4 leaves one picture a process",
    ),
):
    _add(f"`{_words}`", "train", _code, _names, _fixed(*TINY, "optim.base.batch_size=4", *_words.split()))

for _words, _code, _names in (
    ("", 1, "ckpt is not given; expected a checkpoint"),
    ("ckpt=no/such.ckpt", 1, "checkpoint 'no/such.ckpt' not found"),
    ("epsiodes=4", 2, "epsiodes: no such key; did you mean 'episodes'?"),
):
    _add(f"`{_words}`" if _words else "no word", "evaluate", _code, _names, _fixed(*_words.split()))


# --------------------------------------------------------------------------------------------------------- checkpoints


class Hostile:
    """Runs a command where it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        """What a hostile file holds."""
        return os.system, ("touch was_run",)


def _ckpt(write: Callable[[Bench, Path], object]) -> Prepare:
    """Words that name a checkpoint which `write` makes."""

    def words(bench: Bench, place: Path) -> list[str]:
        path = place / "given.ckpt"
        write(bench, path)
        return [f"ckpt={path}", "trainer=cpu", "num_workers=0"]

    return words


def _changed(**changes: Any) -> Prepare:
    """Words that name a run's checkpoint in whose config some dotted keys have other values."""

    def words(bench: Bench, place: Path) -> list[str]:
        def change(content: dict[str, Any]) -> None:
            for key, value in changes.items():
                *parents, leaf = key.split("__")
                node = content["hdmnet"]["config"]
                for parent in parents:
                    node = node[parent]
                node[leaf] = value

        return [f"ckpt={bench.changed_run(place, change)}", "trainer=cpu", "num_workers=0"]

    return words


def _half(bench: Bench, path: Path) -> None:
    path.write_bytes(bench.run_files["run"].read_bytes())
    cut(path)


def _drop_weights(content: dict[str, Any]) -> None:
    content["state_dict"].pop(next(iter(content["state_dict"])))


for _given, _names, _prepare in (
    ("half a checkpoint", "checkpoint '{place}/given.ckpt' cannot be read", _ckpt(_half)),
    ("an empty checkpoint", "cannot be read", _ckpt(lambda bench, path: path.write_bytes(b""))),
    ("a text as checkpoint", "cannot be read", _ckpt(lambda bench, path: path.write_text("not a checkpoint\n"))),
    ("a folder as checkpoint", "given.ckpt' not found", _ckpt(lambda bench, path: path.mkdir())),
    (
        "a pickle that runs a command",
        "nothing in it was run",
        _ckpt(lambda b, path: path.write_bytes(pickle.dumps(Hostile()))),
    ),
    (
        "a torch file that runs a command",
        "nothing in it was run",
        _ckpt(lambda b, path: torch.save({"state_dict": Hostile()}, path)),
    ),
    ("a list as checkpoint", "holds a list; expected a mapping", _ckpt(lambda b, path: torch.save([1], path))),
    (
        "a base learner as checkpoint",
        "is a base learner; expected checkpoints/best.ckpt",
        lambda bench, place: [f"ckpt={bench.run_files['base']}"],
    ),
    (
        "a checkpoint whose config names `os.system`",
        "names model._target_='os.system', which no file in conf/ does",
        _changed(model___target_="os.system"),
    ),
    (
        "a checkpoint whose config names a function of ours that conf/ does not",
        "hdmnet.runtime.checkpoint_file.write_atomically",
        _changed(dataset___target_="hdmnet.runtime.checkpoint_file.write_atomically"),
    ),
    (
        "a checkpoint whose config reads the environment",
        "would resolve dataset.root='${oc.env:HOME}'",
        _changed(dataset__root="${oc.env:HOME}"),
    ),
    ("a checkpoint whose config makes nodes of text", "would resolve model", _changed(model="${oc.create:{a:1}}")),
    (
        "a checkpoint whose config refers to nothing",
        "its config is damaged",
        _changed(dataset__image_size="${nowhere}"),
    ),
    ("a checkpoint whose data set's name leads outside", "dataset.name=../x", _changed(dataset__name="../x")),
    ("a checkpoint without a fold", "has no fold in its config", _changed(fold=None)),
    (
        "a checkpoint that lacks a tensor",
        "does not fit this model: 1 missing",
        lambda bench, place: [f"ckpt={bench.changed_run(place, _drop_weights)}", "trainer=cpu", "num_workers=0"],
    ),
):
    _add(_given, "evaluate", FILES, _names, _prepare)

_add(
    "a fold whose novel classes the checkpoint has seen",
    "evaluate",
    FILES,
    "fold=1: its novel classes were base",
    lambda bench, place: [f"ckpt={bench.run_files['run']}", "fold=1", "trainer=cpu", "num_workers=0"],
)
_add(
    "a fold that the checkpoint's data set has not",
    "evaluate",
    COMMAND,
    "fold=4: expected 0 to 3",
    lambda bench, place: [f"ckpt={bench.run_files['run']}", "fold=4", "trainer=cpu"],
)
_add(
    "`ckpt` and `base_ckpt` both",
    "train",
    FILES,
    "ckpt and base_ckpt are both given",
    lambda bench, place: [*TINY, f"ckpt={bench.run_files['run']}", f"base_ckpt={bench.run_files['base']}"],
)
_add(
    "a whole run as base learner",
    "train",
    FILES,
    "is a whole run; expected a base learner",
    lambda bench, place: [*TINY, f"base_ckpt={bench.run_files['run']}"],
)
_add(
    "another fold's base learner",
    "train",
    FILES,
    "was trained with fold=0, this run has fold=1",
    lambda bench, place: [*TINY, "fold=1", f"base_ckpt={bench.run_files['base']}"],
)


# --------------------------------------------------------------------------------------------------- folders of results


def write_text(path: Path, text: str = "x") -> Path:
    """Write a file and return its path."""
    path.write_text(text)
    return path


def _finished(place: Path) -> list[str]:
    (place / "done").mkdir()
    write_text(place / "done" / "result.json", "{}")
    return [*TINY, f"hydra.run.dir={place}/done"]


_add(
    "a folder of a finished run to write to",
    "train",
    FILES,
    "run folder {place}/done holds the result.json",
    lambda bench, place: _finished(place),
)
_add(
    "a file as output folder",
    "train",
    FILES,
    "{place}/file",
    lambda bench, place: [*TINY, f"hydra.run.dir={write_text(place / 'file')}/run"],
)
_add(
    "an output folder that nobody can write to (/proc)",
    "train",
    FILES,
    "/proc/",
    lambda bench, place: [*TINY, "hydra.run.dir=/proc/hdmnet/run"],
)
_add(
    "runs that are not there",
    "report",
    FILES,
    "{place}/nowhere not found",
    lambda b, place: [f"{place}/nowhere", "--out", f"{place}/r"],
)
_add(
    "a folder without a run",
    "report",
    FILES,
    "no result.json in or below {place}",
    lambda b, place: [f"{place}", "--out", f"{place}/r"],
)
_add(
    "a damaged result.json",
    "report",
    FILES,
    "1 result.json found, none readable",
    lambda b, place: [str(write_text(place / "result.json", '{"test":')), "--out", f"{place}/r"],
)
_add(
    "half a result.json",
    "report",
    FILES,
    "lacks dataset",
    lambda b, place: [str(write_text(place / "result.json", "{}")), "--out", f"{place}/r"],
)
