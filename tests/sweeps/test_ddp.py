"""Multiruns whose jobs are several processes: one folder, one result a job, and nothing left of one that crashed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from hdmnet.sweeps.processes import group_is_alive
from tests.helpers.commands import SHAPES, Answer, figures, run_process
from tests.helpers.sweeps import DDP_ENTRY_POINT, DDP_WORDS, environment, sweep, wait_until_gone


def ranks(done, file="rank*.json"):
    """What every rank of every job has seen."""
    return {
        (path.parent.name.rpartition("_")[0], path.stem): json.loads(path.read_text())
        for path in sorted(done.folder.glob(f"*/{file}"))
    }


@pytest.mark.slow
def test_a_crash_of_one_rank_ends_its_job_and_not_the_sweep(tmp_path):
    done = sweep(tmp_path, "-m", "fold=0,1", *DDP_WORDS, command=DDP_ENTRY_POINT, KILL_FOLD="0", KILL_RANK="1")
    assert done.code == 1, done.err
    assert done.states() == [["fold=0", "failed"], ["fold=1", "done"]]
    assert len(done.folders()) == 2
    seen = ranks(done)
    assert sorted(seen) == [(f"fold-{fold}", f"rank{rank}") for fold in (0, 1) for rank in (0, 1)]
    assert [entry[0] for entry in seen.values()] == [0, 0, 1, 1]
    assert {entry[3] for entry in seen.values()} == {2}
    wait_until_gone(entry[4] for entry in seen.values())
    assert not any(group_is_alive(entry[4]) for entry in seen.values())


@pytest.mark.slow
def test_a_killed_first_rank_takes_the_others_along(tmp_path):
    done = sweep(tmp_path, "-m", "fold=0", *DDP_WORDS, command=DDP_ENTRY_POINT, KILL_FOLD="0", KILL_RANK="0")
    assert done.code == 1
    assert "killed by SIGKILL" in done.out
    wait_until_gone(entry[4] for entry in ranks(done).values())


@pytest.mark.slow
def test_without_a_sweep_too_a_killed_first_rank_takes_the_others_along(tmp_path):
    done = sweep(tmp_path, "fold=0", *DDP_WORDS, command=DDP_ENTRY_POINT, KILL_FOLD="0", KILL_RANK="0")
    assert done.code == -9
    files = list((tmp_path / "outputs").rglob("rank*.json"))
    assert len(files) == 2
    wait_until_gone(json.loads(file.read_text())[4] for file in files)


@pytest.mark.slow
def test_a_search_gives_both_ranks_the_same_parameters(tmp_path):
    words = ("sweep=optuna", "hydra.sweeper.n_trials=2", *DDP_WORDS)
    done = sweep(tmp_path, *words, command=DDP_ENTRY_POINT, name="optuna")
    assert done.code == 0, done.err
    seen = list(ranks(done).values())
    assert len(seen) == 4
    assert seen[0][:4] == seen[1][:4]
    assert seen[2][:4] == seen[3][:4]
    assert seen[0][1] != seen[2][1]


def torchrun(folder, *words):
    (folder / "command.py").write_text(DDP_ENTRY_POINT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, "command.py", *words]
    done = subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=280, check=False
    )
    return Answer(done.returncode, done.stdout, done.stderr)


@pytest.mark.slow
def test_torchruns_ranks_share_one_folder(tmp_path):
    answer = torchrun(tmp_path, "fold=1", *DDP_WORDS)
    assert answer.code == 0, answer.err
    files = sorted((tmp_path / "outputs").rglob("rank*.json"))
    assert [file.name for file in files] == ["rank0.json", "rank1.json"]
    assert [json.loads(file.read_text())[:4] for file in files] == [[1, 1.0, 3e-4, 2]] * 2
    assert len({file.parent for file in files}) == 1
    assert len(list((tmp_path / "outputs" / "shapes").iterdir())) == 1


@pytest.mark.slow
def test_a_multirun_under_torchrun_starts_its_jobs_ranks_itself(tmp_path):
    answer = torchrun(tmp_path, "-m", "fold=0,1", *DDP_WORDS)
    assert answer.code == 0, answer.err
    assert answer.out.count("done: fold=") == 2
    files = sorted((tmp_path / "outputs").rglob("rank*.json"))
    assert [json.loads(file.read_text())[0] for file in files] == [0, 0, 1, 1]
    assert len({file.parent for file in files}) == 2


@pytest.mark.slow
def test_torchrun_with_a_trainer_for_one_process_is_refused(tmp_path):
    answer = torchrun(tmp_path, "trainer=cpu")
    assert answer.code == 1  # torchrun's
    assert "error: torchrun started 2 processes, but trainer.devices=1 and trainer.num_nodes=1 make 1; " in answer.err


@pytest.mark.slow
def test_sruns_tasks_share_one_folder(tmp_path):
    """As `srun --ntasks-per-node=2 python command.py` would start them."""
    (tmp_path / "command.py").write_text(DDP_ENTRY_POINT)
    common = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_NODEID": "0"}
    common |= {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NAME": "hdmnet", "SLURM_NODELIST": "127.0.0.1"}
    tasks = [
        subprocess.Popen(
            [sys.executable, "command.py", "fold=1", *DDP_WORDS],
            cwd=tmp_path,
            env=environment(**common, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)),
        )
        for rank in (0, 1)
    ]
    assert [task.wait(timeout=240) for task in tasks] == [0, 0]
    files = sorted((tmp_path / "outputs").rglob("rank*.json"))
    assert [json.loads(file.read_text())[3] for file in files] == [2, 2]
    assert len({file.parent for file in files}) == 1


@pytest.mark.slow
def test_two_jobs_of_two_processes_give_what_they_give_one_by_one(tmp_path):
    words = (*SHAPES, "trainer=ddp_cpu", "trainer.devices=2", "trainer.enable_progress_bar=false", "logger=wandb")
    both = run_process("train", tmp_path / "both", "-m", "fold=0,1", *words)
    assert both.code == 0, both.err
    for fold in (0, 1):
        (folder,) = (tmp_path / "both" / "shapes" / "multirun" / "free").glob(f"fold-{fold}_*")
        assert len(list((folder / "wandb").glob("offline-run-*"))) == 1
        alone = run_process("train", tmp_path / f"alone{fold}", f"fold={fold}", *words)
        assert figures(json.loads((folder / "result.json").read_text())) == figures(alone.result)


@pytest.mark.slow
def test_jobs_side_by_side_train_their_base_learner_once(tmp_path):
    words = (*SHAPES, "launcher=local_parallel", "hydra.launcher.jobs=2", "trainer.enable_progress_bar=false")
    done = run_process("train", tmp_path / "out", "-m", "loss.temperature=0.5,2", *words)
    assert done.code == 0, done.err
    sweep_folder = tmp_path / "out" / "shapes" / "multirun" / "free"
    assert len(list((tmp_path / "out" / "cache" / "base_learners").glob("*.pt"))) == 1
    assert len(list(sweep_folder.glob("*/base_learner.pt"))) == 1  # in the folder of the one that trained it
    consoles = "".join(file.read_text() for file in sweep_folder.glob("*/console.log"))
    assert consoles.count("training it (stage 1)") == 1
