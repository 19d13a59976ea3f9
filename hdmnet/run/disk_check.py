"""Checks before the first step whether a run's checkpoints will fit on the disk."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hdmnet.run.build import build_encoder, build_model, needs_base_learner
from hdmnet.runtime.errors import FileError

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import nn

log = logging.getLogger(__name__)

_ADAM_MOMENTS, _SGD_MOMENTS = 2, 1
_OTHER_BYTES = 100_000_000  # pictures, logs, the catalog cache
_MARGIN = 1.1
_KEPT = 4  # best, last, the last before it, and one that is being written


def check_free_disk(cfg: DictConfig, num_base: int) -> int:
    """Estimate what a run writes and compare it with the free disk; logs one line.

    Returns:
        The estimate in bytes: the checkpoints, one that is being written among them, the base learner's where it is
        not given, and a margin.

    Raises:
        OSError: There is less.
    """
    with torch.device("meta"):  # shapes only: neither memory nor time
        encoder = build_encoder(cfg, num_base, weights=None)
        model = build_model(cfg, encoder)
    checkpoint = _num_bytes(model, _ADAM_MOMENTS)
    base = 0
    if needs_base_learner(cfg) and cfg.ckpt is None and cfg.base_ckpt is None:
        moments = _SGD_MOMENTS if cfg.optim.base.optimizer == "sgd" else _ADAM_MOMENTS
        base = 2 * _num_bytes(encoder, 0) + _num_bytes(encoder, moments)
    needed = int(_MARGIN * (_KEPT * checkpoint + base)) + _OTHER_BYTES
    folder = _existing(Path(cfg.paths.run_dir))
    free = shutil.disk_usage(folder).free
    text = (
        f"{needed / 1e9:.2f} GB for {_KEPT} checkpoints of {checkpoint / 1e9:.3f} GB and the rest, {free / 1e9:.2f} GB"
    )
    if free < needed:
        raise FileError(
            f"the disk of {folder} is too small for this run: it needs about {text} are free; free some, or set "
            "paths.output_dir (HDMNET_OUTPUT) to a folder of another disk"
        )
    log.info("disk: about %s free", text)
    return needed


def _num_bytes(model: nn.Module, moments: int) -> int:
    """Bytes of a model's checkpoint with an optimiser that keeps so many values of each trained one."""
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return int(weights + moments * trained)


def _existing(folder: Path) -> Path:
    """The folder, or the first above it that is there."""
    return next((one for one in (folder, *folder.parents) if one.exists()), Path.cwd())
