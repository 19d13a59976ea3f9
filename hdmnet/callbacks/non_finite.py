"""Stops a training whose loss or gradient is no longer finite, and leaves what reproduces it; or skips that step.

A NaN reaches every weight in one step, and all that follows is lost: days of it where nobody looks. So each step is
checked after the backward pass and before the optimiser. All processes decide alike, as they share the verdict in one
reduction of two numbers; the check costs a pass over the gradients.

The host would have to wait for the device to know the verdict. Where a fused optimiser can leave the step out by itself
(`FewShotTask` makes it so on a GPU), the host reads the verdict one step later, when it has long come; what is said,
counted and dumped is the same. Elsewhere it waits: on a CPU, with another optimiser, with float16's loss scaling, which
waits itself, and where running statistics move, which have to be put back.

`nonfinite_STAGE_STEP_rankR.pt` holds the batch, the weights before the step, the state of the random generators and the
config, as tensors and plain containers: `scripts/inspect/replay.py` runs it again. `nonfinite.jsonl` lists the
episodes.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from hdmnet.data.types import Episode, SegmentationSample
from hdmnet.runtime.checkpoint_file import write_atomically
from hdmnet.runtime.errors import InputError, one_line
from hdmnet.runtime.home import expand_home
from hdmnet.runtime.private_api import leave_step_out, steps_by_flag
from hdmnet.runtime.provenance import git_state, library_versions
from hdmnet.tasks.base_learner import BaseLearnerTask

DUMP_KEY = "hdmnet_nonfinite"
RECORD = "nonfinite.jsonl"
MAX_SKIPPED_IN_A_ROW = 20  # weights that no step changes any more are not worth another day
_MAX_NAMED = 8  # episodes in the one line of the error; the record has all
_ADVICE = "lower optim.lr or set trainer.gradient_clip_val, or optim.on_nonfinite=skip to leave such steps out"

log = logging.getLogger(__name__)


@dataclasses.dataclass
class _Part:
    """One batch of the gradient that is being accumulated, with the generators' state before it."""

    batch: Episode | SegmentationSample
    batch_idx: int
    generators: dict[str, Tensor]
    loss: Tensor | None = None


class _Verdict:
    """Whether a step's loss and gradient are finite, (2,) integer, on its way to the CPU; with the step's batches."""

    def __init__(self, finite: Tensor, parts: list[_Part], where: dict[str, Any]) -> None:
        self.parts, self.where = parts, where
        self._finite = finite.to("cpu", non_blocking=True)
        self._arrival = torch.cuda.current_stream(finite.device).record_event() if finite.is_cuda else None

    def read(self) -> list[int]:
        """Of the loss and of the gradient; waits until they are known."""
        if self._arrival is not None:
            self._arrival.synchronize()
        known: list[int] = self._finite.tolist()
        return known


