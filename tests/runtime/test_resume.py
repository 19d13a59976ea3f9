"""Which run a command goes on with."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from omegaconf import open_dict

from hdmnet.config.paths import make_paths_absolute
from hdmnet.runtime import resume
from tests.helpers.commands import ROOT


@pytest.fixture
def make(compose_config, tmp_path):
    """Composes a train config whose fresh folder is `tmp_path/runs/<name>`; leaves what Hydra leaves."""

    def compose(name, *words):
        folder = tmp_path / "runs" / name
        (folder / ".hydra").mkdir(parents=True, exist_ok=True)
        return compose_config("train", f"paths.output_dir={tmp_path}", *words), folder

    return compose


@pytest.fixture
def begin(make):
    """Leaves a run behind that was begun and stopped; returns its folder."""

    def start(name, *words, finished=False):
        cfg, folder = make(name, *words)
        make_paths_absolute(cfg, folder)
        with resume.claimed(cfg):
            pass
        (folder / "checkpoints").mkdir()
        if finished:
            (folder / "result.json").write_text("{}")
        return folder

    return start


def find(make, *words, name="9"):
    cfg, fresh = make(name, *words)
    return resume.find_folder(cfg, fresh), cfg


def test_a_new_run_is_the_default(make, begin):
    begin("1")
    folder, cfg = find(make)
    assert (folder.name, cfg.resume) == ("9", None)


def test_auto_finds_the_newest_unfinished_run_of_the_same_config(make, begin, tmp_path):
    begin("4", "fold=1")
    begin("1")
    wanted = begin("0")  # begun last, whatever its name
    begin("5", finished=True)
    folder, cfg = find(make, "resume=auto")
    assert (folder, cfg.resume) == (wanted, str(wanted))
    assert not (tmp_path / "runs" / "9").exists()  # what Hydra has made for nothing


def test_auto_begins_a_new_run_where_there_is_none(make, begin):
    begin("1", "optim.lr=1")
    begin("2", finished=True)
    folder, cfg = find(make, "resume=auto")
    assert (folder.name, cfg.resume) == ("9", None)
    assert (folder / ".hydra").is_dir()


@pytest.mark.parametrize(
    "words",
    [
        ("num_workers=3", "logger=wandb", "trainer=cpu", "callbacks.checkpoint.every_n_minutes=1"),
        ("trainer=ddp_cpu", "trainer.devices=4"),
        ("trainer=ddp_cpu", "trainer.devices=4", "batch_size=2"),  # the same 8 episodes a step
        ("trainer=ddp_cpu", "trainer.devices=4", "optim.batch_size=2"),
    ],
)
def test_the_machine_may_be_another(make, begin, words):
    wanted = begin("1", "optim.batch_size=8")
    assert find(make, "resume=auto", "optim.batch_size=8", *words)[0] == wanted


@pytest.mark.parametrize("word", ["optim.batch_size=4", "batch_size=4", "seed=1", "loss.temperature=2", "shot=5"])
def test_another_computation_is_another_run(make, begin, word):
    begin("1", "optim.batch_size=8")
    assert find(make, "resume=auto", "optim.batch_size=8", word)[0].name == "9"


def test_last_must_find_a_run(make, begin, tmp_path):
    with pytest.raises(FileNotFoundError, match="no unfinished run of this config in"):
        find(make, "resume=last")
    wanted = begin("1", "ckpt=start.ckpt")
    for words in (("resume=last", "ckpt=start.ckpt"), ("ckpt=last",)):
        folder, cfg = find(make, *words)
        assert (folder, cfg.ckpt, cfg.resume) == (wanted, "start.ckpt", str(wanted))
    with pytest.raises(FileNotFoundError, match="no unfinished run"):
        find(make, "resume=last", "ckpt=other.ckpt")


def test_the_folder_of_the_command_itself_comes_first(make, begin):
    own = begin("9")
    begin("1")
    folder, _ = find(make, "resume=auto")
    assert folder == own
    assert (own / "checkpoints").is_dir()


def test_a_named_run(make, begin, tmp_path):
    wanted = begin("1", "optim.lr=1")
    (wanted / "checkpoints" / "last-previous.ckpt").touch()
    assert find(make, f"resume={wanted}", "optim.lr=1")[1].resume == str(wanted)
    file = wanted / "checkpoints" / "last-previous.ckpt"
    folder, cfg = find(make, f"resume={file}", "optim.lr=1")
    assert (folder, cfg.resume) == (wanted, str(file))
    with pytest.raises(
        ValueError,
        match=r"begun with another optim\.lr, optim\.schedule\.warmup_iterations, optim\.warmup_steps; expected",
    ):
        find(make, f"resume={wanted}", "optim.warmup_steps=7")
    with pytest.raises(FileNotFoundError, match="resume=nowhere: not found"):
        find(make, "resume=nowhere")
    with pytest.raises(FileNotFoundError, match=r"run\.json is missing or damaged"):
        find(make, f"resume={tmp_path}")
    with pytest.raises(ValueError, match="this run has finished"):
        find(make, f"resume={begin('2', finished=True)}")


def test_slurm_puts_a_job_back_and_it_goes_on(make, begin, monkeypatch):
    wanted = begin("1")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    assert find(make)[0].name == "9"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert find(make)[0] == wanted


def test_a_damaged_or_foreign_run_file_is_no_run(make, begin):
    folder = begin("1")
    for text in ("{", "[]", json.dumps({"facts": {}})):
        (folder / resume.RUN_FILE).write_text(text)
        assert find(make, "resume=auto")[0].name == "9"


def test_a_run_that_is_still_at_work_is_left_alone(make, begin, caplog):
    folder = begin("1")
    code = (
        "import sys\nfrom filelock import FileLock\nlock = FileLock(sys.argv[1])\nlock.acquire()\n"
        "print(flush=True)\nsys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(folder / ".hydra" / "running.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as other:
        other.stdout.readline()
        assert find(make, "resume=auto")[0].name == "9"
        cfg, _ = make("1")
        make_paths_absolute(cfg, folder)
        with (
            pytest.raises(ValueError, match=f"is in use by process {os.getpid()} on"),
            resume.claimed(cfg),
        ):
            pytest.fail("two at once")
        other.kill()
    assert find(make, "resume=auto")[0] == folder  # the system has freed the lock


def test_a_resumed_run_keeps_what_it_was_begun_with(make, begin):
    folder = begin("1")
    before = (folder / resume.RUN_FILE).read_text()
    cfg, _ = make("1", "num_workers=3")
    make_paths_absolute(cfg, folder)
    with open_dict(cfg):
        cfg.resume = str(folder)
    with resume.claimed(cfg):
        assert (folder / resume.RUN_FILE).read_text() == before


@pytest.mark.long
def test_a_job_of_a_sweep_goes_on_only_when_asked_to(make, begin):
    folder = begin("1")
    assert not resume.can_go_on(make("1")[0], folder)
    assert resume.can_go_on(make("1", "resume=auto")[0], folder)
    assert not resume.can_go_on(make("1", "resume=auto", "fold=2")[0], folder)
    (folder / "result.json").write_text("{}")
    assert not resume.can_go_on(make("1", "resume=auto")[0], folder)
