"""The same checkpoint gives the same figures on another day; what could move them is told."""

from __future__ import annotations

import copy
import json
import logging
import math
import shutil

import pytest

from hdmnet.run.compare_results import compare_results, print_comparison, training_facts
from tests.helpers.commands import figures, load, run, run_process


@pytest.fixture
def trained(finished_run):
    return {**copy.deepcopy(finished_run.result), "origin": "RUN/result.json"}


@pytest.fixture
def again(trained):
    """The evaluation as it comes: of the same checkpoint, on the same day."""
    return copy.deepcopy(trained)


def test_nothing_to_tell(trained, again, caplog):
    trained["git_dirty"] = again["git_dirty"] = False
    compared = compare_results(again, trained)
    assert compared == {"origin": "RUN/result.json", "differences": [], "same_episodes": True, "same_figures": True}
    with caplog.at_level(logging.INFO):
        print_comparison(compared)
    assert caplog.messages == ["the same figures as in RUN/result.json, on the same episodes"]


def test_versions_code_and_machine_are_told(trained, again, caplog):
    trained["git_dirty"] = False
    trained["versions"]["torch"] = "2.6.0"
    trained["versions"]["gone"] = "1"
    trained["hardware"]["torch_threads"] = 64
    trained["git_commit"] = "0123456789abcdef"
    again["git_commit"] = "fedcba9876543210"
    compared = compare_results(again, trained)
    assert compared["differences"] == [
        f"version of torch: 2.6.0 there, {again['versions']['torch']} here",
        "code: commit 0123456789 there, fedcba9876 here",
        f"torch_threads: 64 there, {again['hardware']['torch_threads']} here",
    ]
    print_comparison(compared)
    assert caplog.messages[0].startswith("made with other means than RUN/result.json: version of torch: 2.6.0 there, ")
    again["git_commit"], again["git_dirty"] = trained["git_commit"], True
    assert "code: edited since the commit here" in compare_results(again, trained)["differences"]


def test_other_episodes_are_a_warning_where_the_same_were_asked_for(trained, again, caplog):
    trained["manifest_sha256"][1] = "0" * 64
    trained["data_sha256"] = "1" * 64
    compared = compare_results(again, trained)
    assert (compared["same_episodes"], compared["same_figures"]) == (False, None)
    assert "labels or list of the validation images" in compared["differences"]
    print_comparison(compared)
    assert caplog.messages[0].startswith("other test episodes than in RUN/result.json, though asked for the same")


@pytest.mark.parametrize(
    ("key", "value"), [("shot", 5), ("fold", 1), ("protocol", "official"), ("dataset", "pascal"), ("num_episodes", 7)]
)
def test_other_questions_are_not_compared(trained, again, key, value):
    (trained["test"] if key in trained["test"] else trained)[key] = value
    trained["manifest_sha256"][0] = "0" * 64
    compared = compare_results(again, trained)
    assert (compared["same_episodes"], compared["same_figures"]) == (None, None)


def test_another_list_is_another_question_and_no_warning(trained, again, caplog):
    trained["git_dirty"] = again["git_dirty"] = False
    trained["config"]["dataset"]["min_area"] = 7
    trained["config"]["dataset"]["val_list"] = "other.txt"
    assert "asked_otherwise" not in compare_results(again, trained)  # these are the same episodes all the same
    trained["manifest_sha256"][0], trained["data_sha256"] = "0" * 64, "1" * 64
    compared = compare_results(again, trained)
    assert compared["asked_otherwise"] == ["dataset.val_list", "dataset.min_area"]
    assert (compared["same_episodes"], compared["same_figures"], compared["differences"]) == (None, None, [])
    with caplog.at_level(logging.INFO):
        print_comparison(compared)
    (record,) = caplog.records
    assert (record.levelname, record.message) == (
        "INFO",
        "other test episodes than in RUN/result.json, by another dataset.val_list, dataset.min_area",
    )
    trained["config"]["dataset"] = {**again["config"]["dataset"], "root": "/elsewhere"}
    assert compare_results(again, trained)["same_episodes"] is False


@pytest.mark.parametrize("change", ["support_mask", "checkpoint", "image_size"])
def test_other_figures_are_expected_of_another_way(trained, again, change):
    if change == "image_size":
        again["config"]["dataset"]["image_size"] = 97
    else:
        again[change] = "other"
    again["test"]["miou_per_seed"][0] = 0.5
    compared = compare_results(again, trained)
    assert (compared["same_episodes"], compared["same_figures"]) == (True, None)


