"""Warnings of libraries that are silenced, each with its reason."""

from __future__ import annotations

import logging
import warnings

_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",  # which devices there are, at each of a run's three or four trainers
    "lightning.pytorch.accelerators.cuda",
    "lightning.fabric.utilities.distributed",  # each process's rank, again for every trainer
)
_PATTERNS = (
    r".*does not have many workers.*",  # num_workers is the user's choice
    r"This DataLoader will create \d+ worker processes in total.*",
    r".*Checkpoint directory .* exists and is not empty.*",  # the run's folder is made before
    r".*Experiment logs directory .* exists and is not empty.*",  # the same folder: Hydra has written .hydra/ there
    r"You're resuming from a checkpoint that ended before the epoch ended.*",  # the sampler knows where: data.start
    r".*number of training batches .* is smaller than the logging interval.*",  # so is trainer.log_every_n_steps
    r".*isinstance\(treespec, LeafSpec\).* is deprecated.*",  # Lightning 2.6 with torch 2.9 and newer
    r"Found \d+ module\(s\) in eval mode at the start of training.*",  # the frozen trunk
    # A process, or a seed of the control, may have no episode; what the others have is pooled.
    r"The ``compute`` method of metric FewShotIoU was called before the ``update`` method.*",
    # Our metrics pool over the processes by themselves: all log the same number.
    r"It is recommended to use `self\.log\('(val|base)/.*sync_dist=True\)`.*",
    r"Grad strides do not match bucket view strides.*",  # DDP, on 1x1 and depthwise kernels: "this is not an error"
)


def silence_known_warnings() -> None:
    """Silence the above in this process."""
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    for pattern in _PATTERNS:
        warnings.filterwarnings("ignore", pattern)
