"""Runs a section of `gpu.py` in this process; here also the tests and the test protocol."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import benchmark_evaluation
import torch
from benchmark_measure import machine
from gpu_job import ROOT, Job, backbone, data_dir, write_untrained
from gpu_speed import run_compiled, run_training_step
from gpu_training import run_distillation, run_profile, run_training

from hdmnet.data.datasets.pascal import CLASS_NAMES

PARITY_GOAL = "≤ 1e-4"
REUSE_GOAL = "≥ 20"


def run_section(letter: str, spool: Path, work: Path, limit: float, rehearse: bool) -> None:
    """Run one section.

    Args:
        letter: Which.
        spool: Gets what it finds, a JSON line each.
        work: Scratch folder.
        limit: Seconds.
        rehearse: On the CPU, in tiny sizes.

    Raises:
        RuntimeError: There is no GPU, or the section cannot do its work.
    """
    job = Job("cpu" if rehearse else "cuda", rehearse, time.monotonic() + limit, work, spool)
    if not rehearse and not torch.cuda.is_available():
        raise RuntimeError("torch finds no GPU")
    about = machine() | {"cudnn": None if rehearse else torch.backends.cudnn.version()}
    job.say(machine={key: value for key, value in about.items() if key != "load"})
    sections: dict[str, Callable[[Job], None]] = {
        "a": run_tests,
        "b": run_training_step,
        "c": run_evaluation,
        "d": run_training,
        "e": run_distillation,
        "f": run_profile,
        "g": run_compiled,
    }
    sections[letter](job)


# -------------------------------------------------------------------------------------------------------------- tests


def run_tests(job: Job) -> None:
    """The tests marked `gpu`, with the figures that they record."""
    lines = job.work / "tests.jsonl"
    lines.touch()
    environment = os.environ | {
        "HDMNET_GPU_FIGURES": str(lines),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # whatever else is installed there is not needed, and may warn
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # of deterministic runs; before CUDA starts
    }
    if job.rehearse:
        environment["HDMNET_TEST_DEVICE"] = "cpu"
    # Warnings that only a GPU machine gives are shown, but fail no test.
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-W", "default", "tests/gpu"]
    if not job.rehearse and importlib.util.find_spec("xdist"):
        command += ["-p", "xdist", "-n", "4", "--dist", "loadfile"]
    child = subprocess.Popen(command, env=environment, cwd=ROOT)
    outcomes: dict[str, str] = {}
    running = True
    with lines.open(encoding="utf-8") as reader:
        while running and job.left() > 0:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(0.5)
                running = False
            for line in reader:
                _take_test(job, json.loads(line), outcomes)
    for outcome in ("passed", "failed", "skipped"):
        count = sum(one == outcome for one in outcomes.values())
        job.row(outcome, f"tests {outcome}", count, target="≤ 0" if outcome == "failed" else "")
    if running:
        child.kill()
        job.note("the tests were cut off")
    elif child.returncode not in (0, 1) or not outcomes:
        raise RuntimeError(f"pytest ended with exit code {child.returncode} after {len(outcomes)} tests")


def _take_test(job: Job, line: Mapping[str, Any], outcomes: dict[str, str]) -> None:
    """Take up the outcome of a test, and the figures that it has recorded."""
    name = line["test"].rpartition("::")[2]
    outcomes[name] = line["outcome"]
    for key, value in line["figures"].items():
        label = f"{key.replace('_', ' ')} ({name.removeprefix('test_').replace('_', ' ')})"
        job.row(f"{name}/{key}", label, float(value), target=PARITY_GOAL if key.startswith("parity") else "")
    if line["outcome"] != "passed":
        job.note(f"{name} {line['outcome']}: {line['why']}")


# ------------------------------------------------------------------------------------------------------ test protocol


def run_evaluation(job: Job) -> None:
    """Ten seeds of 1,000 episodes with reuse and one without, on about as many pairs as a fold of PASCAL-5i has."""
    size, area = (65, 128) if job.rehearse else (473, 2048)
    checkpoint = job.work / "untrained.ckpt"
    words = [
        *("dataset=folder", f"dataset.root={data_dir(job) / 'pascal'}", "dataset.name=photos", "dataset.layout=index"),
        *("dataset.images=JPEGImages", "dataset.masks=SegmentationClass", f"dataset.image_size={size}"),
        *(f"dataset.classes=[{','.join(CLASS_NAMES)}]", f"dataset.min_area={area}", *backbone(job, "resnet50")),
    ]
    write_untrained(checkpoint, words)
    job.note("all pictures of the tree, all classes novel; random weights: the time does not depend on them")
    common = [f"paths.output_dir={job.work / 'outputs'}", f"num_workers={job.workers}"]
    common += ["trainer.enable_progress_bar=false", "--off-seeds", "1"]
    small = ["batch_size=2", "episodes=4", "seeds=2", "trainer=cpu"]
    common += small if job.rehearse else ["batch_size=16", "episodes=1000", "seeds=10", "reuse_memory_gb=30"]
    settings = [(precision, shot) for precision in ("bf16-mixed", "32-true") for shot in (1, 5)]
    for precision, shot in settings[:1] if job.rehearse else settings:
        if job.left() < 15 and not job.rehearse:
            job.note(f"no time left for {shot}-shot, {precision}, and what comes after it")
            return
        name, path = f"{shot}shot_{precision}", job.work / f"evaluation_{shot}_{precision}.json"
        given = [str(checkpoint), *common, f"shot={shot}", f"trainer.precision={precision}", "--json", str(path)]
        benchmark_evaluation.run(given)
        found = json.loads(path.read_text(encoding="utf-8"))
        goal = REUSE_GOAL if (precision, shot) == settings[0] else ""
        _say_evaluation(job, name, f"{shot}-shot, {precision}", found, goal)


def _say_evaluation(job: Job, name: str, title: str, found: Mapping[str, Any], goal: str) -> None:
    for key, label in (("with_reuse", "with reuse"), ("without_reuse", "without")):
        rate = found[key]["episodes"] / found[key]["seconds"]
        job.row(f"{name}/{key}", f"{title}, {label}, {found[key]['episodes']:,} episodes", rate, "episodes/s")
    job.row(f"{name}/encoded", f"{title}, with reuse: pictures encoded", found["with_reuse"]["pictures_encoded"])
    job.row(f"{name}/ratio", f"{title}: times as fast with reuse", found["ratio"], target=goal)
    for prediction, entry in found["differences"].items():
        share = entry["largest"]["union"] / max(entry["union_pixels"], 1)
        label = f"{title}: largest difference of a class's union, of all unions' pixels ({prediction})"
        job.row(f"{name}/{prediction}_pixels", label, share)
