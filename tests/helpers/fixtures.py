"""Session fixtures that cost seconds: trees on disk and one tiny finished run; each test process makes them once."""

from __future__ import annotations

import pytest

from tests.helpers import commands as doors
from tests.helpers import trees


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder as `paths.data_dir` is: pascal/ and coco/ in their real formats. Not to be written to."""
    root = tmp_path_factory.mktemp("data")
    trees.write_voc_tree(root / "pascal")
    trees.write_coco_tree(root / "coco")
    return root


@pytest.fixture(scope="session")
def first_run(tmp_path_factory):
    """The answer of a tiny training on the embedded data, both stages; its folder is not to be written to."""
    return doors.run("train", tmp_path_factory.mktemp("first"), *doors.WHOLE)


@pytest.fixture(scope="session")
def start(tmp_path_factory, first_run):
    """A checkpoint whose predictions are mixed, to begin tiny trainings from.

    After some steps from nothing a model calls everything background: any two tests of it would agree.
    """
    path = tmp_path_factory.mktemp("start") / "start.ckpt"
    return doors.enliven(first_run.folder / "checkpoints" / "last.ckpt", path)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, start):
    """The answer of a tiny training from `start`; its folder is not to be written to."""
    answer = doors.run("train", tmp_path_factory.mktemp("finished"), *doors.SHAPES, f"ckpt={start}")
    assert answer.result["test"]["miou"] > 0.01, "the predictions are not mixed: comparing results would show nothing"
    return answer
