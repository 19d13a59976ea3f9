"""Weights & Biases: what a run holds, and that nothing that fails there ends a run."""

from __future__ import annotations

import logging
import math
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import wandb
from PIL import Image

from hdmnet.loggers import wandb as ours
from tests.helpers.wandb_files import offline_runs

KEY = "k" * 40
CLOSED = "http://127.0.0.1:9"  # the port of "discard", which nobody serves
SCORES = {
    "miou": 0.5,
    "fb_iou": 0.6,
    "iou_per_class": {"ring": 0.25, "star": 0.75, "none": math.nan},
    "counts_per_class": {"ring": 3, "star": 5, "none": 0},
}


@pytest.fixture(autouse=True)
def _no_account(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    wandb.teardown()  # it reads the environment once a process
    yield
    wandb.teardown()


def _logger(folder, **arguments):
    return ours.DashboardLogger(save_dir=str(folder), project="p", **arguments)


def _finished(folder, log_something, **arguments):
    """The offline runs of a folder after one job that logged something there."""
    with ours.one_wandb_run():
        log_something(_logger(folder, **arguments))
    wandb.teardown()  # its own process has written everything by now
    return offline_runs(folder)


def test_without_a_key_it_is_offline_even_where_online_is_asked_for(monkeypatch, tmp_path):
    assert _logger(tmp_path).mode == "offline"
    assert _logger(tmp_path, offline=False).mode == "offline"  # online, W&B would ask for a key, and wait
    monkeypatch.setenv("WANDB_MODE", "online")
    assert _logger(tmp_path).mode == "offline"


def test_a_key_in_the_environment_or_the_netrc_file_puts_it_online(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert _logger(tmp_path).mode == "online"
    assert _logger(tmp_path, offline=True).mode == "offline"
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert ours.has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")  # a key of another server
    assert not ours.has_key()


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_wandb_mode_wins(monkeypatch, tmp_path, mode):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", mode)
    assert _logger(tmp_path, offline=False).mode == mode


@pytest.mark.long
def test_an_offline_run_holds_what_was_logged_under_its_name(tmp_path):
    def log_something(logger):
        for step, miou in enumerate((0.1, 0.4, 0.3)):
            logger.log_metrics({"val/miou": miou, "train/loss": 1.0}, step)
        logger.log_image("episodes/val", [np.zeros((8, 12, 3), np.uint8)], step=2, caption=["epoch 0"])

    named = {"name": "n", "group": "g", "job_type": "train", "tags": ["t"], "config": {"loss": {"temperature": 0.5}}}
    (run,) = _finished(tmp_path, log_something, **named)
    about = run.about
    assert (about.project, about.display_name, about.run_group, about.job_type) == ("p", "n", "g", "train")
    assert list(about.tags) == ["t"]
    assert run.config["loss"] == {"temperature": 0.5}
    assert run.values("val/miou") == [0.1, 0.4, 0.3]
    assert run.values("trainer/global_step") == [0, 1, 2, 2]
    assert run.summary["val/miou"] == {"max": 0.4}
    assert run.summary["train/loss"] == 1.0
    assert run.metrics["*"].step_metric == run.metrics["val/miou"].step_metric == "trainer/global_step"
    (picture,) = run.media("episodes/val")
    with Image.open(picture) as image:
        assert image.size == (12, 8)
    assert run.values("episodes/val.captions") == [["epoch 0"]]
    assert run.exit_code == 0


def test_what_stands_beside_the_test_is_in_the_summary(tmp_path):
    one = {"miou": 0.25, "difference": 0.125, "interval": [0.0, 0.25], "is_above": False}
    entry = {"num_episodes": 9, "miou": 0.375, "untrained_prototype": one, "missing": {}, "warning": "no better"}
    (run,) = _finished(tmp_path, lambda logger: logger.log_baselines(entry))
    assert run.summary["test/miou_untrained_prototype"] == 0.25
    assert run.summary["test/better_than_untrained_prototype"] == 0.125
    assert run.summary["warning"] == "no better"


def test_of_240_classes_there_is_a_histogram_and_no_curve_each(tmp_path):
    names = [f"class_{number}" for number in range(240)]
    scores = {**SCORES, "iou_per_class": dict.fromkeys(names, 0.5), "counts_per_class": dict.fromkeys(names, 10)}
    (run,) = _finished(tmp_path, lambda logger: logger.log_class_scores("test", {"final": scores}, 1))
    assert len(run.table("test/iou_per_class")[1]) == 240
    histogram = run.config["_wandb.visualize.test/iou_histogram"]["panel_config"]
    assert histogram["fieldSettings"]["value"] == "IoU"
    assert not any(key.startswith(("test/iou/", "test/iou_per_class_bars")) for key in run.keys)
    assert run.summary["test/miou"] == 0.5


def test_class_scores_are_curves_a_table_and_bars(tmp_path):
    meta = {**SCORES, "miou": 0.4, "iou_per_class": {"ring": 0.2, "star": 0.6, "none": math.nan}}

    def log_something(logger):
        logger.log_class_scores("val", {"final": SCORES, "meta": meta}, 7)
        logger.log_class_scores("test", {"final": SCORES, "meta": meta}, 8)

    (run,) = _finished(tmp_path, log_something)
    columns, rows = run.table("val/iou_per_class")
    assert columns == ["class", "IoU", "IoU, meta only", "episodes"]
    assert rows[:2] == [["ring", 0.25, 0.2, 3], ["star", 0.75, 0.6, 5]]
    assert run.table("val/iou_per_class_bars_table")[1] == rows
    bars = run.config["_wandb.visualize.val/iou_per_class_bars"]["panel_config"]
    assert bars["fieldSettings"] == {"label": "class", "value": "IoU"}
    assert run.values("val/iou/star") == [0.75]
    assert "val/iou/none" not in run.keys  # it had no episode
    assert "val/miou" not in run.keys  # the task logs it
    summary = {key: run.summary[key] for key in ("test/miou", "test/miou_meta", "test/fb_iou", "test/iou/ring")}
    assert summary == {"test/miou": 0.5, "test/miou_meta": 0.4, "test/fb_iou": 0.6, "test/iou/ring": 0.25}


@pytest.mark.long
def test_what_goes_on_in_a_folder_is_the_same_run_and_another_folder_another(tmp_path):
    def log_something(logger):
        logger.log_metrics({"a": 1.0}, 0)

    folders = [tmp_path / name for name in ("one", "two")]
    (one,), (two,) = (_finished(folder, log_something) for folder in folders)
    assert one.about.run_id != two.about.run_id == (tmp_path / "two" / ours.ID_FILE).read_text().strip()
    time.sleep(1)  # W&B names its folders by the second
    again = _finished(folders[0], log_something)
    assert {run.about.run_id for run in again} == {one.about.run_id}
    assert _finished(tmp_path / "three", log_something, id="mine")[0].about.run_id == "mine"


def test_checkpoints_become_artifacts_when_asked(tmp_path):
    (tmp_path / "best.ckpt").write_bytes(b"weights")
    callback = SimpleNamespace(
        save_top_k=1,
        monitor="val/miou",
        best_model_path=str(tmp_path / "best.ckpt"),
        best_model_score=None,
        best_k_models={str(tmp_path / "best.ckpt"): 0.5},
        last_model_path="",
    )

    def log_something(logger):
        logger.log_metrics({"a": 1.0}, 0)
        logger.after_save_checkpoint(callback)
        logger.finalize("success")

    (run,) = _finished(tmp_path / "not", log_something)
    assert run.artifacts == []
    (run,) = _finished(tmp_path / "asked", log_something, log_model=True)
    (artifact,) = run.artifacts
    assert (artifact.type, set(artifact.aliases)) == ("model", {"latest", "best"})
    (entry,) = artifact.manifest.contents
    assert entry.local_path == str(tmp_path / "best.ckpt")  # no copy in the home folder


def _warnings(caplog):
    return [
        record.message
        for record in caplog.records
        if record.name == ours.__name__ and record.levelno >= logging.WARNING
    ]


@pytest.mark.parametrize("answer", ["refused", "badly formed key"])
def test_a_server_that_refuses_makes_an_offline_run(monkeypatch, tmp_path, caplog, answer):
    monkeypatch.setenv("WANDB_BASE_URL", CLOSED)
    monkeypatch.setenv("WANDB_API_KEY", KEY if answer == "refused" else "not one")
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")  # of the login; ten seconds otherwise
    start = time.perf_counter()
    (run,) = _finished(tmp_path, lambda logger: logger.log_metrics({"a": 1.0}, 0), init_timeout=1)
    assert run.values("a") == [1.0]
    (said,) = _warnings(caplog)
    assert said.startswith("wandb: no run in mode online: ")
    assert "\n" not in said
    assert time.perf_counter() - start < 30


def test_a_start_that_fails_in_every_mode_leaves_the_run_alone(monkeypatch, tmp_path, caplog):
    def init(**arguments):
        raise OSError("disk full")

    monkeypatch.setattr(wandb, "init", init)
    logger = _logger(tmp_path)
    logger.log_metrics({"a": 1.0}, 0)
    logger.log_metrics({"a": 2.0}, 1)
    logger.finalize("success")
    *modes, last = _warnings(caplog)
    assert [line.split(": ")[1] for line in modes] == ["no run in mode offline", "no run in mode disabled"]
    assert last.endswith("the run goes on without it")  # once


def test_a_failure_on_the_way_is_one_warning(tmp_path, caplog):
    logger = _logger(tmp_path)
    calls = []

    def log(values):
        calls.append(values)
        raise ConnectionResetError("gone")

    logger._experiment = SimpleNamespace(log=log)
    logger.log_metrics({"a": 1.0}, 0)
    logger.log_image("episodes/val", [np.zeros((2, 2, 3), np.uint8)])
    logger.log_class_scores("val", {"final": SCORES, "meta": SCORES}, 0)
    assert len(calls) == 1
    assert _warnings(caplog) == ["wandb: ConnectionResetError: gone; the run goes on without it"]


@pytest.mark.parametrize(("fails", "code"), [(False, 0), (True, 1)])
def test_a_job_ends_its_run(monkeypatch, fails, code):
    codes = []
    fake = SimpleNamespace(run=object(), finish=lambda exit_code: codes.append(exit_code))
    monkeypatch.setitem(sys.modules, "wandb", fake)

    @ours.one_wandb_run()
    def job():
        if fails:
            raise ValueError("broken")

    if fails:
        with pytest.raises(ValueError, match="broken"):
            job()
    else:
        job()
    assert codes == [code]


def test_an_end_that_fails_is_a_warning(monkeypatch, caplog):
    def finish(exit_code):
        raise TimeoutError("still uploading")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=object(), finish=finish))
    with ours.one_wandb_run():
        pass
    assert "still uploading" in _warnings(caplog)[0]


def test_only_the_first_process_talks_to_it(monkeypatch, tmp_path):
    from lightning.pytorch.utilities import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = _logger(tmp_path)
    logger.log_metrics({"a": 1.0}, 0)
    logger.log_class_scores("val", {"final": SCORES, "meta": SCORES}, 0)
    logger.experiment.log({"a": 1.0})  # Lightning's stand-in
    assert not (tmp_path / "wandb").exists()
    assert not (tmp_path / ours.ID_FILE).exists()
