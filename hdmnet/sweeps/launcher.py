"""The jobs of a multirun: what they are called, which are finished already, how they are run, and how they ended.

A job is its composed config: `job_digest` of it is in the name of the job's folder, so that a sweep that is repeated
finds what it has done. Every job is a process of its own (`hdmnet/sweeps/processes.py`) that is given the config and
the folder. The classes here are Hydra launchers; Hydra finds them by way of `hydra_plugins/hdmnet_sweeps`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from hdmnet.config.checks import validate
from hdmnet.config.paths import expand_home_in, make_paths_absolute
from hdmnet.config.values import num_devices
from hdmnet.runtime import resume
from hdmnet.runtime.errors import InputError, one_line
from hdmnet.runtime.provenance import available_cpus
from hdmnet.sweeps import processes

log = logging.getLogger(__name__)

JOB_VARIABLE = "HDMNET_JOB_CONFIG"  # file with the composed config that a process is to run
JOB_FILE = Path(".hydra") / "job.yaml"
AUTOMATIC = "auto"  # hydra.sweep.subdir: named here

# Keys that say where and how a job runs, not what it computes.
_NOT_OF_THE_JOB = (
    *("paths", "logger", "num_workers", "recipe", "sweep", "rerun", "resume", "compile", "keep_features_gb"),
    "baseline_episodes",
)
_NOT_OF_THE_TRAINER = ("enable_progress_bar", "enable_model_summary", "log_every_n_steps", "profiler")
_LONGEST_NAME = 120  # file systems allow 255 bytes


@dataclass
class SweepJob:
    """One job of a multirun."""

    name: str  # what varies, for people
    cfg: DictConfig  # composed, folders absolute
    hydra_cfg: DictConfig  # Hydra's own part
    overrides: list[str]  # its command line
    folder: Path  # where it leaves everything
    state: str = "waiting"  # or "done", "skipped" (finished before), "failed"
    note: str = ""  # why it failed
    miou: float | None = None  # of the test
    seconds: float | None = None  # duration

    def finish(self, state: str, note: str = "") -> None:
        """Record how the job ended."""
        self.state, self.note = state, note
        result = read_job_result(self.folder)
        if state != "failed" and result is not None:
            self.miou = result["test"]["miou"]


@dataclass
class Sweep:
    """What the jobs of this process's multirun came to."""

    jobs: list[SweepJob] = field(default_factory=list)

    def report(self) -> int:
        """Print the table of jobs; returns the exit code: 1 where one of them failed or did not begin."""
        if not self.jobs:
            return 0
        unhappy = [job for job in self.jobs if job.state in ("failed", "waiting")]
        width = max(len("job"), *(len(job.name) for job in self.jobs))
        print(f"\n{'job':<{width}}  state    mIoU   minutes")
        for job in self.jobs:
            miou = "" if job.miou is None else f"{100 * job.miou:.1f}"
            minutes = "" if job.seconds is None else f"{job.seconds / 60:.1f}"
            state = "not run" if job.state == "waiting" else job.state
            print(f"{job.name:<{width}}  {state:<7}  {miou:>4}  {minutes:>8}  {job.note}".rstrip())
        print(f"folder: {self.jobs[0].folder.parent}", flush=True)
        if unhappy:
            names = "; ".join(job.name for job in unhappy)
            print(f"error: {len(unhappy)} of {len(self.jobs)} jobs failed or did not run: {names}", file=sys.stderr)
        return 1 if unhappy else 0


current = Sweep()  # of this process; emptied by the entry point


def read_job_result(folder: Path) -> dict[str, Any] | None:
    """The `result.json` of a finished job; None where there is none."""
    file = folder / "result.json"
    if not file.is_file():
        return None
    try:
        result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is damaged ({error}); delete it to run the job again") from None
    return result


def job_digest(cfg: DictConfig) -> str:
    """What tells a job from others: a hash of its unresolved config without folders, loggers and number of workers."""
    facts = resume.facts_of(cfg, _NOT_OF_THE_JOB, _NOT_OF_THE_TRAINER)
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:8]


