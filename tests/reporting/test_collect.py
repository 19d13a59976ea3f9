from __future__ import annotations

import json
from pathlib import Path

import pytest

from hdmnet.reporting.collect import collect
from tests.helpers.reports import make_result, write_run


def test_finds_results_at_any_depth_each_once(tmp_path):
    one = write_run(tmp_path, "sweep/0_fold0", fold=0)
    two = write_run(tmp_path, "sweep/deep/1_fold1", fold=1)
    found = collect([tmp_path, one, two / "result.json"])
    assert sorted(run.folder for run in found.runs) == sorted([one, two])
    assert found.warnings == []


def test_runs_behind_links_are_found_each_once(tmp_path):
    here, away = tmp_path / "here", tmp_path / "disk"
    one, two = write_run(here, "sweep/0_fold0", fold=0), write_run(away, "1_fold1", fold=1)
    (here / "moved").symlink_to(away)
    (here / "latest").symlink_to(one)
    (away / "up").symlink_to(here)
    found = collect([here])
    assert {run.folder for run in found.runs} == {here / "moved" / two.name, one}
    assert len(found.runs) == 2
    assert found.warnings == []


def test_tells_unfinished_damaged_and_dirty_runs(tmp_path):
    good = write_run(tmp_path, "good", git_dirty=True)
    (tmp_path / "unfinished" / ".hydra").mkdir(parents=True)
    for name, text in (("cut", '{"dataset": '), ("lacks", "{}"), ("binary", None)):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "result.json"
        path.write_bytes(b"\xff\xfe\x00") if text is None else path.write_text(text)
    wrong = make_result()
    wrong["test"] = {**wrong["test"], "miou": 50.0}
    (tmp_path / "percent").mkdir()
    (tmp_path / "percent" / "result.json").write_text(json.dumps(wrong))
    found = collect([tmp_path])
    assert [run.folder for run in found.runs] == [good]
    assert len(found.warnings) == 6
    text = "\n".join(found.warnings)
    assert f"unfinished run, left out: {tmp_path / 'unfinished'}" in text
    assert text.count("damaged result, left out") == 4
    assert "the IoU 50.0, expected a fraction of 1" in text
    assert f"uncommitted changes in the code of 1 of 1 runs: {good}" in text


def test_a_folder_without_results_is_told_when_others_have_some(tmp_path):
    (tmp_path / "empty").mkdir()
    found = collect([write_run(tmp_path, "good"), tmp_path / "empty"])
    assert found.warnings == [f"no result.json in or below {tmp_path / 'empty'}"]


def test_refuses_what_holds_no_result(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere not found; expected a run folder"):
        collect([tmp_path / "nowhere"])
    with pytest.raises(FileNotFoundError, match=r"no result\.json in or below"):
        collect([tmp_path])
    (tmp_path / "result.json").write_text("[]")
    with pytest.raises(ValueError, match=r"1 result\.json found, none readable: damaged result"):
        collect([tmp_path])


def test_an_evaluation_knows_the_training_of_its_checkpoint(tmp_path):
    trained = write_run(tmp_path, "trained", shot=1)
    checkpoint = trained / "checkpoints" / "best.ckpt"
    write_run(tmp_path, "evaluated", shot=5, entry_point="evaluate", checkpoint=str(checkpoint))
    write_run(tmp_path, "orphan", shot=5, entry_point="evaluate", checkpoint="/gone/checkpoints/best.ckpt")
    runs = {run.folder.name: run for run in collect([tmp_path]).runs}
    assert [runs[name].is_evaluation for name in ("trained", "evaluated", "orphan")] == [False, True, True]
    assert runs["evaluated"].trained["shot"] == 1
    assert runs["orphan"].trained is None
    assert runs["evaluated"].checkpoint is None  # named, but not there
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"weights")
    assert runs["evaluated"].checkpoint == checkpoint


def test_a_moved_run_brings_its_checkpoint_along(tmp_path):
    folder = write_run(tmp_path, "moved", checkpoint="/old/place/checkpoints/last.ckpt")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"weights")
    (run,) = collect([folder]).runs
    assert run.checkpoint == Path(folder / "checkpoints" / "last.ckpt")
