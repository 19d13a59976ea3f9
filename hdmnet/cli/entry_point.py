"""What the entry points share: composing the config, one-line errors, threads, and the other processes of a DDP job.

Imports nothing heavy: `python -m hdmnet.train --help` and the refusal of a typo come before PyTorch is loaded.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hdmnet.cli.errors import composition_message, is_group
from hdmnet.cli.fresh_folder import new_folders
from hdmnet.cli.home import NoHomeError
from hdmnet.cli.quoting import quote_paths
from hdmnet.config.checks import validate
from hdmnet.config.paths import HYDRA_VERSION_BASE, conf_dir, make_paths_absolute
from hdmnet.config.schemas import register_schemas
from hdmnet.config.values import num_devices
from hdmnet.runtime import ranks, resume, signals
from hdmnet.runtime.console import print_in_any_encoding
from hdmnet.runtime.errors import ConfigError, UserError, exit_code, one_line, user_message, wants_traceback
from hdmnet.runtime.private_api import hydra_parser
from hdmnet.runtime.provenance import available_cpus
from hdmnet.runtime.run_folder import remove_unused
from hdmnet.sweeps import launcher
from hdmnet.sweeps.launcher import JOB_FILE, JOB_VARIABLE

Job = Callable[[DictConfig], None]

_ONLY_SHOWS = {"--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i"}  # flags
_JOB_FILE = "job file"  # what the first rank tells the others


def entry_point(config_name: str) -> Callable[[Job], Callable[..., None]]:
    """Make a command out of a function that takes a composed config.

    The command composes `conf/<config_name>.yaml` with the command line, checks it, fixes its folders, caps the threads
    and runs the job. What a user did wrong becomes one line `error: ...` on stderr and exit code 2 (command line) or 1
    (files, data); a bug keeps its traceback. `HDMNET_TRACEBACK=1` keeps every traceback.

    The decorated function, called without arguments, reads `sys.argv` and exits; called with a config, it runs the job
    on it and raises what the job raises.
    """

    def decorate(job: Job) -> Callable[..., None]:
        @functools.wraps(job)
        def main(cfg: DictConfig | None = None) -> None:
            if cfg is not None:
                job(cfg)
                return
            with signals.handling_signals():
                code = run_command(config_name, job)
            if code:
                sys.exit(code)

        return main

    return decorate


def run_command(config_name: str, job: Job) -> int:
    """Run an entry point's job on the command line in `sys.argv`; returns the exit code."""
    print_in_any_encoding()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors on instead of printing and exiting
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for its newest version
    # `+sweep=table9` is how Hydra's users write what is `sweep=table9` here.
    words = [word.removeprefix("+") if word.startswith("+sweep=") else word for word in sys.argv[1:]]
    sys.argv[1:] = map(quote_paths, words)
    ranks.end_with_parent()
    launcher.current.jobs.clear()
    try:
        register_schemas()
        if JOB_VARIABLE in os.environ:
            _run_given(job, Path(os.environ[JOB_VARIABLE]))
            return 0
        if ranks.started_together() and ranks.rank() > 0:
            job_file = ranks.receive_from_first(_JOB_FILE)
            if job_file:
                _run_given(job, Path(job_file))
            return 0
        return _compose_and_run(config_name, job)
    except KeyboardInterrupt:
        launcher.current.report()
        print("error: interrupted", file=sys.stderr)
        return signals.INTERRUPTED
    except signals.Stopped as stop:
        launcher.current.report()
        return _report_stop(stop, config_name)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _ONLY_SHOWS & set(sys.argv):  # `--help | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        message = None if wants_traceback() else user_message(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return exit_code(error)


def _compose_and_run(config_name: str, job: Job) -> int:
    """Run the job, or the multirun, that the command line describes; returns the exit code."""
    _check_words()
    begun = False
    refusals: list[Exception] = []
    new_folders.clear()

    @functools.wraps(job)  # Hydra names the job, and a sweep its command, by the function's module
    def task(cfg: DictConfig) -> None:
        nonlocal begun
        try:
            folder = _run_folder(cfg)
            begun = True
            make_paths_absolute(cfg, folder)
            _run_job(job, cfg)
        except Exception as error:
            if user_message(error) is None or wants_traceback():
                raise
            refusals.append(error)  # raised below: Hydra would add lines of its own
            folder = Path(HydraConfig.get().runtime.output_dir)
            if folder in new_folders:  # nothing of an earlier command is in it
                remove_unused(folder, below=Path(str(cfg.paths.output_dir)).absolute())

    try:
        hydra.main(str(conf_dir()), config_name, HYDRA_VERSION_BASE)(task)()
    except NoHomeError as error:
        raise cast(UserError, error.__cause__) from None
    except Exception as error:
        if begun or launcher.current.jobs or isinstance(error, UserError):
            raise
        if isinstance(error, HydraException | OmegaConfBaseException):
            raise ConfigError(composition_message(error, config_name)) from error
        if not isinstance(error, TypeError | AttributeError | KeyError | ValueError):
            raise
        # Hydra's and OmegaConf's parsers trip over words of the wrong kind; no code of a job has run yet.
        raise ConfigError(f"the command line cannot be understood ({one_line(error)}): check its words") from error
    finally:
        if not begun and ranks.started_together():
            ranks.send_to_ranks(_JOB_FILE, "")  # a multirun, which starts its ranks itself, or --help, or a refusal
    if refusals:
        raise refusals[0]
    return launcher.current.report()


