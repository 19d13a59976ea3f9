"""The callbacks of a config, by where each says that it runs.

A callback has an attribute `runs_in` with some of "train" (stage 2 and its test), "base_learner" (stage 1), "test" (an
evaluation) and "control" (the test's sanity baselines); without one it is for "train". One with a method `describe_run`
is told what runs, see `hdmnet.loggers.build`; one with `result_facts` adds entries to `result.json`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch.callbacks import Callback, ProgressBar

from hdmnet.config.instantiate import instantiate_all
from hdmnet.loggers.build import describe_run

if TYPE_CHECKING:
    from omegaconf import DictConfig

EVERYWHERE = ("train", "base_learner", "test", "control")


def build_callbacks(cfg: DictConfig, where: str) -> list[Callback]:
    """Build the callbacks of a config that run in a place; null entries are left out.

    Args:
        cfg: An entry point's config, its paths absolute.
        where: "train", "base_learner", "test" or "control".
    """
    found = [one for one in instantiate_all(cfg.callbacks) if where in _runs_in(one)]
    for callback in found:
        if hasattr(callback, "describe_run"):
            callback.describe_run(describe_run(cfg, where))
    return found


def _runs_in(callback: Callback) -> tuple[str, ...]:
    others = EVERYWHERE if isinstance(callback, ProgressBar) else ("train",)  # Lightning's own, and its users'
    return tuple(getattr(callback, "runs_in", others))
