"""What the steps of a training do on a GPU: kernels, launches, waits and idle time, read off torch's profiler.

The profiler's trace is written as Chrome's JSON and read back, as that form names categories and correlation of every
event and has been stable for years. On a CPU the same code reads the operators in place of the kernels.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.profiler import ProfilerActivity, profile

from hdmnet.runtime.atomic import replacing

ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
CALLS = ("cuda_runtime", "cuda_driver")
LAUNCHES = ("LaunchKernel", "LaunchCooperativeKernel", "GraphLaunch")  # parts of the names of CUDA's calls
COPIES = {"to_host": "DtoH", "to_device": "HtoD"}  # names of the copies hold these


@dataclass
class StepFigures:
    """What one step does, the mean of those that were traced.

    Attributes:
        steps: How many were traced.
        span_ms: From the first event on the device to the last one's end.
        busy_ms: Of that, the time in which the device did anything.
        kernels: Kernels (on a CPU: operators) run.
        launches: CUDA calls that launch kernels or graphs.
        waits: CUDA calls in which the CPU waits for the device.
        to_host: Copies from the device.
        to_device: Copies to the device.
        largest: The most expensive kernels: name, share of all kernels' time, milliseconds, how often.
    """

    steps: int
    span_ms: float
    busy_ms: float
    kernels: float
    launches: float
    waits: float
    to_host: float
    to_device: float
    largest: list[tuple[str, float, float, float]] = field(default_factory=list)

    @property
    def idle(self) -> float:
        """Share of the span in which the device had nothing to do, 0 to 1, the profiler's own delays included."""
        return 1 - self.busy_ms / self.span_ms if self.span_ms else 0.0


def read_trace(events: Iterable[Mapping[str, Any]], steps: int, *, on_gpu: bool, top: int = 10) -> StepFigures:
    """Sum a trace up.

    Args:
        events: `traceEvents` of Chrome's JSON, times in microseconds.
        steps: How many steps it is of.
        on_gpu: Whether kernels are looked at, or on a CPU operators.
        top: How many of the most expensive kernels are named.
    """
    whole = [event for event in events if event.get("ph") == "X" and "dur" in event]
    kinds = ON_DEVICE if on_gpu else ("cpu_op",)
    device = sorted((e for e in whole if e.get("cat") in kinds), key=lambda e: float(e["ts"]))
    calls = [str(event["name"]) for event in whole if event.get("cat") in CALLS]
    intervals = [(float(e["ts"]), float(e["ts"]) + float(e["dur"])) for e in device]
    kernels = [event for event in device if event["cat"] in ("kernel", "cpu_op")]
    seconds, count = Counter[str](), Counter[str]()
    for event in kernels:
        seconds[event["name"]] += event["dur"]
        count[event["name"]] += 1
    total = sum(seconds.values()) or 1
    copies = [str(event["name"]) for event in device if event["cat"] == "gpu_memcpy"]
    return StepFigures(
        steps=steps,
        span_ms=(max(end for _, end in intervals) - intervals[0][0]) / steps / 1e3 if intervals else 0.0,
        busy_ms=covered(intervals) / steps / 1e3,
        kernels=len(kernels) / steps,
        launches=sum(any(part in name for part in LAUNCHES) for name in calls) / steps,
        # Of the whole device: that is the end of the trace, and no training calls it.
        waits=sum("Synchronize" in name and "DeviceSynchronize" not in name for name in calls) / steps,
        **{key: sum(part in name for name in copies) / steps for key, part in COPIES.items()},
        largest=[
            (name, spent / total, spent / steps / 1e3, count[name] / steps) for name, spent in seconds.most_common(top)
        ],
    )


def covered(intervals: Sequence[tuple[float, float]]) -> float:
    """Length of the union of intervals, sorted by their starts: streams may run beside one another."""
    length, reached = 0.0, float("-inf")
    for start, end in intervals:
        length += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return length


def activities(on_gpu: bool) -> list[ProfilerActivity]:
    """What the profiler records; operators of the CPU would only slow a GPU's launches down."""
    return [ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]


def read_profile(recorded: profile, steps: int, *, on_gpu: bool) -> StepFigures:
    """As `read_trace`, of a profiler that has stopped."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        content = json.loads(path.read_text(encoding="utf-8"))
    return read_trace(content["traceEvents"], steps, on_gpu=on_gpu)


def trace_calls(step: Callable[[], object], steps: int, device: str) -> StepFigures:
    """Trace calls of a step that has been warmed up."""
    with profile(activities=activities(device == "cuda")) as recorded:
        for _ in range(steps):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
    return read_profile(recorded, steps, on_gpu=device == "cuda")


class StepTrace(Callback):
    """Trace some steps of a real training, loader and callbacks included, and write their figures as JSON.

    Args:
        path: Gets the figures.
        first: The batch, counted from the training's start, with which the trace begins.
        steps: How many batches.
    """

    def __init__(self, path: str, *, first: int, steps: int) -> None:
        self.path, self.first, self.steps = Path(path), first, steps
        self._seen = 0
        self._profile: profile | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin where it is time."""
        if self._seen == self.first:
            self._wait(pl_module)
            self._profile = profile(activities=activities(pl_module.device.type == "cuda"))
            self._profile.start()
        self._seen += 1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End, and write."""
        if self._profile is None or self._seen < self.first + self.steps:
            return
        self._wait(pl_module)
        self._profile.stop()
        figures = read_profile(self._profile, self.steps, on_gpu=pl_module.device.type == "cuda")
        self._profile = None
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(asdict(figures)), encoding="utf-8")

    @staticmethod
    def _wait(pl_module: LightningModule) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
