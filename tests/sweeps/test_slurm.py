"""`launcher=slurm` against commands that answer as SLURM's do: submitit submits, the fake runs the tasks here."""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
import threading
import time

import pytest

from hdmnet.sweeps.slurm import Task
from tests.helpers.sweeps import sweep

# Takes submitit's batch script, and runs it for every task of the array in the background.
SBATCH = """#!{python}
import os, re, subprocess, sys
text = open(sys.argv[-1]).read()
option = lambda name: re.search(rf"^#SBATCH --{{name}}=(.+)$", text, re.M)
tasks, array = int(option("ntasks-per-node")[1]), option("array")
numbers = range(int(re.match(r"0-(\\d+)", array[1])[1]) + 1) if array else [None]
job = str(os.getpid())
open(os.path.join(os.environ["FAKE"], "options"), "a").write("".join(re.findall(r"^#SBATCH.+\\n", text, re.M)))
for number in numbers:
    name = job if number is None else f"{{job}}_{{number}}"
    env = dict(os.environ, SLURM_JOB_ID=job, SLURM_NTASKS=str(tasks), SLURM_NTASKS_PER_NODE=str(tasks),
               SLURM_NNODES="1", SLURM_JOB_NUM_NODES="1", SLURM_JOB_NAME="hdmnet", SLURM_NODELIST="127.0.0.1",
               SLURM_JOB_NODELIST="127.0.0.1", SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_NODEID="0")
    if number is not None:
        env |= dict(SLURM_ARRAY_JOB_ID=job, SLURM_ARRAY_TASK_ID=str(number))
    subprocess.Popen(["bash", sys.argv[-1]], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                     stderr=subprocess.DEVNULL, start_new_session=True)
print("Submitted batch job", job)
"""
# Starts the tasks of one job, as many as the batch script asked for.
SRUN = """#!{python}
import os, subprocess, sys
command = sys.argv[next(i for i, word in enumerate(sys.argv) if i and not word.startswith("-") and "/" in word
                        and not sys.argv[i - 1] in ("--output", "--error")):]
assert "--kill-on-bad-exit=1" in sys.argv
tasks = [subprocess.Popen(command, env=dict(os.environ, SLURM_PROCID=str(n), SLURM_LOCALID=str(n)))
         for n in range(int(os.environ["SLURM_NTASKS"]))]
sys.exit(max(task.wait() for task in tasks))
"""
SACCT = "#!/bin/sh\necho 'JobID|State'\n"


@pytest.fixture
def slurm(tmp_path):
    """Folder of the commands; to be the first of PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT, "scancel": "#!/bin/sh\n"}.items():
        file = folder / name
        file.write_text(
            text.replace("{python}", sys.executable) if name != "sbatch" else text.format(python=sys.executable)
        )
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "FAKE": str(tmp_path)}


@pytest.mark.long
def test_each_job_is_submitted_with_a_task_for_each_rank(tmp_path, slurm):
    pytest.importorskip("submitit")
    words = ("launcher=slurm", "trainer=ddp_cpu", "trainer.devices=1", "hydra.launcher.partition=gpu")
    done = sweep(tmp_path, "-m", "fold=0,1", *words, **slurm, FAIL_FOLD="0")
    assert done.states() == [["fold=0", "failed"], ["fold=1", "done"]], done.err
    assert done.code == 1
    assert list(done.seen()) == ["fold-1"]
    options = (tmp_path / "options").read_text()
    for option in ("nodes=1", "ntasks-per-node=1", "partition=gpu", "array=0-1%2", "cpus-per-task=8"):
        assert f"#SBATCH --{option}\n" in options
    assert "gpus" not in options
    again = sweep(tmp_path, "-m", "fold=1", *words, **slurm)
    assert again.states() == [["job", "skipped"]]  # nothing varies now; the job is the same


@pytest.mark.long
def test_the_ranks_of_a_job_share_its_folder(tmp_path, slurm):
    pytest.importorskip("submitit")
    words = ("launcher=slurm", "trainer=ddp_cpu", "trainer.devices=2")
    done = sweep(tmp_path, "-m", "fold=3", *words, **slurm, command=RANKS_ENTRY_POINT)
    assert done.states() == [["job", "done"]], done.err
    (folder,) = (done.folder / name for name in done.folders() if not name.startswith("."))
    assert json.loads((folder / "rank0.json").read_text()) == json.loads((folder / "rank1.json").read_text()) == 3


@pytest.mark.long
def test_a_job_of_unknown_size_is_refused(tmp_path, slurm):
    done = sweep(tmp_path, "-m", "fold=3", "launcher=slurm", "trainer.devices=auto", **slurm)
    assert (done.code, done.err.splitlines()[0]) == (
        2, "error: trainer.devices=auto: launcher=slurm has to ask for them; expected a number"
    )  # fmt: skip


SLEEPER = """
import pathlib, signal, sys, time
def end(*_):
    time.sleep(0.5)
    pathlib.Path(sys.argv[1]).write_text("checkpoint")
    sys.exit(75)
signal.signal(signal.SIGTERM, end)
pathlib.Path(sys.argv[2]).touch()
time.sleep(60)
"""


def test_submitit_is_given_the_task_again_when_its_checkpoint_is_written(tmp_path):
    """Its signal comes while the task waits for its process, on the main thread: here another one waits."""
    pytest.importorskip("submitit")
    files = [tmp_path / "checkpoint", tmp_path / "begun"]
    task = Task([sys.executable, "-c", SLEEPER, *map(str, files)], "job.yaml")
    errors = []

    def call():
        try:
            task()
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    while not files[1].exists():
        time.sleep(0.05)
    delayed = task.checkpoint()
    assert files[0].read_text() == "checkpoint"
    assert vars(delayed.function) == {"command": task.command, "job_file": "job.yaml"}
    thread.join(timeout=20)
    assert errors == ["rank 0 ended with exit code 75"]


WARNED_ENTRY_POINT = """
import os, signal
from hdmnet.cli.entry_point import entry_point

@entry_point("train")
def main(cfg):
    os.kill(os.getpid(), signal.SIGUSR1)

if __name__ == "__main__":
    main()
"""


@pytest.mark.long
@pytest.mark.parametrize("under_slurm", [True, False])
def test_a_job_that_slurm_warns_is_put_into_the_queue_again(tmp_path, slurm, under_slurm):
    """With `#SBATCH --signal=USR1@60`. Outside of SLURM the signal ends a process as ever."""
    note = tmp_path / "scontrol.txt"
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {note}\n')
    scontrol.chmod(0o755)
    done = sweep(tmp_path, command=WARNED_ENTRY_POINT, **slurm, **({"SLURM_JOB_ID": "7"} if under_slurm else {}))
    assert done.code == (75 if under_slurm else -signal.SIGUSR1)
    assert (note.read_text() if note.exists() else None) == ("requeue 7\n" if under_slurm else None)
    if under_slurm:
        assert done.err.splitlines()[-1] == (
            "error: interrupted by SIGUSR1; to go on: the same command with resume=auto"
        )


RANKS_ENTRY_POINT = """
import json, os, pathlib
from hdmnet.runtime import ranks
from hdmnet.cli.entry_point import entry_point

@entry_point("train")
def main(cfg):
    folder = pathlib.Path(cfg.paths.run_dir)
    (folder / f"rank{ranks.rank()}.json").write_text(json.dumps(cfg.fold))
    if ranks.rank() == 0:
        (folder / "result.json").write_text(json.dumps({"test": {"miou": 0.5}}))

if __name__ == "__main__":
    main()
"""
