"""What a run prints: at the beginning what it will do, at the end what to look at."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from hdmnet.run.stage1 import stage1_limits

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from hdmnet.data.datamodules.few_shot import FewShotDataModule


def describe_plan(cfg: DictConfig, data: FewShotDataModule, *, stage1: bool, learns: bool) -> str:
    """The stages of a run, one a line.

    Args:
        cfg: The config.
        data: The episodes, set up for the test or the training.
        stage1: Whether the run needs a base learner that no checkpoint brings.
        learns: Whether the method has anything to learn.
    """
    split, method, test = data.class_split, cfg.model.name, cfg.dataset
    steps = []
    if stage1:
        length = _length(**stage1_limits(cfg))
        kept = "" if cfg.base_ckpt is None else f" is read from {cfg.base_ckpt}"
        steps.append(
            f"stage 1: the base learner, a segmentation network of the {data.num_base} base classes,"
            + (kept or f" {length}, or that of an earlier run, if there is one")
        )
    if learns:
        length = _length(cfg.trainer.max_steps, cfg.trainer.max_epochs)
        steps.append(f"stage 2: {method} learns to find a class by its support, on episodes of base classes, {length}")
    episodes = f"{test.num_test_episodes or 'all'} episodes x {test.num_test_seeds} seeds"
    steps.append(f"test: {len(split.test)} classes of fold {cfg.fold}, {cfg.shot}-shot, {episodes}; then the table")
    return "\n".join([f"{method} on {test.name}:", *(f"  {number}. {one}" for number, one in enumerate(steps, 1))])


def _length(max_steps: int, max_epochs: int) -> str:
    return f"{max_steps:,} steps" if max_steps != -1 else f"{max_epochs:,} epochs"


def describe_end(cfg: DictConfig, checkpoint: Path | None) -> str:
    """What to look at, the next command to try, and last where everything is: scripts read that line."""
    folder, command = Path(cfg.paths.run_dir), "hdmnet" if shutil.which("hdmnet") else f"{sys.executable} -m hdmnet"
    lines = []
    if (sheet := folder / "pictures" / "test.png").is_file():
        lines.append(f"look first at {sheet}")
    next_one = f"{command} report {quote(str(folder))} --out report   (one page of it)"
    if checkpoint is not None and checkpoint.is_file() and cfg.dataset.name != "shapes":  # which no photograph is like
        ckpt = quote(f"ckpt={checkpoint}")
        next_one = f"{command} predict {ckpt} support=[IMG:MASK] query=[IMG,…]   (your own pictures)"
    return "\n".join([*lines, f"next: {next_one}", f"result, checkpoints and pictures: {folder}"])
