"""What every entry_point shares: composing the config, one-line errors, threads, and the other processes of a DDP job.

Imports nothing heavy: `python -m hdmnet.train --help` and the refusal of a typo come before PyTorch is loaded.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, cast

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hdmnet.cli.errors import composition_message, raised_by_hydra
from hdmnet.config.checks import validate
from hdmnet.config.paths import conf_dir, make_paths_absolute
from hdmnet.config.schemas import register_schemas
from hdmnet.runtime import ranks, resume, signals
from hdmnet.runtime.errors import one_line, user_message, wants_traceback
from hdmnet.runtime.provenance import available_cpus
from hdmnet.sweeps import launcher
from hdmnet.sweeps.launcher import JOB_FILE, JOB_VARIABLE

Job = Callable[[DictConfig], None]

HYDRA_VERSION_BASE = "1.3"
CONFIG_ERROR = 2  # exit code where the command line is wrong; 1 where the job found something wrong
_BETWEEN = re.compile(r"[^,{}\[\]]+")  # an item of a list
_JOB_FILE = "job file"  # what the first rank tells the others


def entry_point(config_name: str) -> Callable[[Job], Callable[..., None]]:
    """Make a command out of a function that takes a composed config.

    The command composes `conf/<config_name>.yaml` with the command line, checks it, fixes its folders, caps the threads
    and runs the job. What a user did wrong becomes one line `error: ...` on stderr and exit code 2 (command line) or 1
    (files, data); a bug keeps its traceback. `HDMNET_TRACEBACK=1` keeps every traceback.

    Args:
        config_name: Name of the entry_point's file in conf/, without `.yaml`.

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
            with signals.handling_signals():
                code = _run_command(config_name, job)
            if code:
                sys.exit(code)

        return main

    return decorate


