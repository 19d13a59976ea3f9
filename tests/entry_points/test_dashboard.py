"""The doors with `logger=wandb`, their offline runs read back."""

from __future__ import annotations

from pathlib import Path

import pytest
import wandb
from PIL import Image

from tests.helpers.commands import SHAPES, WHOLE, run, run_process
from tests.helpers.wandb_files import OfflineRun, offline_runs

pytestmark = pytest.mark.slow

WANDB = ("logger=wandb", "logger.wandb.log_model=true")


def _read(folder: Path) -> OfflineRun:
    wandb.teardown()  # its own process has written everything by now
    (found,) = offline_runs(folder)
    return found


@pytest.fixture(scope="module")
def jobs(tmp_path_factory, start):
    """The folders of a multirun over two seeds."""
    output = tmp_path_factory.mktemp("sweep")
    run("train", output, "-m", *WHOLE, *WANDB, f"ckpt={start}", "seed=0,1")
    folders = sorted(path.parent for path in output.rglob("result.json"))
    assert len(folders) == 2
    return folders


def test_each_job_of_a_multirun_is_a_run_of_its_own_in_one_group(jobs):
    first, second = map(_read, jobs)
    assert first.about.run_id != second.about.run_id
    assert first.about.run_group == second.about.run_group
    names = [one.about.display_name for one in (first, second)]
    assert [name.rpartition(" fold0 ")[2] for name in names] == ["seed0", "seed1"]
    assert first.about.job_type == second.about.job_type == "train"
    assert {"shapes", "fold0", "1-shot", "resnet_narrow"} <= set(first.about.tags)
    assert (first.config["seed"], second.config["seed"]) == (0, 1)
    assert first.exit_code == second.exit_code == 0


def test_a_run_holds_losses_rates_speed_scores_and_pictures(jobs):
    held = _read(jobs[0])
    stages = {f"train/distillation_stage{stage}" for stage in (1, 2, 3)}
    assert {"train/loss", "train/final", "train/distillation"} | stages <= held.keys
    assert {"lr-AdamW/transformer", "lr-AdamW/query_merge"} <= held.keys
    assert {"optim/grad_norm", "throughput/episodes_per_second", "throughput/data_wait"} <= held.keys
    assert len(held.values("val/miou")) == 2
    assert held.summary["val/miou"] == {"max": max(held.values("val/miou"))}
    assert held.values("episodes/val.captions") == [["validation, epoch 0, step 2"], ["validation, epoch 1, step 4"]]
    pictures = held.media("episodes/val") + held.media("episodes/test")
    sheets = [*sorted((jobs[0] / "pictures").glob("val_*.png")), jobs[0] / "pictures" / "test.png"]
    assert len(pictures) == 3
    for picture, sheet in zip(pictures, sheets, strict=True):
        with Image.open(picture) as one, Image.open(sheet) as other:
            assert one.convert("RGB").tobytes() == other.convert("RGB").tobytes()


def test_the_summary_and_tables_are_those_of_the_result(jobs):
    from hdmnet.run.result import read_result

    held, result = _read(jobs[1]), read_result(jobs[1])["test"]
    assert held.summary["test/miou"] == pytest.approx(result["miou"])
    assert held.summary["test/fb_iou"] == pytest.approx(result["fb_iou"])
    columns, rows = held.table("test/iou_per_class")
    assert columns == ["class", "IoU", "episodes"]  # nothing is fused: there is one prediction
    assert {name: count for name, *_, count in rows} == result["counts_per_class"]
    for name, iou, *_ in rows:
        expected = result["iou_per_class"][name]
        if expected is not None:
            assert iou == held.summary[f"test/iou/{name}"] == pytest.approx(expected)
    models = [artifact for artifact in held.artifacts if artifact.type == "model"]
    assert {Path(a.manifest.contents[0].local_path).name for a in models} == {"best.ckpt", "last.ckpt"}


def test_an_evaluation_is_a_run_in_the_group_of_its_training(jobs, tmp_path):
    answer = run(
        "evaluate",
        tmp_path,
        f"ckpt={jobs[0]}/checkpoints/best.ckpt",
        "logger=wandb",
        "callbacks.pictures.num_episodes=1",
    )
    held, trained = _read(answer.folder), _read(jobs[0])
    assert held.about.job_type == "evaluate"
    assert held.about.run_group == trained.about.run_group
    assert held.summary["test/miou"] == pytest.approx(trained.summary["test/miou"])
    assert len(held.media("episodes/test")) == 1


def test_a_refused_server_does_not_end_a_run(tmp_path, monkeypatch, start):
    wandb.teardown()
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
    words = ("logger=wandb", "logger.wandb.init_timeout=1", f"ckpt={start}")
    answer = run("train", tmp_path, *SHAPES, *words)
    assert "wandb: no run in mode online" in answer.out
    assert "Traceback" not in answer.out + answer.err
    assert _read(answer.folder).summary["test/miou"] == pytest.approx(answer.result["test"]["miou"])


def test_two_processes_of_a_job_are_one_run(tmp_path, start):
    words = ("logger=wandb", "trainer=ddp_cpu", "trainer.devices=2", f"ckpt={start}")
    answer = run_process("train", tmp_path / "out", *WHOLE, *words)
    assert answer.code == 0, answer.err
    held = _read(answer.folder)
    assert held.exit_code == 0
    assert len(held.values("val/miou")) == len(held.media("episodes/val")) == 4  # one step an epoch
    assert len(held.media("episodes/test")) == 1