def job_name(overrides: Sequence[str], varied: Collection[str]) -> str:
    """What a multirun's keys that vary are in a job's command line, e.g. `fold=1,loss.temperature=0.5`."""
    special = [word.lstrip("+") for word in overrides if word.lstrip("+").partition("=")[0] in varied]
    return re.sub(r"[^\w.,=+-]+", "-", ",".join(special))[:_LONGEST_NAME] or "job"


def _job_folder(sweep_dir: Path, name: str, digest: str) -> Path:
    """The folder of a job: the one that it has, whatever else was varied at the time, or a new one."""
    # "=" and "," would have to be quoted in every ckpt=PATH.
    readable = name.replace("=", "-").replace(",", "_")
    return next(iter(sorted(sweep_dir.glob(f"*_{digest}"))), sweep_dir / f"{readable}_{digest}")


class SweepLauncher(Launcher):
    """Prepares the jobs, leaves out the finished ones, and has the others run."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra gives."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs of the command lines; a failed one does not raise.

        Returns:
            For each job what Hydra's sweepers expect; its value is the job's `result.json`, None after a failure.
        """
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        by_folder: dict[Path, SweepJob] = {}
        batch = []
        for number, overrides in enumerate(job_overrides, start=initial_job_idx):
            job = self._compose(list(overrides), number)
            batch.append(by_folder.setdefault(job.folder, job))
        new = list(by_folder.values())
        current.jobs.extend(new)
        for job in new:
            _refuse_or_skip(job)
        waiting = [job for job in new if job.state == "waiting"]
        log.info("%d jobs, %d of them to run, in %s", len(new), len(waiting), new[0].folder.parent)
        for job in waiting:
            _write_job(job)
        if waiting:
            self.run(waiting)
        return [_as_return(job) for job in batch]

    @abstractmethod
    def run(self, waiting: Sequence[SweepJob]) -> None:
        """Run the jobs and say of each how it ended (`SweepJob.finish`)."""

    def _compose(self, overrides: list[str], number: int) -> SweepJob:
        composed = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(composed):
            composed.hydra.job.id = composed.hydra.job.num = number
        with read_write(composed), read_write(composed.hydra):
            expand_home_in(composed)
        HydraConfig.instance().set_config(composed)  # for ${hydra:...} in the config
        hydra_cfg = composed.hydra
        task_overrides = list(hydra_cfg.overrides.task)
        cfg = composed.copy()
        OmegaConf.set_struct(cfg, False)
        del cfg["hydra"]
        name = job_name(task_overrides, self._varied())
        sweep_dir, subdir = Path(hydra_cfg.sweep.dir).absolute(), str(hydra_cfg.sweep.subdir)
        path = _job_folder(sweep_dir, name, job_digest(cfg)) if subdir == AUTOMATIC else sweep_dir / subdir
        with read_write(hydra_cfg), open_dict(hydra_cfg):
            hydra_cfg.runtime.output_dir = str(path)
        OmegaConf.set_struct(cfg, True)
        make_paths_absolute(cfg, path)
        return SweepJob(name, cfg, OmegaConf.create({"hydra": hydra_cfg}), task_overrides, path)

    def _varied(self) -> set[str]:
        """Keys for which the multirun has several values."""
        params = OmegaConf.select(self.config, "hydra.sweeper.params") or {}
        words = [f"{key}={value}" for key, value in params.items()] + list(self.config.hydra.overrides.task)
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        last = {override.get_key_element().lstrip("+"): override for override in parser.parse_overrides(words)}
        return {key for key, override in last.items() if override.is_sweep_override()}

    def command(self) -> list[str]:
        """The entry point's command, without arguments."""
        module = self.task_function.__module__
        if module != "__main__":
            return [sys.executable, "-m", module]
        spec = sys.modules["__main__"].__spec__
        return [sys.executable, os.path.abspath(sys.argv[0])] if spec is None else [sys.executable, "-m", spec.name]


def _refuse_or_skip(job: SweepJob) -> None:
    if not job.cfg.get("rerun", False) and read_job_result(job.folder) is not None:
        job.finish("skipped")
        return
    try:
        validate(job.cfg)
    except (ValueError, OmegaConfBaseException) as error:
        job.finish("failed", one_line(error))


def _write_job(job: SweepJob) -> None:
    """Make the job's folder with what it is to run; what an earlier attempt has left there is gone on with or moved."""
    unfinished = "resume" in job.cfg and resume.can_go_on(job.cfg, job.folder)  # an evaluation begins anew
    if "resume" in job.cfg:
        job.cfg.resume = str(job.folder) if unfinished else None
    if not unfinished and job.folder.is_dir() and any(job.folder.iterdir()):
        number = 1
        while (aside := job.folder.with_name(f"{job.folder.name}.{number}")).exists():
            number += 1
        job.folder.rename(aside)
        if (aside / "result.json").is_file():  # counted no longer
            (aside / "result.json").rename(aside / "result.replaced.json")
    (job.folder / JOB_FILE).parent.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(job.cfg, job.folder / JOB_FILE)
    for file, content in (("config", job.cfg), ("hydra", job.hydra_cfg), ("overrides", job.overrides)):
        OmegaConf.save(OmegaConf.create(content), job.folder / ".hydra" / f"{file}.yaml")


def _as_return(job: SweepJob) -> JobReturn:
    value = None if job.state == "failed" else read_job_result(job.folder)
    return JobReturn(
        overrides=job.overrides,
        cfg=job.cfg,
        hydra_cfg=job.hydra_cfg,
        working_dir=str(job.folder),
        status=JobStatus.COMPLETED,
        _return_value=value,
    )


class LocalSweepLauncher(SweepLauncher):
    """Runs the jobs on this machine, one after another or side by side.

    Args:
        jobs: How many side by side; None = one for each GPU (for each `trainer.devices` GPUs), without a GPU one for
            two cores.
    """

    def __init__(self, jobs: int | None = 1) -> None:
        self.side_by_side = jobs

    def run(self, waiting: Sequence[SweepJob]) -> None:
        """Run the jobs, each in a process of its own."""
        devices = max(num_devices(job.cfg) for job in waiting)
        gpus = [] if self.side_by_side == 1 or waiting[0].cfg.trainer.accelerator == "cpu" else visible_gpus()
        places = slots(self.side_by_side, gpus, devices, available_cpus())
        started: dict[int, tuple[processes.Process, SweepJob]] = {}
        for job in waiting:
            # Side by side their lines would be mixed.
            console = None if len(places) == 1 else job.folder / "console.log"
            process = processes.Process(self.command(), {JOB_VARIABLE: str(job.folder / JOB_FILE)}, console)
            started[id(process)] = (process, job)

        def begin() -> Any:
            for process, job in started.values():
                log.info("begins: %s", job.name)
                yield process

        def ended(process: processes.Process) -> None:
            job = started[id(process)][1]
            job.seconds = process.seconds
            console = "" if process.console is None else f", see {process.console}"
            job.finish(*(("failed", process.ending + console) if process.code else ("done",)))
            log.info("%s: %s %s", job.state, job.name, job.note)

        processes.run(begin(), places, ended)


def slots(wanted: int | None, gpus: Sequence[str], devices: int, cpus: int) -> list[Mapping[str, str | None]]:
    """Places for jobs side by side, of so many devices each: what changes in the environment. None: by the machine."""
    if wanted == 1:
        return [{}]
    groups = [gpus[first : first + devices] for first in range(0, len(gpus) - devices + 1, devices)]
    count = wanted or len(groups) or max(1, cpus // 2 // devices)
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cpus // (count * devices)))
    return [
        {"OMP_NUM_THREADS": threads} | ({"CUDA_VISIBLE_DEVICES": ",".join(groups[n % len(groups)])} if groups else {})
        for n in range(count)
    ]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    import torch  # only here: seconds to import

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()][: torch.cuda.device_count()]
    return [str(number) for number in range(torch.cuda.device_count())]
