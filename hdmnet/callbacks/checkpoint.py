"""Checkpoints from which a run goes on exactly where it was, whenever and however it was ended."""

from __future__ import annotations

import logging
import operator
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from hdmnet.callbacks import resume_state
from hdmnet.loggers.csv import CsvLogger
from hdmnet.runtime import ranks, signals
from hdmnet.runtime.atomic import remove_leftovers
from hdmnet.runtime.checkpoint_file import BEST, LAST, PREVIOUS, read_checkpoint, write_durably
from hdmnet.runtime.errors import InputError
from hdmnet.runtime.home import expand_home

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

log = logging.getLogger(__name__)

_ROWS = "hdmnet_log_rows"  # in a checkpoint
_NOT_WRITTEN = (
    "CHECKPOINT NOT WRITTEN at step %d: %s. The run goes on; if it were ended now it would have to repeat what it has "
    "done since the one before. Make room, or mend the folder."
)
_NOTHING, _SAVE, _STOP = range(3)


class RunCheckpoint(Checkpoint):
    """Keeps `best.ckpt`, `last.ckpt` and the one before it, `last-previous.ckpt`.

    `last.ckpt` is written every so many minutes, before and after each validation, at the end of each epoch and when a
    signal asks the run to end (see `hdmnet.runtime.signals`); `best.ckpt` after a validation that was better than all
    before. A file appears whole or not at all. A failure to write one costs that file, never the run: it is logged and
    counted.

    Args:
        dirpath: Folder of the files.
        monitor: Name of the logged score that decides which is best.
        mode: Whether a larger score is better, "max", or a smaller one, "min".
        every_n_minutes: Least time between two of the checkpoints that are written by the clock.

    Raises:
        ValueError: `mode` or `every_n_minutes` is wrong.
    """

    # What Lightning's loggers ask a checkpoint callback for.
    save_top_k = 1
    save_last = True
    save_weights_only = False

    def __init__(self, *, dirpath: str | Path, monitor: str, mode: str = "max", every_n_minutes: float = 10.0) -> None:
        if mode not in ("max", "min"):
            raise InputError(f"callbacks.checkpoint.mode={mode!r}; expected max or min")
        if every_n_minutes < 0:
            raise InputError(f"callbacks.checkpoint.every_n_minutes={every_n_minutes}; expected a number of at least 0")
        self.dirpath, self.monitor, self.mode = expand_home(dirpath), monitor, mode
        self.every_n_minutes = every_n_minutes
        self.best_model_path = self.last_model_path = ""  # while there is none
        self.best_model_score: float | None = None
        self.current_score: float | None = None  # of the latest validation
        self.failures = 0  # to write a checkpoint, also before a resume
        self.seconds_before = 0.0  # spent in this training before a resume
        self._files = _Files()
        self._validating = False  # what is to be written in a checkpoint's position
        self._return: resume_state.Resume | None = None
        self._saved_at = self._begin = time.monotonic()

    def result_facts(self) -> dict[str, Any]:
        """What the run's result says: the best mIoU on the validation episodes, by which settings are searched."""
        return {"val_miou": self.best_model_score, "checkpoint_failures": self.failures}

    def state_dict(self) -> dict[str, Any]:
        """Plain values; no path, so that a run's folder may be moved."""
        return {
            "best_model_score": self.best_model_score,
            "current_score": self.current_score,
            "failures": self.failures,
            "seconds": self.seconds_before + time.monotonic() - self._begin,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state; the best is what lies on the disk.

        `best.ckpt` may be of a later step than the checkpoint that is resumed from, which then comes to the same step.
        """
        self.failures, self.seconds_before = state_dict["failures"], state_dict["seconds"]
        self.current_score = state_dict["current_score"]
        best = self.dirpath / BEST
        if state_dict["best_model_score"] is None and not best.is_file():
            return
        try:
            self.best_model_score = read_checkpoint(best)["callbacks"][self.state_key]["best_model_score"]
            self.best_model_path = str(best)
        except (OSError, ValueError, KeyError) as error:
            log.warning("%s: %s; the best is chosen among what comes now", best, error)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the resume_state, the random states and the length of the log."""
        resume_state.store(trainer, checkpoint, validating=self._validating)
        # A row of the step to come, its learning rate, may be there already; it will be written again.
        checkpoint[_ROWS] = sum(one.rows_before(trainer.global_step) for one in _metrics_files(trainer))

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Prepare the way back to the checkpoint's position."""
        self._return = resume_state.Resume(trainer, checkpoint)
        for file in _metrics_files(trainer):
            file.keep(checkpoint[_ROWS])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the writing of files over from Lightning."""
        trainer.strategy.checkpoint_io = self._files
        if stage == "fit" and trainer.is_global_zero:
            remove_leftovers(self.dirpath)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the resume."""
        if self._return is not None:
            self._return.on_fit_start(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the resume, start the clock."""
        if self._return is not None:
            self._return.on_train_start(trainer)
        self._saved_at = self._begin = time.monotonic()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Between two steps: write a checkpoint where the clock says so, and end the run where a signal does."""
        if _is_trial(trainer) or batch_idx % trainer.accumulate_grad_batches:  # gradients are not kept
            return
        is_due = trainer.is_global_zero and time.monotonic() - self._saved_at >= 60 * self.every_n_minutes
        wish = _largest(trainer, _STOP if signals.stop_requested() else _SAVE if is_due else _NOTHING)
        if wish == _NOTHING or (wish == _SAVE and not trainer.global_step):
            return
        saved = trainer.global_step > 0 and self._save_last(trainer)
        if wish == _STOP:
            raise _stop(trainer, saved=saved)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a checkpoint, so that no step has to be repeated for the validation's sake."""
        if self._return is not None:
            self._return.on_validation_start(trainer)
            self._return = None
        if self._writes(trainer):
            self._save_last(trainer, validating=True)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """End the run where a signal asks this process for it: what is needed is on the disk."""
        # The processes may have different numbers of batches: they cannot ask one another. Those that Lightning has
        # started end with the first one.
        decides = trainer.is_global_zero or ranks.started_together()
        if signals.stop_requested() and decides and self._writes(trainer):
            raise _stop(trainer, saved=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights if they are the best so far."""
        score = trainer.callback_metrics.get(self.monitor)
        if score is None or not self._writes(trainer):
            return
        self.current_score = float(score)
        is_better = operator.gt if self.mode == "max" else operator.lt
        if self.best_model_score is None or is_better(self.current_score, self.best_model_score):
            before = self.best_model_score, self.best_model_path
            self.best_model_score, self.best_model_path = self.current_score, str(self.dirpath / BEST)
            if not self._save(trainer, self.dirpath / BEST):
                self.best_model_score, self.best_model_path = before  # what the disk holds

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a checkpoint."""
        if self._writes(trainer):
            self._save_last(trainer)

    def _writes(self, trainer: Trainer) -> bool:
        """Whether a hook is one of a training that keeps checkpoints; validations also run before and without one."""
        return trainer.state.fn == "fit" and not trainer.sanity_checking and not _is_trial(trainer)

    def _save_last(self, trainer: Trainer, *, validating: bool = False) -> bool:
        self._validating = validating
        try:
            saved = self._save(trainer, self.dirpath / LAST, before=self.dirpath / PREVIOUS)
        finally:
            self._validating = False
        if saved:
            self.last_model_path = str(self.dirpath / LAST)
        self._saved_at = time.monotonic()  # a failure is not repeated at every step
        return saved

    def _save(self, trainer: Trainer, path: Path, before: Path | None = None) -> bool:
        """Write a file; False, on all processes, where that failed."""
        for logger in trainer.loggers:
            logger.save()  # what was logged before the checkpoint is not logged again after a resume
        with self._files.catching(before):
            trainer.save_checkpoint(path, weights_only=False)
        error = trainer.strategy.broadcast(self._files.error)
        if error is not None:
            self.failures += 1
            log.warning(_NOT_WRITTEN, trainer.global_step, error)
            return False
        for logger in trainer.loggers if trainer.is_global_zero else ():
            logger.after_save_checkpoint(self)  # type: ignore[arg-type]
        return True


class _Files(TorchCheckpointIO):
    """Writes and reads files for Lightning: whole or not at all, and tensors and plain containers only."""

    def __init__(self) -> None:
        self.error: str | None = None  # why the file could not be written that was to be written in `catching`
        self._before: Path | None = None
        self._catches = False

    @contextmanager
    def catching(self, before: Path | None) -> Iterator[None]:
        """Leave a failure in `error`: raised on the first process, it would leave the others waiting.

        Args:
            before: Gets the file that is about to be replaced; None: it is lost.
        """
        self.error, self._before, self._catches = None, before, True
        try:
            yield
        finally:
            self._before, self._catches = None, False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a file, on the first process."""
        try:
            write_durably(checkpoint, path, before=self._before)
        except OSError as error:
            if not self._catches:
                raise
            self.error = f"{path}: {error.strerror or error}"

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a file, whatever `weights_only` says without running what is in it."""
        return read_checkpoint(path)


def _stop(trainer: Trainer, *, saved: bool) -> signals.Stopped:
    # Another process may have got the signal.
    return signals.Stopped(signals.stop_requested() or signal.SIGTERM, f"step {trainer.global_step}" if saved else None)


def _is_trial(trainer: Trainer) -> bool:
    return bool(cast(Any, trainer).fast_dev_run)


def _metrics_files(trainer: Trainer) -> list[CsvLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, CsvLogger)]


def _largest(trainer: Trainer, value: int) -> int:
    """The largest value of all processes."""
    if trainer.world_size == 1:
        return value
    tensor = torch.tensor(value, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
    return int(tensor)
