"""Runs a training step again whose loss or gradient was not finite, from the file that the run left.

    python scripts/inspect/replay.py RUN/nonfinite_stage2_step123_rank0.pt [--device cuda]

Needs neither the data set nor the run: the file holds batch, weights, random state and config. Prints each loss term,
the first part of the network whose output is not finite, which episodes of the batch do it alone, and the parameters
with a gradient that is not finite. The exit code is 0 if the step was not finite again, 1 if it was finite this time:
then it takes what one process does not have, e.g. `sync_batchnorm` or float16's loss scaling, or another device.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)] if str(ROOT) not in sys.path else []

import torch  # noqa: E402
from omegaconf import DictConfig, OmegaConf  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from hdmnet.callbacks.non_finite import DUMP_KEY, episodes_of  # noqa: E402
from hdmnet.cli.parser import OneLineParser, run_main  # noqa: E402
from hdmnet.config.instantiate import instantiate  # noqa: E402
from hdmnet.config.renamed import upgrade  # noqa: E402
from hdmnet.config.values import to_plain  # noqa: E402
from hdmnet.data.types import Episode, SegmentationSample  # noqa: E402
from hdmnet.run.build import build_base_learner, build_trained  # noqa: E402
from hdmnet.run.checkpoints import facts_of_earlier_versions, load_strictly  # noqa: E402
from hdmnet.runtime.checkpoint_file import read_checkpoint  # noqa: E402
from hdmnet.tasks.base_learner import BaseLearnerTask, BaseOptimiserSettings  # noqa: E402
from hdmnet.tasks.few_shot import FewShotTask  # noqa: E402

NAME = "replay"
_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "16": torch.float16, "bf16": torch.bfloat16}
_SHOWN = 5


def read_dump(path: Path) -> dict[str, Any]:
    """Read what a run left; nothing in it is run.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or something else.
    """
    content = read_checkpoint(path)
    if DUMP_KEY not in content:
        raise ValueError(f"{path} is no dump of a step; expected a nonfinite_*.pt of a run's folder")
    return content


def build(content: dict[str, Any], path: Path) -> tuple[FewShotTask | BaseLearnerTask, Episode | SegmentationSample]:
    """Build task and batch of a dump, on the CPU, in training mode.

    Args:
        content: From `read_dump`.
        path: Where from, for messages.

    Returns:
        Both as they were when the step began.
    """
    cfg, state = OmegaConf.create(upgrade(content["config"])), content["state_dict"]
    assert isinstance(cfg, DictConfig)
    if content[DUMP_KEY]["stage"] == "stage 1":
        learner = build_base_learner(cfg, len(state["classifier.2.bias"]) - 1, weights=None)
        load_strictly(learner, state, str(path))
        settings = BaseOptimiserSettings(freeze_backbone=cfg.optim.base.freeze_backbone)
        sample = SegmentationSample(**content["batch"])
        task = BaseLearnerTask(model=learner, optimiser=settings).train()
        task.on_train_batch_start(sample, 0)
        return task, sample
    facts = content.get("facts") or facts_of_earlier_versions(to_plain(cfg), state)
    model = build_trained(cfg, state, path, facts)
    names = ["?"] * (1 + int(content["batch"]["class_index"].max()))
    return FewShotTask(model=model, class_names=names, loss=instantiate(cfg.loss)).train(), Episode(**content["batch"])


@contextlib.contextmanager
def as_in_the_run(content: dict[str, Any], device: torch.device) -> Iterator[None]:
    """The random state and the precision of the step."""
    torch.set_rng_state(content["generators"]["cpu"])
    if device.type == "cuda" and "cuda" in content["generators"]:
        torch.cuda.set_rng_state(content["generators"]["cuda"], device)
    dtype = _AUTOCAST.get(str(content["config"]["trainer"]["precision"]))
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*`self.log\\(\\)`.*")  # there is no trainer, and nothing to log to
        yield


def losses_of(task: FewShotTask | BaseLearnerTask, batch: Any) -> dict[str, Tensor]:
    """Loss terms by name, each a scalar; `loss` is the sum that is trained."""
    if isinstance(task, BaseLearnerTask):
        return {"loss": task.training_step(batch, 0)}
    assert task.loss is not None
    terms: dict[str, Tensor] = task.loss(task(batch, class_index=batch.class_index), batch.query_mask)
    return terms


def _to_device(batch: Any, device: torch.device) -> Any:
    return dataclasses.replace(batch, **{k: v.to(device) for k, v in vars(batch).items() if isinstance(v, Tensor)})


def _is_finite(value: Any) -> bool:
    """Whether all tensors in a module's output are finite."""
    if isinstance(value, Tensor):
        return bool(value.isfinite().all())
    if dataclasses.is_dataclass(value):
        value = list(vars(value).values())
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return all(_is_finite(one) for one in values)


