"""Pictures of validation and test episodes, in the run's folder and on the dashboards."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from hdmnet.data.types import Episode, EvaluationBatch
from hdmnet.runtime.errors import InputError
from hdmnet.runtime.home import expand_home
from hdmnet.visual.episode_grid import Picture, draw_batch_item, save_sheet, stack_rows

log = logging.getLogger(__name__)


class EpisodePictures(Callback):
    """Draw the same fixed episodes at every validation and at the test.

    The episodes are number 0 to `num_episodes` - 1 of the first test seed, whichever process evaluates them. A sheet
    is written as `val_epoch003_step000400.png` or `test.png`; the sanity check before training draws nothing.

    Args:
        num_episodes: How many; 0 switches the pictures off.
        every_n_epochs: Draw at every n-th epoch's validations, and at the last epoch's.
        directory: Where to; `pictures` in the trainer's `default_root_dir` if not given.

    Raises:
        ValueError: If a number is out of range.
    """

    runs_in = ("train", "test")

    def __init__(self, num_episodes: int = 8, every_n_epochs: int = 1, directory: str | Path | None = None) -> None:
        if num_episodes < 0:
            raise InputError(f"num_episodes is {num_episodes}; expected 0 (no pictures) or more")
        if every_n_epochs < 1:
            raise InputError(f"every_n_epochs is {every_n_epochs}; expected 1 or more")
        self.num_episodes = num_episodes
        self.every_n_epochs = every_n_epochs
        self.directory = None if directory is None else expand_home(directory)
        self._rows: dict[int, Picture] = {}
        self._title = ""

    def describe_run(self, description: Mapping[str, Any]) -> None:
        """Keep what runs, for the headings."""
        self._title = f"{description['title']}: "

    def _due(self, trainer: Trainer) -> bool:
        """Whether this validation is drawn; the same on every process."""
        if trainer.sanity_checking or not self.num_episodes:
            return False
        epoch = trainer.current_epoch + 1
        last = epoch == trainer.max_epochs or trainer.global_step == trainer.max_steps or trainer.should_stop
        return epoch % self.every_n_epochs == 0 or last

    def _collect(self, outputs: object, task: Any, loader: Any = None) -> None:
        """Draw the batch's episodes that are among the fixed ones; `loader` is what the batch came from."""
        if not isinstance(outputs, Mapping) or "episode" not in outputs:
            return
        batch: Episode | EvaluationBatch = outputs["episode"]
        indices, seeds = batch.index.reshape(-1).tolist(), batch.seed_index.reshape(-1).tolist()
        items = batch.item if isinstance(batch, EvaluationBatch) else range(len(indices))
        for item, index, seed in zip(items, indices, seeds, strict=True):
            if index < self.num_episodes and seed == 0:
                # With reuse a batch holds no pictures: they are read again. Those of seed 0 are numbered from 0.
                episode = loader.dataset.episodes[index] if isinstance(batch, EvaluationBatch) else None
                about = {"mean": task.image_mean, "std": task.image_std, "reported": task.model.reported}
                self._rows[index] = draw_batch_item(outputs, item, episode=episode, **about)

    def _write(self, trainer: Trainer, name: str, heading: str) -> None:
        """Gather the rows of all processes and write the sheet on the first."""
        rows, self._rows = self._rows, {}
        heading = self._title + heading
        if trainer.world_size > 1:
            gathered: list[dict[int, Picture]] = [{} for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(gathered, rows)
            rows = {index: row for part in gathered for index, row in part.items()}
        if not trainer.is_global_zero or not rows:
            return
        path = Path(self.directory or Path(trainer.default_root_dir) / "pictures") / f"{name}.png"
        drawn = [rows[index] for index in sorted(rows)]
        try:
            save_sheet(drawn, path, heading)
        except OSError as error:  # a full disk costs the picture, not the run
            log.warning("%s cannot be written: %s", path, error)
        key = "episodes/" + ("val" if name.startswith("val_") else name)
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):
                logger.log_image(key, [stack_rows(drawn, heading)], step=trainer.global_step, caption=[heading])

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Draw what the batch holds of the fixed episodes."""
        if self._due(trainer):
            self._collect(outputs, pl_module, trainer.val_dataloaders)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the validation's sheet."""
        if self._due(trainer):
            epoch, step = trainer.current_epoch, trainer.global_step
            self._write(trainer, f"val_epoch{epoch:03d}_step{step:06d}", f"validation, epoch {epoch}, step {step}")

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Draw what the batch holds of the fixed episodes."""
        if self.num_episodes:
            self._collect(outputs, pl_module, trainer.test_dataloaders)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the test's sheet."""
        if self.num_episodes:
            self._write(trainer, "test", "test")