def _run_command(config_name: str, job: Job) -> int:
    """Run a entry_point's command line; returns the exit code."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors on instead of printing and exiting
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for its newest version
    # `+sweep=table9` is how Hydra's users write what is `sweep=table9` here.
    words = [word.removeprefix("+") if word.startswith("+sweep=") else word for word in sys.argv[1:]]
    sys.argv[1:] = map(quote_paths, words)
    register_schemas()
    ranks.end_with_parent()
    launcher.current.jobs.clear()
    try:
        if JOB_VARIABLE in os.environ:
            return _run_handed_over(job, Path(os.environ[JOB_VARIABLE]))
        if ranks.started_together() and ranks.rank() > 0:
            job_file = ranks.receive_from_first(_JOB_FILE)
            return _run_handed_over(job, Path(job_file)) if job_file else 0
        return _compose_and_run(config_name, job)
    except KeyboardInterrupt:
        launcher.current.report()
        print("error: interrupted", file=sys.stderr)
        return signals.INTERRUPTED
    except signals.Stopped as stop:
        launcher.current.report()
        return _say_how_to_go_on(stop, config_name)
    except (HydraException, OmegaConfBaseException) as error:
        if wants_traceback():
            raise
        print(f"error: {composition_message(error, config_name)}", file=sys.stderr)
        return CONFIG_ERROR
    except (TypeError, AttributeError, KeyError) as error:
        if wants_traceback() or not raised_by_hydra(error):
            raise
        print(f"error: the command line cannot be understood ({one_line(error)}): check its words", file=sys.stderr)
        return CONFIG_ERROR
    except OSError as error:  # e.g. where the folder of runs cannot be written to
        message = user_message(error)
        if wants_traceback() or message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 1
    except ValueError as error:
        message = user_message(error)
        if str(error).startswith("Config group override"):
            # Hydra's only refusal of a command line that is not one of its own exceptions: `ablation=null`.
            message = "a config group cannot be null; expected one of its options, e.g. ablation=none"
        if wants_traceback() or message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return CONFIG_ERROR


def quote_paths(word: str) -> str:
    """Quote what Hydra's grammar has no letters for: `query=[größe (1).jpg]` becomes `query=['größe (1).jpg']`.

    Args:
        word: Of the command line, e.g. key=value.

    Returns:
        The word; as it is where it is plain, quoted already, or refers to other keys.
    """
    key, equals, value = word.partition("=")
    call = re.fullmatch(r"\w+\(.*\)", value)  # choice(a,b), glob(*)
    if not equals or call or re.search(r"['\"]|\$\{", value):
        return word

    def quote(match: re.Match[str]) -> str:
        text = match[0].strip()
        path = re.search(r"[()]", text) and re.search(r"[\s/.]", text)
        return f"'{text}'" if path or not text.isascii() else match[0]

    return f"{key}={_BETWEEN.sub(quote, value)}"


def _compose_and_run(config_name: str, job: Job) -> int:
    """Run the job, or the multirun, that the command line describes; returns the exit code."""
    _check_flags()
    codes = []

    @functools.wraps(job)  # Hydra names the job, and a sweep its command, by the function's module
    def task(cfg: DictConfig) -> None:
        folder = Path(HydraConfig.get().runtime.output_dir)
        try:
            folder = resume.find_folder(cfg, folder) if "resume" in cfg else folder
        except (ValueError, FileNotFoundError) as error:
            codes.append(_refuse(error))
            return
        make_paths_absolute(cfg, folder)
        codes.append(_run_job(job, cfg))

    try:
        hydra.main(str(conf_dir()), config_name, HYDRA_VERSION_BASE)(task)()
    finally:
        if not codes and ranks.started_together():
            ranks.send_to_ranks(_JOB_FILE, "")  # a multirun, which starts its ranks itself, or --help, or a refusal
    return codes[0] if codes else launcher.current.report()


def _check_flags() -> None:
    """Refuse flags that are none, e.g. `--fold 1`, in one line; left alone, argparse prints its usage.

    Raises:
        ValueError: There is one.
    """

    def refuse(message: str) -> NoReturn:
        raise ValueError(f"{message}; expected group=option and key=value, e.g. fold=1 (--help lists the flags)")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    parser.parse_args(sys.argv[1:])


def _run_handed_over(job: Job, job_file: Path) -> int:
    """Run a job that another process has composed; returns the exit code."""
    cfg = cast(DictConfig, OmegaConf.load(job_file))
    OmegaConf.set_struct(cfg, True)
    if "resume" in cfg and resume.can_go_on(cfg, Path(cfg.paths.run_dir)):  # SLURM has started it again
        cfg.resume = cfg.paths.run_dir
    if ranks.rank() == 0:  # a job of a multirun: log as Hydra would
        logging_config = OmegaConf.load(job_file.with_name("hydra.yaml")).hydra
        configure_log(logging_config.job_logging, logging_config.verbose)
    return _run_job(job, cfg)


def job_overrides(cfg: DictConfig) -> list[str]:
    """The command line of the job that this process takes part in, e.g. `["fold=1", "dataset=coco"]`.

    Args:
        cfg: What the job runs on.
    """
    if HydraConfig.initialized():
        return list(HydraConfig.get().overrides.task)
    return list(OmegaConf.load(Path(cfg.paths.run_dir) / ".hydra" / "overrides.yaml"))


def _run_job(job: Job, cfg: DictConfig) -> int:
    """Check the config and run the job; returns the exit code.

    Raises:
        Exception: What is not the user's doing.
    """
    try:
        validate(cfg)
        _check_processes(cfg)
    except (ValueError, OmegaConfBaseException) as error:
        return _refuse(error)
    with _job_environment(cfg):
        try:
            # Once for all of the job's processes.
            with resume.claimed(cfg) if ranks.rank() == 0 else contextlib.nullcontext():
                job(cfg)
        except Exception as error:
            message = None if wants_traceback() else user_message(error)
            if message is None:
                raise
            print(f"error: {message}", file=sys.stderr)
            return 1
    return 0


def _refuse(error: Exception) -> int:
    """Say what is wrong with the command; returns the exit code."""
    if wants_traceback():
        raise error
    print(f"error: {one_line(error)}", file=sys.stderr)
    return CONFIG_ERROR


def _say_how_to_go_on(stop: signals.Stopped, config_name: str) -> int:
    """Say what a signal has left; returns the exit code."""
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


# -------------------------------------------------------------------------------------------- processes and threads


@contextlib.contextmanager
def _job_environment(cfg: DictConfig) -> Iterator[None]:
    """Set what a job's processes read from the environment, and leave nothing of it behind.

    The other ranks are started with the same command line. Composing it again, each would have a folder of its own, and
    in a multirun run all of it (Lightning 2.6.6 with Hydra 1.3.8): the first rank leaves them its config.
    """
    before = dict(os.environ)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cpus() // _num_processes(cfg))))
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
    """Refuse ranks that the trainer does not want: each of them would run the whole job.

    Raises:
        ValueError: torchrun or srun started another number of ranks than the trainer is set for.
    """
    started, devices = ranks.world_size(), OmegaConf.select(cfg, "trainer.devices", default=1)
    if started is None or not isinstance(devices, int):
        return
    wanted = devices * int(cfg.trainer.num_nodes)
    if started != wanted:
        raise ValueError(
            f"{ranks.launched_by()} started {started} processes, but trainer.devices={devices} and "
            f"trainer.num_nodes={cfg.trainer.num_nodes} make {wanted}; expected as many, e.g. trainer=ddp "
            f"trainer.devices={started}"
        )


def _num_processes(cfg: DictConfig) -> int:
    """Processes that the trainer starts on this machine; 1 where only Lightning can tell."""
    devices = OmegaConf.select(cfg, "trainer.devices", default=1)
    return max(1, devices) if isinstance(devices, int) else 1
