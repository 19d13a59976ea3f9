"""IoU per class, after each validation and the test, for the loggers that can show it."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from hdmnet.tasks.summary import summarise_seeds


class ClassScores(Callback):
    """Hand the scores of each novel class to every logger that has `log_class_scores` (see `loggers/wandb.py`)."""

    runs_in = ("train", "test")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand over the validation's scores; the sanity check before training is none."""
        if not trainer.sanity_checking:
            _hand_over(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand over the test's scores, each the mean over the test seeds."""
        _hand_over(trainer, pl_module, "test")


def _hand_over(trainer: Trainer, task: Any, split: str) -> None:
    loggers = [logger for logger in trainer.loggers if hasattr(logger, "log_class_scores")]
    results = getattr(task, f"{split}_results", None)
    if loggers and results:
        names = task.val_class_names if split == "val" else task.class_names
        scores = {name: summarise_seeds(seeds, names) for name, seeds in results.items()}
        for logger in loggers:
            logger.log_class_scores(split, scores, trainer.global_step)