class NonFiniteGuard(Callback):
    """Check loss and gradient before each step of either stage.

    Args:
        policy: "stop": raise; "skip": leave the step out, and stop after `MAX_SKIPPED_IN_A_ROW` of them.
        directory: The run's folder, which gets the dumps and the record.

    Raises:
        ValueError: For another policy.
    """

    runs_in = ("train", "base_learner")

    def __init__(self, *, policy: str, directory: str | Path) -> None:
        if policy not in ("stop", "skip"):
            raise InputError(f"optim.on_nonfinite={policy!r}: expected stop or skip")
        self.policy, self.directory = policy, expand_home(directory)
        self.config: dict[str, Any] = {}
        self.skipped_in_a_row = self.num_skipped = 0
        self._parts: list[_Part] = []
        self._statistics: list[tuple[Tensor, Tensor]] = []
        self._verdict: _Verdict | None = None  # of the last step, if it has not been read

    def describe_run(self, description: Mapping[str, Any]) -> None:
        """Keep the run's config, for the dumps."""
        self.config = description["config"]

    def result_facts(self) -> dict[str, Any]:
        """What the run's result says of skipped steps, by stage."""
        return {"skipped_steps": count_skipped(self.directory)}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what an earlier run in this folder recorded; if this one goes on from it, of the steps to come."""
        self._parts.clear()
        self._verdict = None
        if trainer.is_global_zero:
            _forget(self.directory, _stage(pl_module), trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note what the forward pass begins from: generators, and the running statistics that it will move."""
        if not self._parts:
            moving = [m for m in pl_module.modules() if m.training and getattr(m, "running_mean", None) is not None]
            self._statistics = [(buffer, buffer.clone()) for module in moving for buffer in module.buffers()]
        self._parts.append(_Part(batch, batch_idx, _generators(pl_module.device)))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Keep the loss, a scalar (), without waiting for its value."""
        self._parts[-1].loss = loss.detach()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Let the step through if all is finite.

        Raises:
            ValueError: It is not, and the policy is to stop, or nothing but skipped steps comes. A gradient that
                overflows in float16 is skipped by the loss scaling, whatever the policy.
        """
        parts, self._parts = self._parts, []
        losses = torch.stack([cast(Tensor, part.loss).float() for part in parts])
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        largest = torch.nn.utils.get_total_norm(gradients, math.inf)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        finite = torch.stack([losses.isfinite().all(), largest.to(losses.device).isfinite()]).int()
        if trainer.world_size > 1:
            torch.distributed.all_reduce(finite, torch.distributed.ReduceOp.MIN)
        where = {"stage": _stage(pl_module), "step": trainer.global_step, "epoch": trainer.current_epoch}
        verdict = _Verdict(finite, parts, where)
        if scaler is None and not self._statistics and steps_by_flag(optimizer):
            leave_step_out(optimizer, finite.min() == 0)
            self._settle(trainer, pl_module)
            self._verdict = verdict
        elif not self._decide(trainer, pl_module, verdict):
            # Without gradients the optimiser changes nothing, decay and moments too.
            optimizer.zero_grad(set_to_none=True)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the last step's verdict before its weights are used."""
        self._settle(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the last step's verdict."""
        self._settle(trainer, pl_module)

    def _settle(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the verdict on the step before, if it has not been read."""
        verdict, self._verdict = self._verdict, None
        if verdict is not None:
            self._decide(trainer, pl_module, verdict)

    def _decide(self, trainer: Trainer, pl_module: LightningModule, verdict: _Verdict) -> bool:
        """Whether a step is let through.

        Raises:
            ValueError: It is not, and the policy is to stop, or nothing but skipped steps comes.
        """
        loss_is_finite, gradient_is_finite = verdict.read()
        if loss_is_finite and gradient_is_finite:
            self.skipped_in_a_row = 0
            return True
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if loss_is_finite and scaled and self.skipped_in_a_row < MAX_SKIPPED_IN_A_ROW:
            self.skipped_in_a_row += 1  # float16: an overflow is the loss scaling's, which skips the step
            return True
        for buffer, before in self._statistics:  # first, so that the dump has the weights before the step
            buffer.copy_(before)
        # A gradient is shared by the processes: whose batch has spoilt it cannot be told.
        guilty = [p for p in verdict.parts if loss_is_finite or not bool(cast(Tensor, p.loss).isfinite())]
        what = "gradient" if loss_is_finite else "loss"
        stop = self.policy == "stop" or self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW
        about = {"what": what, "action": "stopped" if stop else "skipped"}
        line = _in_words(self._record(trainer, pl_module, guilty, verdict.where, about))
        if stop:
            if trainer.global_rank > 0:
                raise SystemExit(1)  # the first process says it for all
            last = f" after {self.skipped_in_a_row} skipped steps in a row" if self.skipped_in_a_row else ""
            raise InputError(f"training stopped{last}: {line}; {_ADVICE}")
        self.num_skipped += 1
        self.skipped_in_a_row += 1
        log.warning("skipped step (%d so far): %s", self.num_skipped, line)
        return False

    def _record(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        guilty: Sequence[_Part],
        where: Mapping[str, Any],
        about: Mapping[str, str],
    ) -> list[dict[str, Any]]:
        """Write this process's dump, share the events with the others, and let the first process record them."""
        names = getattr(cast(Any, trainer).datamodule, "base_names", None)
        events: list[dict[str, Any]] = [
            {
                **where,
                **{"batch": part.batch_idx, "rank": trainer.global_rank, **about},
                "loss": str(float(cast(Tensor, part.loss)) * trainer.accumulate_grad_batches),
                "episodes": episodes_of(part.batch, names),
            }
            for part in guilty
        ]
        # Of many skipped ones the first is enough.
        if events and (about["action"] == "stopped" or self.num_skipped == 0):
            events[0]["dump"] = self._dump(pl_module, guilty[0], events[0])
        if trainer.world_size > 1:
            shared: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(shared, events)  # all dumps are written by then
            events = [event for several in shared for event in several]
        if trainer.is_global_zero:
            _append(self.directory, events)
        return events

    def _dump(self, pl_module: LightningModule, part: _Part, event: dict[str, Any]) -> str:
        """Write what reproduces an event; returns the path, or why there is none: the event itself must be told."""
        stage = event["stage"].replace(" ", "")
        path = self.directory / f"nonfinite_{stage}_step{event['step']}_rank{event['rank']}.pt"
        content = {
            DUMP_KEY: {**event, "versions": library_versions(), **git_state()},
            "config": self.config,
            "batch": {field.name: getattr(part.batch, field.name) for field in dataclasses.fields(part.batch)},
            "generators": part.generators,
            "state_dict": cast(Any, pl_module).model.state_dict(),
        }
        try:
            write_atomically(content, path)
        except (OSError, RuntimeError) as error:  # torch raises the second for a full disk
            return f"none, it could not be written ({one_line(error)})"
        return str(path)


def count_skipped(directory: str | Path) -> dict[str, int]:
    """Steps that a run has skipped, by stage; one that was skipped again after a crash counts once."""
    steps = {(event["stage"], event["step"]) for event in _events(Path(directory)) if event["action"] == "skipped"}
    return dict(Counter(stage for stage, _ in sorted(steps)))


def episodes_of(batch: Episode | SegmentationSample, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """What a collated batch holds.

    Args:
        batch: Of either stage.
        names: Of the classes that `class_index` counts; None: the index stands for the name.

    Returns:
        Of each episode class, query_id, support_ids and index (in the training manifest); of each picture of stage 1
        its image_id.
    """
    if isinstance(batch, SegmentationSample):
        return [{"image_id": image_id} for image_id in batch.id]
    classes = [value if names is None else names[value] for value in batch.class_index.tolist()]
    facts = zip(classes, batch.query_id, map(list, batch.support_ids), batch.index.tolist(), strict=True)
    return [dict(zip(("class", "query_id", "support_ids", "index"), one, strict=True)) for one in facts]


def _stage(pl_module: LightningModule) -> str:
    return "stage 1" if isinstance(pl_module, BaseLearnerTask) else "stage 2"


def _generators(device: torch.device) -> dict[str, Tensor]:
    on_gpu = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}  # kept by the host: no wait
    return {"cpu": torch.get_rng_state(), **on_gpu}


def _in_words(events: Sequence[dict[str, Any]]) -> str:
    """One line for one step's events of all processes."""
    first = events[0]
    value = f"the loss is {first['loss']}" if first["what"] == "loss" else "the gradient is not finite"
    where = f"{first['stage']}, step {first['step']} (epoch {first['epoch']}, batch {first['batch']})"
    batches = []
    for event in events:
        named = [_episode_in_words(one) for one in event["episodes"]]
        more = f" and {len(named) - _MAX_NAMED} more" if len(named) > _MAX_NAMED else ""
        batches.append(f"rank {event['rank']}: {', '.join(named[:_MAX_NAMED])}{more}")
    dumps = [event["dump"] for event in events if "dump" in event]
    again = f"; dump: {', '.join(dumps)}, seen again by python scripts/inspect/replay.py DUMP" if dumps else ""
    return f"{value} in {where}; {'; '.join(batches)}{again}"


def _episode_in_words(episode: dict[str, Any]) -> str:
    if "image_id" in episode:
        return f"picture {episode['image_id']!r}"
    supports = ", ".join(map(repr, episode["support_ids"]))
    return f"episode {episode['index']} ({episode['class']}, query {episode['query_id']!r}, supports {supports})"


def _events(directory: Path) -> list[dict[str, Any]]:
    """The record; a line that a crash has cut short is left out."""
    try:
        lines = (directory / RECORD).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("}")]


def _forget(directory: Path, stage: str, step: int) -> None:
    kept = [event for event in _events(directory) if event["stage"] != stage or event["step"] < step]
    (directory / RECORD).unlink(missing_ok=True)
    if kept:
        _append(directory, kept)


def _append(directory: Path, events: Sequence[dict[str, Any]]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / RECORD).open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)
