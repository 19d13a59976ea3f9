"""The processes of a job: which one this is, what the first tells the others, and the end of those left alone.

The processes of a DDP job (ranks) come from one of three hands: Lightning starts the others itself, with `LOCAL_RANK`
set; `torchrun` and SLURM's `srun` start all of them with the same command line. Only the first rank composes a config.

Imports nothing heavy.
"""

from __future__ import annotations

import datetime
import functools
import importlib
import os
import signal
import threading
import time
from typing import Any

# What the launchers leave in the environment of a rank. A process that starts ranks of its own must not hand it on.
VARIABLES = (
    *("LOCAL_RANK", "RANK", "GROUP_RANK", "ROLE_RANK", "NODE_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE"),
    *("GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"),
    *("TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS", "TORCHELASTIC_USE_AGENT_STORE", "PL_GLOBAL_SEED"),
    *("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_PROCID", "SLURM_LOCALID"),
)
PARENT_VARIABLE = "HDMNET_PARENT"  # process id of the one of ours that starts others

_PATIENCE = datetime.timedelta(days=10)  # the first rank may wait for another job's base learner
_FIRST_PORT = 35000  # plus four digits of the SLURM job's id; Lightning's own is 15000 plus the same


def launched_by() -> str | None:
    """Who started all of the ranks: `"torchrun"`, `"srun"`, or None where Lightning starts the others itself."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun"
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")  # as Lightning tells
    if "SLURM_NTASKS" in os.environ and "SLURM_PROCID" in os.environ and not interactive:
        return "srun"
    return None


def rank() -> int:
    """Number of this process among all of the job's; 0 for the first."""
    names = {"torchrun": "RANK", "srun": "SLURM_PROCID", None: "LOCAL_RANK"}
    return int(os.environ.get(names[launched_by()], "0"))


def world_size() -> int | None:
    """How many ranks were started from outside; None where Lightning starts them."""
    names = {"torchrun": "WORLD_SIZE", "srun": "SLURM_NTASKS"}
    launcher = launched_by()
    return None if launcher is None else int(os.environ[names[launcher]])


def started_together() -> bool:
    """Whether several ranks were started at once with the same command line."""
    return (world_size() or 1) > 1


def send_to_ranks(what: str, text: str) -> None:
    """Tell the ranks that were started together with this one what they ask for by `receive_from_first`."""
    if started_together():
        _store().set(_key(what), text)


def receive_from_first(what: str) -> str:
    """What the first rank tells about something, waiting for it; once in a process."""
    return bytes(_store().get(_key(what))).decode()


def _key(what: str) -> str:
    return f"hdmnet/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{what}"


@functools.cache
def _store() -> Any:
    """The key-value store that the ranks share: torchrun's own, or one that the first of SLURM's tasks serves."""
    distributed: Any = importlib.import_module("torch.distributed")  # only here: seconds to import

    if launched_by() == "torchrun":
        host, port, serve = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), False
    else:
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

        host = SLURMEnvironment.resolve_root_node_address(os.environ.get("SLURM_NODELIST", "127.0.0.1"))
        port, serve = _FIRST_PORT + int(os.environ.get("SLURM_JOB_ID", "0")[-4:]), rank() == 0
    return distributed.TCPStore(host, port, is_master=serve, timeout=_PATIENCE, wait_for_workers=False)


# ----------------------------------------------------------------------------------------------- the end of a parent


def end_with_parent() -> None:
    """End this process, and the group that it leads, when the one of ours that has started it is gone.

    A rank whose first rank was killed would wait for it in the next collective operation, and a job whose sweep was
    killed would go on unseen.
    """
    parent = os.getppid()
    if os.environ.get(PARENT_VARIABLE) == str(parent):
        threading.Thread(target=_watch, args=(parent,), daemon=True, name="end-with-parent").start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