def test_other_figures_are_a_warning_with_what_differs(trained, again, caplog):
    again["test"]["miou_per_seed"][0] += 1e-9
    trained["hardware"]["cpu"] = "another"
    compared = compare_results(again, trained)
    assert compared["same_figures"] is False
    print_comparison(compared)
    assert "other figures than in RUN/result.json on the same episodes; what differs: " in caplog.messages[0]
    assert "cpu: another there" in caplog.messages[0]


def test_fewer_seeds_and_undefined_figures_are_compared_as_far_as_they_go(trained, again):
    trained["test"]["miou_per_seed"][0] = None  # as read back
    again["test"]["miou_per_seed"] = [math.nan]
    again["manifest_sha256"] = again["manifest_sha256"][0]
    assert compare_results(again, trained)["same_figures"] is True


def test_without_a_result_the_checkpoint_tells_what_it_knows(finished_run, tmp_path):
    best = finished_run.folder / "checkpoints" / "best.ckpt"
    entry = load(best)["hdmnet"]
    assert training_facts(best, entry)["origin"] == str(finished_run.folder / "result.json")
    moved = tmp_path / "some" / "where" / "best.ckpt"
    facts = training_facts(moved, entry)
    assert facts["versions"] == finished_run.result["versions"]
    assert facts["origin"] == str(moved)
    assert training_facts(moved, {"config": {}}) is None
    assert training_facts(moved, None) is None
    entry = {**entry, "versions": {"torch": "1"}}
    compared = compare_results(finished_run.result, training_facts(moved, entry))
    assert compared["differences"][0].startswith("version of torch: 1 there")
    assert compared["same_episodes"] is None


@pytest.mark.long
def test_evaluate_gives_the_figures_of_the_run_and_says_so(finished_run, tmp_path):
    answer = run(
        "evaluate", tmp_path, f"ckpt={finished_run.folder}/checkpoints/best.ckpt", "trainer=cpu", "num_workers=0"
    )
    assert figures(answer.result) == figures(finished_run.result)
    assert answer.result["compared_with"]["same_figures"] is True
    assert "the same figures as in" in answer.out
    for key in ("seeds", "data_sha256", "num_processes", "git_commit", "git_dirty", "versions"):
        assert answer.result[key] == finished_run.result[key], key
    assert answer.result["seeds"] == {"train": 0, "test": [1, 2]}
    assert answer.result["finished"] >= finished_run.result["finished"]
    assert answer.result["hardware"]["torch_threads"] >= 1
    assert {"cv2", "PIL", "pycocotools", "omegaconf"} < answer.result["versions"].keys()


@pytest.mark.slow
def test_another_day_folder_time_zone_hash_seed_and_number_of_threads(finished_run, tmp_path, monkeypatch):
    """In processes of their own; two threads may add floats in another order, which may move single pixels."""
    shutil.copytree(finished_run.folder, tmp_path / "moved run")
    best = f"ckpt='{tmp_path}/moved run/checkpoints/best.ckpt'"
    found = []
    for day, (zone, seed) in enumerate((("UTC", "1"), ("Pacific/Kiritimati", "77"))):
        monkeypatch.setenv("TZ", zone)
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        (tmp_path / f"day{day}").mkdir()
        answer = run_process("evaluate", tmp_path / f"day{day}" / "out", best, "trainer=cpu", f"num_workers={day}")
        assert answer.code == 0, answer.err
        found.append(answer.result)
    assert figures(found[0]) == figures(found[1]) == figures(finished_run.result)
    (tmp_path / "threads").mkdir()
    answer = run_process("evaluate", tmp_path / "threads" / "out", best, "trainer=cpu", "num_workers=0", threads=2)
    assert answer.result["hardware"]["torch_threads"] == 2
    assert answer.result["manifest_sha256"] == found[0]["manifest_sha256"]
    for name in ("miou_per_seed", "fb_iou_per_seed"):
        assert answer.result["test"][name] == pytest.approx(found[0]["test"][name], abs=2e-3)
    assert "torch_threads: 1 there, 2 here" in "; ".join(answer.result["compared_with"]["differences"])


def test_a_damaged_result_beside_the_checkpoint_is_no_obstacle(finished_run, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "result.json").write_text(json.dumps({"test": 1}))
    assert training_facts(tmp_path / "checkpoints" / "best.ckpt", None) is None
