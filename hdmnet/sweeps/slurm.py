"""The jobs of a multirun as jobs of SLURM, by submitit."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from hdmnet.runtime import ranks, signals
from hdmnet.runtime.errors import ConfigError, InputError
from hdmnet.sweeps.launcher import JOB_FILE, JOB_VARIABLE, SweepJob, SweepLauncher

log = logging.getLogger(__name__)

_SHARED = frozenset({"timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node", "name"})


class Task:
    """What SLURM starts once for each rank: the entry point with the job's config."""

    def __init__(self, command: Sequence[str], job_file: str) -> None:
        self.command, self.job_file = list(command), job_file

    def __call__(self) -> int:
        """Run the entry point; returns its exit code, or raises RuntimeError: SLURM then ends the job's other ranks."""
        environment = {**os.environ, JOB_VARIABLE: self.job_file, ranks.PARENT_VARIABLE: str(os.getpid())}
        with subprocess.Popen(self.command, env=environment) as process:
            self._pid = process.pid
            code = process.wait()
        if code == signals.EXIT_CODE and ranks.rank() > 0:
            return code  # the first rank sees to it that the job is put into the queue again
        if code:
            raise RuntimeError(f"rank {ranks.rank()} ended with exit code {code}")
        return code

    def checkpoint(self) -> Any:
        """What is to run when the job begins again; submitit asks the first rank shortly before SLURM ends the job.

        Waits until the run has written its checkpoint. The same task then goes on from there: SLURM counts restarts.
        """
        from submitit.helpers import DelayedSubmission

        pid = getattr(self, "_pid", None)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGTERM)
                # Not `Popen.wait`: submitit's signal handler, where this runs, has interrupted one.
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Task(self.command, self.job_file))


class SlurmSweepLauncher(SweepLauncher):
    """Submits every job of the multirun and waits for them.

    The settings are those of submitit's `AutoExecutor.update_parameters` without the prefix `slurm_`; null = SLURM's
    default.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = {name: value for name, value in settings.items() if value is not None}

    def run(self, waiting: Sequence[SweepJob]) -> None:
        """Submit the jobs, wait for all of them; an interrupt cancels them."""
        try:
            import submitit
        except ModuleNotFoundError:
            raise InputError("launcher=slurm needs submitit: pip install 'hdmnet[slurm]'") from None
        plain = OmegaConf.to_container(OmegaConf.create(self.settings), resolve=True)
        by_shape: dict[tuple[tuple[str, int], ...], list[SweepJob]] = {}
        for job in waiting:
            by_shape.setdefault(tuple(_shape(job.cfg).items()), []).append(job)
        submitted: list[tuple[SweepJob, Any]] = []
        for shape, alike in by_shape.items():
            executor = submitit.AutoExecutor(folder=alike[0].folder.parent / ".submitit" / "%j", cluster="slurm")
            given = {**dict(shape), **cast(dict[str, Any], plain)}.items()
            executor.update_parameters(**{name if name in _SHARED else f"slurm_{name}": value for name, value in given})
            with executor.batch():  # one job array
                handles = [executor.submit(Task(self.command(), str(job.folder / JOB_FILE))) for job in alike]
            submitted += zip(alike, handles, strict=True)
        _wait(submitted)


def _shape(cfg: DictConfig) -> dict[str, int]:
    """Nodes, tasks and GPUs for the ranks of a job, as Lightning wants them."""
    devices = cfg.trainer.devices
    if not isinstance(devices, int) or devices < 1:
        raise ConfigError(f"trainer.devices={devices}: launcher=slurm has to ask for them; expected a number")
    shape = {"nodes": int(cfg.trainer.num_nodes), "tasks_per_node": devices}
    return shape if cfg.trainer.accelerator == "cpu" else {**shape, "gpus_per_node": devices}


def _wait(submitted: Sequence[tuple[SweepJob, Any]]) -> None:
    """Wait for all jobs and record how each ended; an interrupt cancels them."""
    begin = time.monotonic()
    try:
        for job, handle in submitted:
            log.info("SLURM job %s: %s", handle.job_id, job.name)
        for job, handle in submitted:
            error = handle.exception()
            job.seconds = time.monotonic() - begin
            note = "" if error is None else f"SLURM job {handle.job_id} {handle.state}, see {handle.paths.stderr}"
            job.finish("done" if error is None else "failed", note)
            log.info("%s: %s %s", job.state, job.name, job.note)
    except BaseException:
        for _, handle in submitted:
            handle.cancel(check=False)
        raise
