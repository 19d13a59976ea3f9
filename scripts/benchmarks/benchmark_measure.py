"""How the benchmark measures: interleaved timings, peak memory in a process of its own, lines through points.

Needs only torch.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

SCRIPT = Path(__file__).with_name("benchmark.py")
MB = 1e6
# Blocks from this size on are mapped apart and given back when freed: resident memory then is live memory.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


@dataclass
class Row:
    """One figure of the table.

    Attributes:
        key: Its name in the JSON, unique in its section.
        label: Its name in the table.
        value: The figure.
        unit: Its unit; empty for ratios.
        target: What it should be, in words; empty where there is no target.
    """

    key: str
    label: str
    value: float
    unit: str = ""
    target: str = ""


class Progress:
    """One line on stderr: what is being measured, and the time left by the steps done so far."""

    def __init__(self, total: int) -> None:
        self.total = max(total, 1)
        self.done = 0
        self.start = time.perf_counter()

    def step(self, text: str) -> None:
        """Announce the next step."""
        elapsed = time.perf_counter() - self.start
        left = f", about {elapsed / self.done * (self.total - self.done):.0f} s left" if self.done else ""
        print(f"[{min(self.done + 1, self.total)}/{self.total}] {text}{left}", file=sys.stderr, flush=True)
        self.done += 1


@dataclass
class Context:
    """What every section gets, and where it leaves its figures.

    Attributes:
        repeats: Timings of each contestant.
        quick: Tiny sizes, to see that everything runs.
        sides: Sides of the square input, in pixels, of the section `model`.
        shots: K of the section `model`.
        precisions: "fp32", "bf16" of the section `model`.
        dense: Also measure the dense form of the whole model.
        plot: Where the picture of the section `growth` goes; None: nowhere.
        progress: Announces the steps.
        samples: Single timings in seconds, by section and contestant.
    """

    repeats: int = 5
    quick: bool = False
    sides: tuple[int, ...] = (473,)
    shots: tuple[int, ...] = (1, 5)
    precisions: tuple[str, ...] = ("fp32",)
    dense: bool = False
    plot: Path | None = None
    progress: Progress = field(default_factory=lambda: Progress(1))
    samples: dict[str, list[float]] = field(default_factory=dict)


def synchronise(device: str) -> None:
    """Wait for a GPU's queue; nothing to wait for on a CPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def interleave(
    context: Context, contestants: Mapping[str, Callable[[], object]], *, name: str, warmup: int = 1
) -> dict[str, float]:
    """Time contestants in turns, so that a slow minute of the machine hits all alike.

    Args:
        context: Gives the repeats; single timings are left in its `samples`.
        contestants: What to call, by name.
        name: Where in `samples`.
        warmup: Calls of each before the first timing.

    Returns:
        Median of each in seconds.
    """
    for call in contestants.values():
        for _ in range(warmup):
            call()
    times: dict[str, list[float]] = {contestant: [] for contestant in contestants}
    for _ in range(context.repeats):
        for contestant, call in contestants.items():
            start = time.perf_counter()
            call()
            times[contestant].append(time.perf_counter() - start)
    context.samples |= {f"{name}/{contestant}": values for contestant, values in times.items()}
    return {contestant: statistics.median(values) for contestant, values in times.items()}


@dataclass(frozen=True)
class Memory:
    """Peak memory of one call, in 10^6 bytes.

    Attributes:
        extra: Above what was held before the call (weights, inputs, libraries).
        total: In all: of the process on a CPU, of torch's tensors on a GPU.
    """

    extra: float
    total: float


def peak_memory(spec: Any) -> Memory:
    """Measure a case in a fresh process, so that nothing measured before hides or adds anything.

    Args:
        spec: A `benchmark_model.Spec`.

    Returns:
        What the call took.

    Raises:
        RuntimeError: The process failed.
    """
    command = [sys.executable, str(SCRIPT), "--measure", json.dumps(asdict(spec)), "--threads"]
    command.append(str(torch.get_num_threads()))
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | MALLOC, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring {spec} failed: {done.stderr.strip().splitlines()[-1:]}")
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def measure_call(call: Callable[[], object], device: str) -> Memory:
    """Peak memory of one call in this process; the child's side of `peak_memory`.

    On a CPU: growth of the peak of the resident memory over what was resident before. Libraries should have been
    loaded by a smaller call before.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        return Memory((peak - before) / MB, peak / MB)
    trim_memory()
    resident_before = reset_peak()
    result = call()
    peak = peak_resident()
    del result
    return Memory((peak - resident_before) / MB, peak / MB)


def trim_memory() -> None:
    """Give freed memory back to the system, where the C library can."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # not glibc
        return


def reset_peak() -> int:
    """Set the peak of the resident memory to what is resident now, and return that, in bytes.

    Without Linux's `clear_refs` the peak so far is returned: growth is then measured above it, which can only be less.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT
    return _status("VmRSS")


def peak_resident() -> int:
    """Peak of the resident memory in bytes, since `reset_peak` where the system can tell, else since the start."""
    try:
        return _status("VmHWM")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT


_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


def _status(name: str) -> int:
    """A line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def private_memory() -> int:
    """Memory that only this process holds (USS), in bytes; Linux only.

    Raises:
        OSError: The system does not tell.
    """
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:")))


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, over the largest value expected."""
    scale = expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return float((found.float() - expected.float()).abs().max() / scale)


@dataclass(frozen=True)
class Line:
    """A straight line through points.

    Attributes:
        slope: Growth of y for each unit of x.
        intercept: y at x = 0.
        r2: Share of the variance of y that it explains; 1 on the line.
    """

    slope: float
    intercept: float
    r2: float


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line:
    """Least squares through at least two points of unequal x."""
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
    intercept = mean_y - slope * mean_x
    residual = sum((b - intercept - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    spread = sum((b - mean_y) ** 2 for b in y)
    return Line(slope, intercept, 1 - residual / spread if spread else 1.0)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {
        "system": platform.platform(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": _version("torchvision"),
        "threads": torch.get_num_threads(),
    }


def _version(module: str) -> str | None:
    try:
        return str(__import__(module).__version__)
    except ImportError:
        return None
