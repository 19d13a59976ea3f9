"""Entry points without a network for the tests of multiruns: seconds in place of minutes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hdmnet.runtime.ranks import PARENT_VARIABLE, VARIABLES

ROOT = Path(__file__).resolve().parents[2]

# Leaves a result and a note of what it saw. FAIL_FOLD, KILL_FOLD: what is to go wrong, and where.
ENTRY_POINT = """
import json, os, pathlib, signal, time
from hdmnet.cli.entry_point import entry_point

@entry_point("train")
def main(cfg):
    folder = pathlib.Path(cfg.paths.run_dir)
    if os.environ.get("FAIL_FOLD") == str(cfg.fold):
        raise RuntimeError("a bug")
    if os.environ.get("KILL_FOLD") == str(cfg.fold):
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / "pid").write_text(str(os.getpid()))
    time.sleep(float(os.environ.get("SLEEP", "0")))
    environment = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "RANK")}
    config = [cfg.fold, cfg.loss.temperature, cfg.model.num_stages, cfg.backbone.name, cfg.ablation, cfg.optim.lr]
    seen = {"config": config, "environment": environment, "pid": os.getpid()}
    (folder / "seen.json").write_text(json.dumps(seen))
    figure = cfg.fold + cfg.loss.temperature / 10
    (folder / "result.json").write_text(json.dumps({"test": {"miou": figure}, "val_miou": figure}))

if __name__ == "__main__":
    main()
"""

# Two trainers in turn, as in stage 1 and stage 2, and a rank that dies where KILL_FOLD says.
DDP_ENTRY_POINT = """
import json, os, pathlib, signal
from hdmnet.cli.entry_point import entry_point

@entry_point("train")
def main(cfg):
    import torch
    from lightning.pytorch.demos.boring_classes import BoringModel
    from hdmnet.config.instantiate import instantiate

    torch.set_num_threads(1)
    folder = pathlib.Path(cfg.paths.run_dir)

    class Model(BoringModel):
        def on_train_start(self):
            rank, world = self.trainer.global_rank, self.trainer.world_size
            seen = [cfg.fold, cfg.loss.temperature, cfg.optim.lr, world, os.getpid()]
            (folder / f"rank{rank}.json").write_text(json.dumps(seen))
            self.trainer.strategy.barrier()
            if os.environ.get("KILL_FOLD") == str(cfg.fold) and rank == int(os.environ["KILL_RANK"]):
                os.kill(os.getpid(), signal.SIGKILL)

    for _ in range(2):
        trainer = instantiate(cfg.trainer, logger=False, enable_checkpointing=False)
        trainer.fit(Model())
    if trainer.is_global_zero:
        (folder / "result.json").write_text(json.dumps({"test": {"miou": cfg.fold / 10}, "val_miou": cfg.fold / 10}))

if __name__ == "__main__":
    main()
"""
DDP_WORDS = (
    *("trainer=ddp_cpu", "trainer.devices=2", "trainer.max_steps=2", "trainer.max_epochs=1"),
    *("trainer.limit_val_batches=1", "trainer.enable_progress_bar=false"),
)


@dataclass
class Sweep:
    """What a command left."""

    code: int
    out: str
    err: str
    folder: Path

    def seen(self, file: str = "seen.json") -> dict[str, object]:
        """What each job has written, by the name of its folder without the hash."""
        return {
            path.parent.name.rpartition("_")[0]: json.loads(path.read_text(encoding="utf-8"))
            for path in sorted(self.folder.glob(f"*/{file}"))
            if "." not in path.parent.name.rpartition("_")[2]  # moved aside
        }

    def folders(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.is_dir())

    def states(self) -> list[list[str]]:
        """Name and state of each job, from the table."""
        table = self.out.partition("\njob ")[2].splitlines()[1:]
        return [line.split()[:2] for line in table if not line.startswith("folder: ")]


def environment(**changes: str) -> dict[str, str]:
    """This process's, without what a job or a rank is told."""
    leave_out = {"HYDRA_FULL_ERROR", "HDMNET_JOB_CONFIG", PARENT_VARIABLE, *VARIABLES}
    kept = {name: value for name, value in os.environ.items() if name not in leave_out}
    return {**kept, "PYTHONPATH": str(ROOT), **changes}


def sweep(folder: Path, *words: str, command: str = ENTRY_POINT, name: str = "free", **changes: str) -> Sweep:
    """Run the entry point in `folder` with the words of a command line."""
    (folder / "command.py").write_text(command)
    done = subprocess.run(
        [sys.executable, "command.py", *words],
        cwd=folder,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    return Sweep(done.returncode, done.stdout, done.stderr, folder / "outputs" / "shapes" / "multirun" / name)


def alive(pids: Iterable[int]) -> list[int]:
    """Those of the processes that still run; zombies do not."""
    running = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in "ZX":
            running.append(pid)
    return running


def wait_until_gone(pids: Iterable[int], seconds: float = 10) -> None:
    """Fail unless the processes end within some seconds."""
    end = time.monotonic() + seconds
    left = alive(pids)
    while left and time.monotonic() < end:
        time.sleep(0.1)
        left = alive(left)
    assert not left
