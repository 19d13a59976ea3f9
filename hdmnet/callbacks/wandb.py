"""Weights & Biases as a logger that never asks, never hangs a run and holds one W&B run a job."""

from __future__ import annotations

import logging
import netrc
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from lightning.pytorch.loggers import WandbLogger

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)


def has_key() -> bool:
    """Whether a W&B key is at hand: in `WANDB_API_KEY`, or in the netrc file for the server's host."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def build_wandb_logger(*, offline: bool | None = None, **arguments: Any) -> WandbLogger:
    """A W&B logger, offline where there is no key.

    An offline run is written to the run's folder and sent later by `wandb sync`.

    Args:
        offline: Force it on or off; None = by `has_key`. `WANDB_MODE` in the environment wins.
        arguments: Of Lightning's `WandbLogger` (project, name, group, tags, save_dir, log_model …).

    Returns:
        The logger; the W&B run starts with the first logged value.
    """
    mode = os.environ.get("WANDB_MODE")
    if mode is not None:
        offline = mode == "offline"
    elif offline is None:
        offline = not has_key()
        if offline:
            log.info("wandb: no key found, logging offline; send it later by `wandb sync`")
    if offline:
        arguments["log_model"] = False  # W&B refuses the two together
    return WandbLogger(offline=offline, **arguments)


@contextmanager
def one_wandb_run() -> Iterator[None]:
    """End the W&B run that the job inside has started, as failed when it raises: the next job begins its own."""
    try:
        yield
    except BaseException:
        _finish(exit_code=1)
        raise
    _finish(exit_code=0)


def _finish(exit_code: int) -> None:
    wandb = sys.modules.get("wandb")  # importing it takes a second, and without it there is no run
    if wandb is not None and wandb.run is not None:
        wandb.finish(exit_code=exit_code)
