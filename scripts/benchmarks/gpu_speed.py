"""The section of `gpu.py` on the training step: episodes a second and memory, beside the dense form as released."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from benchmark_measure import measure_call, synchronise
from benchmark_model import Spec, build_case
from gpu_job import Job
from gpu_trace import trace_calls

# Sides, shots and batches, in the order of worth; the first two have goals.
SETTINGS = ((473, 1, 4), (633, 5, 4), (473, 5, 4), (633, 1, 4), (473, 1, 6), (633, 5, 6), (473, 5, 6), (633, 1, 6))
GOALS = {(473, 1, 4): "≥ 10", (633, 5, 4): "≥ 20"}  # in bf16, times as fast as the dense form in fp32
MEMORY_GOAL = "≤ 0.333"  # of the dense form's
FORMS = (("dense", "fp32"), ("ours", "bf16"), ("ours", "fp32"), ("ours", "tf32"), ("dense", "tf32"))
REMARK = (
    "ready episodes on the device, 20 % foreground, random weights, ResNet-50; a step is forward pass, losses, "
    "backward pass, AdamW. Dense: eager, no folding, every support position, the supports shot by shot, each shot for "
    "the whole batch; fp32 is without TF32"
)

Measured = tuple[float, float]  # seconds of a call, and the device's peak memory in MB


def run_training_step(job: Job) -> None:
    """Training steps in all settings that there is time for, then parts of it alone."""
    job.note(REMARK)
    for setting in ((65, 1, 2),) if job.rehearse else SETTINGS[:2]:
        _run_setting(job, *setting)
    _run_parts(job)
    for setting in () if job.rehearse else SETTINGS[2:]:
        _run_setting(job, *setting)


def _run_setting(job: Job, side: int, shots: int, batch: int) -> None:
    name, title = f"{side}_{shots}shot_batch{batch}", f"{side}², {shots}-shot, batch {batch}"
    dense: Measured | None = None
    for form, precision in FORMS:
        if job.left() < 3:
            job.note(f"no time left for {title}, {form} {precision}")
            return
        found = measure(replace(_spec(job, "train", side, shots, batch), form=form, precision=precision))
        key, label = f"{name}/{form}_{precision}", f"{title}, {form} {precision}"
        if found is None:
            job.note(f"{label}: out of memory")
            continue
        job.row(key, label, batch / found[0], "episodes/s")
        job.row(f"{key}_mb", f"{label}: peak memory", found[1], "MB")
        if (form, precision) == ("dense", "fp32"):
            dense = found
        elif dense is not None:
            goal = GOALS.get((side, shots, batch), "") if (form, precision) == ("ours", "bf16") else ""
            job.row(f"{key}_ratio", f"{label}: times as fast as dense fp32", dense[0] / found[0], target=goal)
            share = found[1] / dense[1]
            job.row(f"{key}_memory_ratio", f"{label}: of its memory", share, target=goal and MEMORY_GOAL)


def _run_parts(job: Job) -> None:
    """Matching, trunk and a whole episode, each beside its plain form; all but the trunk, for the paper's Table 7."""
    side, formats = 65 if job.rehearse else 473, ("fp32", "tf32", "bf16")
    for title, spec, plain, precisions in (
        ("matching, 5-shot", _spec(job, "matching", 12 if job.rehearse else 60, 5, 1), "dense", ("fp32",)),
        ("trunk, 8 pictures", _spec(job, "trunk", side, 1, 4), "plain", formats),
        ("evaluation, 1-shot, one episode", _spec(job, "evaluate", side, 1, 1), "dense", formats),
        ("the same without the trunk", _spec(job, "meta_evaluate", side, 1, 1), "", formats),
    ):
        base = measure(replace(spec, form=plain)) if plain and job.left() > 3 else None
        for precision in precisions:  # of the matching only one: it computes in 32 bits always
            found = measure(replace(spec, precision=precision)) if job.left() > 3 else None
            key, label = f"{spec.case}/{precision}", f"{title}, {precision}"
            if found is not None:
                job.row(f"{key}_ms", label, 1e3 * found[0], "ms")
            if base is not None and found is not None:
                job.row(f"{key}_ratio", f"{label}: times as fast as {plain} fp32", base[0] / found[0])
                job.row(f"{key}_memory_ratio", f"{label}: of its memory", found[1] / base[1])


def run_compiled(job: Job) -> None:
    """The training step whose forward pass torch compiles, beside the one that it does not compile."""
    spec = replace(_spec(job, "train", *((65, 1, 2) if job.rehearse else SETTINGS[0])), precision="bf16")
    eager = measure(spec)
    if eager is None:
        raise RuntimeError("the step that is not compiled does not fit into the memory")
    for mode in ("aot_eager",) if job.rehearse else ("default", "reduce-overhead"):
        if job.left() < 20 and not job.rehearse:
            job.note(f"no time left for {mode}")
            return
        title = f"{spec.side}², {spec.shots}-shot, batch {spec.batch}, bf16, compiled ({mode})"
        torch.compiler.reset()
        start = time.perf_counter()
        call = build_case(replace(spec, compiled=mode))
        call()
        job.row(f"{mode}/first_s", f"{title}: building and first step", time.perf_counter() - start, "s")
        found = settle(call, spec.device)
        job.row(f"{mode}/rate", title, spec.batch / found[0], "episodes/s")
        job.row(f"{mode}/ratio", f"{title}: times as fast as not compiled", eager[0] / found[0])
        job.row(f"{mode}/memory_ratio", f"{title}: of its memory", found[1] / eager[1])
        figures = trace_calls(call, 2 if job.rehearse else 5, spec.device)
        for key in ("kernels", "launches", "waits"):
            job.row(f"{mode}/{key}", f"{title}: {key} a step", getattr(figures, key))


def _spec(job: Job, case: str, side: int, shots: int, batch: int) -> Spec:
    name = "resnet_narrow" if job.rehearse else "resnet50"
    return Spec(case, side=side, shots=shots, batch=batch, device=job.device, backbone=name)


def measure(spec: Spec) -> Measured | None:
    """Time and memory of a case; None where the device's memory does not suffice."""
    try:
        found = _measure(spec)
    except torch.OutOfMemoryError:
        found = None
    gc.collect()
    if spec.device == "cuda":
        torch.cuda.empty_cache()
    return found


def _measure(spec: Spec) -> Measured:
    with number_format(spec.precision):
        return settle(build_case(replace(spec, precision="bf16" if spec.precision == "bf16" else "fp32")), spec.device)


def settle(call: Callable[[], object], device: str) -> Measured:
    """The median of blocks of calls that follow one another without a wait, as those of a training do."""
    for _ in range(3):  # algorithms are chosen, optimiser states and folded weights made
        call()
    memory = measure_call(call, device)
    once = time_calls(call, 1, device)
    calls = max(1, min(10, round(0.5 / once))) if device == "cuda" else 1
    return statistics.median(time_calls(call, calls, device) for _ in range(3)), memory.total


def time_calls(call: Callable[[], object], calls: int, device: str) -> float:
    """Seconds of one of several calls in a row."""
    synchronise(device)
    start = time.perf_counter()
    for _ in range(calls):
        call()
    synchronise(device)
    return (time.perf_counter() - start) / calls


@contextlib.contextmanager
def number_format(precision: str) -> Iterator[None]:
    """How products of float32 are computed: in full ("fp32"), with TF32 ("tf32"), or ("bf16") as torch's defaults say.

    Those are TF32 in convolutions and not in matrix products.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision != "fp32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
