"""What every door shares: composing the config, one-line errors, threads, and the other processes of a DDP job.

Imports nothing heavy: `python -m hdmnet.train --help` and the refusal of a typo come before PyTorch is loaded.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hdmnet import config, errors
from hdmnet.provenance import available_cpus
from hdmnet.validation import validate

Job = Callable[[DictConfig], None]

HYDRA_VERSION_BASE = "1.3"
CONFIG_ERROR = 2  # exit code where the command line is wrong; 1 where the job found something wrong

# Where the first process of a DDP job leaves its composed config for the others. They are started with the same command
# line; composing again, each would run the whole multirun in a folder of its own (Lightning 2.6.6 with Hydra 1.3.8).
_JOB_VARIABLE = "HDMNET_JOB_CONFIG"


class _JobFailedError(Exception):
    """A job of a multirun failed and has said so; Hydra goes on with the next one."""

    def __init__(self, code: int) -> None:
        super().__init__("a job of the multirun failed")
        self.code = code


def door(config_name: str) -> Callable[[Job], Callable[..., None]]:
    """Make a command out of a function that takes a composed config.

    The command composes `conf/<config_name>.yaml` with the command line, checks it, fixes its folders, caps the threads
    and runs the job. What a user did wrong becomes one line `error: ...` on stderr and exit code 2 (command line) or 1
    (files, data); a bug keeps its traceback. `HDMNET_TRACEBACK=1` keeps every traceback.

    Args:
        config_name: Name of the door's file in conf/, without `.yaml`.

    Returns:
        A decorator. The decorated function, called without arguments, reads `sys.argv` and exits; called with a config,
        it runs the job on it and raises what the job raises.
    """

    def decorate(job: Job) -> Callable[..., None]:
        @functools.wraps(job)
        def main(cfg: DictConfig | None = None) -> None:
            if cfg is not None:
                job(cfg)
                return
            code = _run_command(config_name, job)
            if code:
                sys.exit(code)

        return main

    return decorate


def _run_command(config_name: str, job: Job) -> int:
    """Run a door's command line; returns the exit code."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors on instead of printing and exiting
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for its newest version
    config.register_schemas()
    try:
        handed_over = _config_of_first_rank()
        if handed_over is not None:
            return _run_job(job, handed_over)

        @functools.wraps(job)  # Hydra names the job by the function's module
        def task(cfg: DictConfig) -> None:
            _run_hydra_job(job, cfg)

        compose = hydra.main(str(config.conf_dir()), config_name, HYDRA_VERSION_BASE)
        compose(task)()
    except _JobFailedError as error:
        return error.code
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except (HydraException, OmegaConfBaseException) as error:
        if errors.wants_traceback():
            raise
        print(f"error: {errors.composition_message(error, config_name)}", file=sys.stderr)
        return CONFIG_ERROR
    except ValueError as error:
        if errors.wants_traceback() or not str(error).startswith("Config group override"):
            raise
        # Hydra's only refusal of a command line that is not one of its own exceptions: `ablation=null`.
        print("error: a config group cannot be null; expected one of its options, e.g. ablation=none", file=sys.stderr)
        return CONFIG_ERROR
    return 0


def _run_hydra_job(job: Job, cfg: DictConfig) -> None:
    """Run one job inside Hydra; in a multirun a failure leaves the other jobs their turn."""
    hydra_config = HydraConfig.get()
    config.make_paths_absolute(cfg, hydra_config.runtime.output_dir)
    code = _run_job(job, cfg)
    if not code:
        return
    if hydra_config.mode == RunMode.MULTIRUN:
        raise _JobFailedError(code)
    sys.exit(code)


def _run_job(job: Job, cfg: DictConfig) -> int:
    """Check the config and run the job; returns the exit code.

    Raises:
        Exception: What is not the user's doing.
    """
    try:
        validate(cfg)
    except (ValueError, OmegaConfBaseException) as error:
        if errors.wants_traceback():
            raise
        print(f"error: {errors.one_line(error)}", file=sys.stderr)
        return CONFIG_ERROR
    with _job_environment(cfg):
        try:
            job(cfg)
        except Exception as error:
            message = None if errors.wants_traceback() else errors.user_message(error)
            if message is None:
                raise
            print(f"error: {message}", file=sys.stderr)
            return 1
    return 0


# -------------------------------------------------------------------------------------------- processes and threads


def _config_of_first_rank() -> DictConfig | None:
    """The config that the first process of this DDP job has composed; None in that process itself."""
    path = os.environ.get(_JOB_VARIABLE)
    if path is None or os.environ.get("LOCAL_RANK", "0") == "0":
        return None
    cfg = cast(DictConfig, OmegaConf.load(path))
    OmegaConf.set_struct(cfg, True)
    return cfg


def hand_over(cfg: DictConfig) -> None:
    """Leave the config for the other processes of a DDP job; does nothing in these.

    Args:
        cfg: What the job runs on. A job that changes it calls this again before it starts a trainer.
    """
    if _config_of_first_rank() is None and cfg.paths.run_dir is not None:
        job_file = Path(cfg.paths.run_dir) / ".hydra" / "job.yaml"
        job_file.parent.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(cfg, job_file)
        os.environ[_JOB_VARIABLE] = str(job_file)


@contextlib.contextmanager
def _job_environment(cfg: DictConfig) -> Iterator[None]:
    """Set what a job's processes read from the environment, and leave nothing of it to the next job of a multirun.

    Lightning leaves its own variables (LOCAL_RANK, MASTER_PORT ...) and the process group behind; with those in place
    the next job would wait for processes that nobody starts.
    """
    before = dict(os.environ)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cpus() // _num_processes(cfg))))
    hand_over(cfg)
    try:
        yield
    finally:
        torch = cast(Any, sys.modules.get("torch"))
        if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        os.environ.clear()
        os.environ.update(before)


def _num_processes(cfg: DictConfig) -> int:
    """Processes that the trainer starts on this machine; 1 where only Lightning can tell."""
    devices = OmegaConf.select(cfg, "trainer.devices", default=1)
    return max(1, devices) if isinstance(devices, int) else 1
