"""Commands that start in one second do not share a folder."""

from __future__ import annotations

import datetime
import multiprocessing
import types

import pytest

from hdmnet.cli.fresh_folder import make_new
from hdmnet.runtime.run_folder import remove_unused
from tests.helpers import commands


@pytest.fixture
def one_second(monkeypatch):
    """Hydra's `${now:…}` does not move, and refused commands leave their folders."""
    monkeypatch.setattr("hdmnet.cli.entry_point.remove_unused", lambda *_, **__: None)
    monkeypatch.setattr(
        "hydra.core.utils.datetime", types.SimpleNamespace(now=lambda: datetime.datetime(2026, 1, 2, 3, 4, 5))
    )


def overrides(folder):
    return {
        path.parents[1].name: path.read_text().splitlines()[0].removeprefix("- ckpt=")
        for path in folder.rglob(".hydra/overrides.yaml")
    }


@pytest.mark.long
@pytest.mark.parametrize("command", ["evaluate", "predict"])  # predict names its folder by another key
def test_each_has_its_own(tmp_path, one_second, command):
    """The second command of a second would replace what Hydra has written of the first, and be refused."""
    for name in ("a", "b", "c"):
        commands.call(command, tmp_path / "runs", f"ckpt={name}").refusal()
    stamp = "2026-01-02_03-04-05"
    assert overrides(tmp_path / "runs" / command) == {stamp: "a", f"{stamp}_2": "b", f"{stamp}_3": "c"}


@pytest.mark.long
def test_a_training_writes_where_its_folder_is(tmp_path, one_second):
    for number in (1, 2):
        answer = commands.call("train", tmp_path / "runs", "dataset=coco", "paths.data_dir=nowhere")
        assert "nowhere" in answer.refusal()
        folder = tmp_path / "runs" / "coco" / "resnet50_fold0_1shot_seed0"
        assert len(list(folder.iterdir())) == number
    assert "2026-01-02_03-04-05_2" in (folder / "2026-01-02_03-04-05_2" / ".hydra" / "job.yaml").read_text()


@pytest.mark.long
def test_a_folder_that_was_asked_for_is_taken(tmp_path, one_second):
    for name in ("a", "b"):
        commands.call("evaluate", tmp_path / "runs", f"ckpt={name}", f"hydra.run.dir={tmp_path / 'mine'}").refusal()
    assert overrides(tmp_path) == {"mine": "b"}


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.long
@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("evaluate", ("ckpt=none.ckpt",)),
        ("predict", ("ckpt=none.ckpt", "output={}/deep/out")),
        ("demo", ("ckpt=none.ckpt",)),
        ("train", ("shot=0",)),
        ("train", ("dataset=coco", "paths.data_dir=nowhere")),
        ("train", ("ckpt=none.ckpt", "hydra.run.dir={}/mine")),
        ("train", ("resume=nowhere",)),
    ],
)
def test_a_refused_command_leaves_no_folder(tmp_path, command, words):
    commands.call(command, tmp_path / "runs", *(word.format(tmp_path / "runs") for word in words)).refusal()
    assert names(tmp_path) in (["runs"], [])


@pytest.mark.long
def test_what_was_there_before_a_refused_command_stays(tmp_path):
    for folder in ("empty", "used"):
        (tmp_path / folder).mkdir()
        (tmp_path / "used" / "notes.txt").write_text("mine") if folder == "used" else None
        commands.call("predict", tmp_path / "runs", "ckpt=none.ckpt", f"output={tmp_path / folder}").refusal()
    assert {"empty", "used", "used/notes.txt"} <= set(names(tmp_path))
    # What a command has made before it was refused stays too: the first pictures of a training that diverged, say.
    folder = tmp_path / "new"
    (folder / ".hydra").mkdir(parents=True)
    (folder / "metrics.csv").touch()
    remove_unused(folder, below=tmp_path)
    assert {"new/.hydra", "new/metrics.csv"} <= set(names(tmp_path))


def test_of_many_processes_each_makes_another(tmp_path):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        made = pool.map(make_new, [tmp_path / "runs" / "stamp"] * 40, chunksize=1)
    assert len(set(made)) == 40
    assert all(folder.is_dir() for folder in made)
