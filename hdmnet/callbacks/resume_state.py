"""The place where a training stands, kept so that any number of processes can go on from it.

Lightning saves its loops' counters and guesses from them, on restart, at which hook they were saved. What is kept here
is one statement that needs no guess: which samples of which epoch have been trained on, and whether a validation is
due. On resume the counters that Lightning would have at that point are made from it, for the batches of now.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from hdmnet.runtime.private_api import STEPS_KEY, begin_epoch

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from hdmnet.data.datamodules.base import FoldDataModule

KEY = "hdmnet_position"  # in a checkpoint
_RANDOM = "hdmnet_random"


@dataclass(frozen=True)
class ResumeState:
    """A point between two steps of a training."""

    epoch: int  # the one that runs, from 0
    samples: int  # of this epoch trained on so far, over all processes
    samples_per_epoch: int  # over all processes
    validating: bool = False  # whether the validation comes next; else a training batch does

    @classmethod
    def of(cls, trainer: Trainer, *, validating: bool) -> ResumeState:
        """Read it off a trainer that is about to begin a batch or a validation, or has just ended a validation."""
        data, loop = _data(trainer), trainer.fit_loop.epoch_loop
        assert data.samples_per_epoch is not None  # the loader is made
        epoch, batches = trainer.current_epoch, loop.batch_progress.current.completed
        if not validating and batches >= trainer.num_training_batches:
            epoch, batches = epoch + 1, 0
        return cls(epoch, batches * data.batch_size * trainer.world_size, data.samples_per_epoch, validating)


def store(trainer: Trainer, checkpoint: dict[str, Any], *, validating: bool) -> None:
    """Add position and random states, of all processes, to a checkpoint; called on all of them."""
    checkpoint[KEY] = asdict(ResumeState.of(trainer, validating=validating))
    states = [_random_state(trainer)]
    if trainer.world_size > 1:
        states *= trainer.world_size
        torch.distributed.all_gather_object(states, states[0])
    checkpoint[_RANDOM] = states


class Resume:
    """The way back to a checkpoint's position; the hooks of the same name are to be called.

    Args:
        trainer: About to fit; its loops have not been restored yet.
        checkpoint: What `store` was called on. Its entry `loops` is changed.
    """

    def __init__(self, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
        data, position = _data(trainer), ResumeState(**checkpoint[KEY])
        states = checkpoint[_RANDOM]
        # More processes than there were: they began alike, from the same seed.
        self._random = states[trainer.global_rank] if trainer.global_rank < len(states) else states[0]
        self._steps: int = checkpoint["global_step"]
        self._total = _batches(trainer, position.samples_per_epoch)
        # Rounded up: where a step is of another size now, samples that would fill half a batch are not seen twice.
        done = min(-(-position.samples // (data.batch_size * trainer.world_size)), self._total)
        epoch, self.validating = position.epoch, position.validating
        if done == self._total and not self.validating:  # the smaller epoch of now is over
            self.validating = _validates(trainer, epoch)
            epoch, done = (epoch, done) if self.validating else (epoch + 1, 0)
        self.epoch, self.done = epoch, done
        data.samples_per_epoch = position.samples_per_epoch
        data.start = (epoch, position.samples if done else 0)
        self._write_counters(trainer, checkpoint["loops"]["fit_loop"])

    def _write_counters(self, trainer: Trainer, loops: dict[str, Any]) -> None:
        epoch, done, steps = self.epoch, self.done, self._steps
        seen = epoch * self._total + done
        running = int(self.validating or done > 0)  # an epoch has begun and is not over
        # As in Lightning's `on_train_batch_end`, of which it knows that the batch itself is finished …
        unfinished = int(running and not self.validating)
        # … and as in the middle of a validation, which it begins anew. It steps on by one in both cases.
        loops["epoch_progress"] = {
            kind: _counts(epoch + running, epoch + running, epoch, epoch) for kind in ("total", "current")
        }
        loops["epoch_loop.batch_progress"] = {
            "total": _counts(seen, seen, seen, seen - unfinished),
            "current": _counts(done, done, done, done - unfinished),
            "is_last_batch": self.validating and done == self._total,
        }
        begun = int(self.validating)
        loops["epoch_loop.val_loop.batch_progress"] = {
            **{kind: _counts(begun, begun, 0, 0) for kind in ("total", "current")},
            "is_last_batch": False,
        }
        aligned = self.validating or done % trainer.accumulate_grad_batches == 0
        loops["epoch_loop.state_dict"] = {STEPS_KEY: steps - int(running and aligned)}

    def on_fit_start(self, trainer: Trainer) -> None:
        """Let a validation after the last step take place: Lightning would not even begin."""
        self._max_steps = trainer.fit_loop.epoch_loop.max_steps
        if self.validating and 0 <= self._max_steps <= self._steps:
            trainer.fit_loop.epoch_loop.max_steps = self._steps + 1

    def on_train_start(self, trainer: Trainer) -> None:
        """Restore this process's random states, after all that the set-up may have drawn."""
        _set_random_state(trainer, self._random)
        if not self.validating and self.done == 0:
            begin_epoch(trainer)

    def on_validation_start(self, trainer: Trainer) -> None:
        """Take back what `on_fit_start` has changed."""
        trainer.fit_loop.epoch_loop.max_steps = self._max_steps


def _data(trainer: Trainer) -> FoldDataModule:
    return cast("FoldDataModule", cast(Any, trainer).datamodule)


def _batches(trainer: Trainer, samples_per_epoch: int) -> int:
    """Training batches an epoch of this process, as Lightning counts them."""
    batches = samples_per_epoch // trainer.world_size // _data(trainer).batch_size
    limit = trainer.limit_train_batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def _validates(trainer: Trainer, epoch: int) -> bool:
    every = trainer.check_val_every_n_epoch
    return trainer.enable_validation and every is not None and (epoch + 1) % every == 0


def _counts(ready: int, started: int, processed: int, completed: int) -> dict[str, int]:
    return {"ready": ready, "completed": completed, "started": started, "processed": processed}


def _random_state(trainer: Trainer) -> dict[str, Any]:
    """The generators that all code shares, as plain containers and tensors."""
    version, words, gauss = random.getstate()
    kind, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    device = trainer.strategy.root_device
    return {
        "python": [version, list(words), gauss],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), place, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def _set_random_state(trainer: Trainer, state: dict[str, Any]) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    device = trainer.strategy.root_device
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
