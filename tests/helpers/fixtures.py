"""Session fixtures that cost seconds: trees on disk and one tiny finished run; made once, for all test processes."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from filelock import FileLock

from tests.helpers import commands as doors
from tests.helpers import trees

Made = TypeVar("Made")


def shared(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Made]) -> Made:
    """What `make` returns of an empty folder; where several processes test, one makes it and the others wait."""
    root = tmp_path_factory.getbasetemp()
    if root.name.startswith("popen-"):  # of one of xdist's processes
        root = root.parent
    folder, made = root / f"shared_{name}", root / f"shared_{name}.pickle"
    with FileLock(root / f"shared_{name}.lock"):
        if not made.is_file():
            folder.mkdir()
            made.write_bytes(pickle.dumps(make(folder)))
    result: Made = pickle.loads(made.read_bytes())
    return result


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder as `paths.data_dir` is: pascal/ and coco/ in their real formats. Not to be written to."""

    def make(root: Path) -> Path:
        trees.write_voc_tree(root / "pascal")
        trees.write_coco_tree(root / "coco")
        return root

    return shared(tmp_path_factory, "data", make)


@pytest.fixture(scope="session")
def raw_data_dir(tmp_path_factory, data_dir):
    """Such a folder with what has no masks painted: coco/ of 2017 with LVIS's JSONs, fss1000/. Not to be written to."""

    def make(root: Path) -> Path:
        trees.write_lvis_jsons(trees.write_coco_2017_tree(root / "coco", data_dir / "coco"))
        trees.write_fss_tree(root / "fss1000" / "fewshot_data")
        return root

    return shared(tmp_path_factory, "raw_data", make)


@pytest.fixture(scope="session")
def first_run(tmp_path_factory):
    """The answer of a tiny training on the embedded data, both stages; its folder is not to be written to."""
    return shared(tmp_path_factory, "first", lambda root: doors.run("train", root, *doors.WHOLE))


@pytest.fixture(scope="session")
def start(tmp_path_factory, first_run):
    """A checkpoint whose predictions are mixed, to begin tiny trainings from.

    After some steps from nothing a model calls everything background: any two tests of it would agree.
    """
    last = first_run.folder / "checkpoints" / "last.ckpt"
    return shared(tmp_path_factory, "start", lambda root: doors.enliven(last, root / "start.ckpt"))


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, start):
    """The answer of a tiny training from `start`; its folder is not to be written to."""
    answer = shared(tmp_path_factory, "finished", lambda root: doors.run("train", root, *doors.SHAPES, f"ckpt={start}"))
    assert answer.result["test"]["miou"] > 0.01, "the predictions are not mixed: comparing results would show nothing"
    return answer
