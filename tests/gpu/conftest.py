"""The device of the tests that need a GPU, and where their figures go.

`HDMNET_TEST_DEVICE=cpu` rehearses on the CPU what can run there: the same assertions on smaller sizes, so that little
is left to go wrong on the day when a GPU is at hand. With `HDMNET_GPU_FIGURES=FILE` each test adds a JSON line with its
outcome and the figures that it has recorded; `scripts/benchmarks/gpu.py` reads it while they run.
"""

from __future__ import annotations

import json
import os

import pytest
import torch


@pytest.fixture(scope="session")
def device():
    """ "cuda", or "cpu" in a rehearsal."""
    if os.environ.get("HDMNET_TEST_DEVICE") == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU; HDMNET_TEST_DEVICE=cpu rehearses on the CPU")
    return "cuda"


@pytest.fixture(scope="session")
def accelerator(device):
    """The words that put a command on the device; `trainer=cpu` stands in `SHAPES` already."""
    return f"trainer.accelerator={'gpu' if device == 'cuda' else 'cpu'}"


@pytest.fixture(autouse=True)
def full_float32(monkeypatch):
    """Products of float32 without TF32, and what a deterministic run switches on taken back."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before[1:]
    torch.use_deterministic_algorithms(deterministic)


def pytest_runtest_logreport(report):
    path = os.environ.get("HDMNET_GPU_FIGURES")
    if path is None or (report.when != "call" and report.outcome == "passed"):
        return
    why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr or "")[-1000:]
    line = {"test": report.nodeid, "outcome": report.outcome, "why": why, "figures": dict(report.user_properties)}
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