def _run_folder(cfg: DictConfig) -> Path:
    """The folder that Hydra has made for the run, or that of the run to go on with."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        return resume.find_folder(cfg, folder) if "resume" in cfg else folder
    except UserError as error:  # whatever is missing: the word `resume=` is wrong
        raise ConfigError(str(error)) from error


def _check_words() -> None:
    """Refuse what Hydra would answer with its usage or a traceback: flags that are none (`--fold 1`), null groups."""

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message}; expected group=option and key=value, e.g. fold=1 (--help lists the flags)")

    parser = hydra_parser()
    parser.error = refuse  # type: ignore[method-assign]
    words = parser.parse_intermixed_args(sys.argv[1:]).overrides
    # Hydra takes flags before or after all words, not between them (`dataset=coco -m fold=0,1`).
    sys.argv[1:] = [word for word in sys.argv[1:] if word not in words] + words
    for word in words:
        group, _, option = word.partition("=")
        if option == "null" and is_group(group):
            raise ConfigError(f"a config group cannot be null; expected one of its options, e.g. {group}=none")


def _run_given(job: Job, job_file: Path) -> None:
    """Run a job that another process has composed."""
    cfg = cast(DictConfig, OmegaConf.load(job_file))
    OmegaConf.set_struct(cfg, True)
    if "resume" in cfg and resume.can_go_on(cfg, Path(cfg.paths.run_dir)):  # SLURM has started it again
        cfg.resume = cfg.paths.run_dir
    if ranks.rank() == 0:  # a job of a multirun: log as Hydra would
        logging_config = OmegaConf.load(job_file.with_name("hydra.yaml")).hydra
        configure_log(logging_config.job_logging, logging_config.verbose)
    _run_job(job, cfg)


def job_overrides(cfg: DictConfig) -> list[str]:
    """The command line of the job that this process takes part in, e.g. `["fold=1", "dataset=coco"]`."""
    if HydraConfig.initialized():
        return list(HydraConfig.get().overrides.task)
    return list(OmegaConf.load(Path(cfg.paths.run_dir) / ".hydra" / "overrides.yaml"))


def _run_job(job: Job, cfg: DictConfig) -> None:
    """Check the config and run the job."""
    validate(cfg)
    _check_processes(cfg)
    with _job_environment(cfg), resume.claimed(cfg) if ranks.rank() == 0 else contextlib.nullcontext():
        job(cfg)


def _report_stop(stop: signals.Stopped, config_name: str) -> int:
    """Say what a signal has left and how to go on; returns the exit code."""
    if ranks.rank() > 0:
        # Lightning kills the first rank, which has this to say, when another one fails.
        return stop.exit_code if ranks.started_together() else 0
    if stop.wants_requeue:
        try:
            subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"error: the job could not be put into the queue again: {one_line(error)}", file=sys.stderr)
    by = "" if stop.exit_code == signals.INTERRUPTED else f" by {stop}"
    saved = "" if stop.saved is None else f", checkpoint of {stop.saved} written"
    again = "; to go on: the same command with resume=auto" if config_name == "train" else ""
    print(f"error: interrupted{by}{saved}{again}", file=sys.stderr)
    return stop.exit_code


@contextlib.contextmanager
def _job_environment(cfg: DictConfig) -> Iterator[None]:
    """Set what a job's processes read from the environment, and leave nothing of it behind.

    The other ranks are started with the same command line. Composing it again, each would have a folder of its own, and
    in a multirun run all of it (Lightning 2.6.6 with Hydra 1.3.8): the first rank leaves them its config.
    """
    before = dict(os.environ)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cpus() // num_devices(cfg))))
    os.environ[ranks.PARENT_VARIABLE] = str(os.getpid())
    if ranks.rank() == 0 and JOB_VARIABLE not in before:
        job_file = Path(cfg.paths.run_dir) / JOB_FILE
        job_file.parent.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(cfg, job_file)
        os.environ[JOB_VARIABLE] = str(job_file)
        ranks.send_to_ranks(_JOB_FILE, str(job_file))
    try:
        yield
    finally:
        torch = cast(Any, sys.modules.get("torch"))
        if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        os.environ.clear()
        os.environ.update(before)


def _check_processes(cfg: DictConfig) -> None:
    """Refuse another number of ranks than the trainer is set for: each of them would run the whole job."""
    started, devices = ranks.world_size(), OmegaConf.select(cfg, "trainer.devices", default=1)
    if started is not None and isinstance(devices, int) and started != (wanted := devices * cfg.trainer.num_nodes):
        raise ConfigError(
            f"{ranks.launched_by()} started {started} processes, but trainer.devices={devices} and "
            f"trainer.num_nodes={cfg.trainer.num_nodes} make {wanted}; expected as many, e.g. trainer=ddp "
            f"trainer.devices={started}"
        )