@contextlib.contextmanager
def _watch(model: nn.Module) -> Iterator[list[str]]:
    """Names of the modules whose output is not finite, in the order in which they end: inner ones first."""
    found: list[str] = []

    def note(name: str) -> Any:
        return lambda module, args, output: None if _is_finite(output) else found.append(name or "the whole")

    handles = [module.register_forward_hook(note(name)) for name, module in model.named_modules()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _alone(task: FewShotTask | BaseLearnerTask, batch: Any, content: dict[str, Any], device: torch.device) -> list[int]:
    """Places of the episodes whose loss is not finite without the others (batch norm needs two: not for stage 1)."""
    if isinstance(task, BaseLearnerTask):
        return []
    guilty = []
    for place in range(len(batch.query_image)):
        one = {k: v[place : place + 1] for k, v in vars(batch).items() if v is not None}
        with as_in_the_run(content, device), torch.no_grad():
            if not math.isfinite(float(losses_of(task, Episode(**one))["loss"])):
                guilty.append(place)
    return guilty


def replay(path: Path, device: torch.device) -> bool:
    """Run the step again and print what is not finite.

    Args:
        path: The dump.
        device: Where to.

    Returns:
        Whether loss or gradient was not finite again.
    """
    content = read_dump(path)
    event = content[DUMP_KEY]
    task, batch = build(content, path)
    task, batch = task.to(device), _to_device(batch, device)
    print(
        f"{event['stage']}, step {event['step']}, epoch {event['epoch']}, batch {event['batch']}, rank {event['rank']}"
    )
    print(f"in the run:  loss {event['loss']}, not finite: {event['what']}")
    with as_in_the_run(content, device), _watch(task.model) as modules:
        terms = losses_of(task, batch)
    terms["loss"].backward()
    print("now:         " + ", ".join(f"{name} {float(value.detach())!r}" for name, value in terms.items()))
    if modules:
        print(f"first output that is not finite: {modules[0]}")
    gradients = [n for n, p in task.model.named_parameters() if p.grad is not None and not _is_finite(p.grad)]
    if gradients:
        more = f" and {len(gradients) - _SHOWN} more" if len(gradients) > _SHOWN else ""
        print(f"gradient not finite: {', '.join(gradients[:_SHOWN])}{more}")
    episodes, alone = episodes_of(batch), _alone(task, batch, content, device)
    for place, episode in enumerate(event["episodes"] or episodes):
        words = ", ".join(f"{key} {value}" for key, value in episode.items())
        print(f"  {words}{'  <- not finite alone, too' if place in alone else ''}")
    again = bool(gradients) or not math.isfinite(float(terms["loss"].detach()))
    print("not finite again" if again else "finite this time: see --help")
    return again


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit code."""

    def body() -> bool:
        parser = OneLineParser(prog=NAME, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("dump", type=Path, help="nonfinite_*.pt of a run's folder")
        parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")
        arguments = parser.parse_args(argv)
        logging.getLogger("lightning").setLevel(logging.ERROR)
        return replay(arguments.dump, torch.device(arguments.device))

    return run_main(body, NAME)


if __name__ == "__main__":
    sys.exit(main())
