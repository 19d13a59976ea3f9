"""What a result was made with: versions of the libraries, commit of the code, and the machine."""

from __future__ import annotations

import functools
import math
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

_LIBRARIES = (
    *("torch", "torchvision", "lightning", "torchmetrics", "numpy", "albumentations", "cv2", "PIL", "pycocotools"),
    *("hydra", "omegaconf", "hdmnet"),
)
_DISTRIBUTIONS = {"cv2": "opencv-python-headless", "PIL": "pillow", "hydra": "hydra-core"}  # of another name
_CPU_INFO = Path("/proc/cpuinfo")
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


def library_versions() -> dict[str, str | None]:
    """Return the versions of Python and of the libraries that results depend on; `None` for one not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in _LIBRARIES:
        # What is loaded knows more than what was installed: torch's own version names its build (+cpu, +cu126).
        loaded = getattr(sys.modules.get(name), "__version__", None)
        try:
            versions[name] = str(loaded) if loaded is not None else metadata.version(_DISTRIBUTIONS.get(name, name))
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _git(root: Path, *arguments: str) -> str | None:
    """Output of git; None when there is no git, no repository, or it says no."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@functools.cache
def git_state(root: Path = _PACKAGE_ROOT) -> dict[str, str | bool | None]:
    """`git_commit` and `git_dirty` (`hdmnet`, `conf` or `scripts` differ) of the code that runs, as at the first call.

    A run asks when it begins: the result must name the commit that ran, not one that was made meanwhile. Both are None
    where the package is not tracked by git (an installed wheel inside somebody else's repository must not report that
    repository's commit).
    """
    if _git(root, "ls-files", "--error-unmatch", "hdmnet/run/result.py") is None:
        return {"git_commit": None, "git_dirty": None}
    changes = _git(root, "status", "--porcelain", "--", "hdmnet", "conf", "scripts")
    return {"git_commit": _git(root, "rev-parse", "HEAD"), "git_dirty": None if changes is None else bool(changes)}


def available_cpus() -> int:
    """Count the CPUs that this process may use: its affinity, or a container's quota (cgroup v2) where that is less."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(affinity, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return affinity


def _about_cpu(*keys: str) -> str:
    """What Linux says of the first CPU under one of some keys; empty on other systems."""
    for line in _CPU_INFO.read_text(encoding="utf-8").splitlines() if _CPU_INFO.is_file() else ():
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.strip()
    return ""


def processor() -> str:
    """Name the CPU; Linux hides the name from `platform.processor`."""
    return _about_cpu("model name") or platform.processor() or platform.machine()


def emulates_bfloat16() -> bool:
    """Whether the CPU is known to have no instructions for bfloat16, so that every operation converts to float32."""
    flags = set(_about_cpu("flags", "Features").split())  # of x86, of ARM
    return bool(flags) and flags.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


def peak_memory_mb() -> float:
    """The most memory that this process has held so far, in 10^6 bytes: of a GPU's where one was used, else its own."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e6
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def hardware() -> dict[str, Any]:
    """Describe the machine, and what on it settles the order of float sums: CPU, its instructions, threads, GPUs."""
    import torch  # here, so that reading results (reports) needs no torch

    cuda = torch.cuda.is_available()
    return {
        "system": platform.platform(),
        "cpu": processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_cores": available_cpus(),
        "torch_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if cuda else [],
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }
