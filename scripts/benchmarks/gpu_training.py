"""The sections of `gpu.py` that train through the entry point: a real training, distillation, the profile."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from benchmark_model import Spec, build_case
from gpu_job import Job, backbone, finish_training, read_log, settled, start_training, write_untrained_base
from gpu_speed import time_calls
from gpu_trace import StepFigures, trace_calls

# The settings of docs/results.md on the same photographs, at the paper's size.
VOC = (
    *("dataset=pascal", "fold=0", "dataset.train_list=voc", "backbone.feature_channels=256", "augment=flip"),
    *("trainer.precision=bf16-mixed", "model.ensemble=false", "optim.base.freeze_backbone=all"),
    *("optim.base.optimizer=adamw", "optim.base.lr=1e-3", "optim.base.head_lr_factor=1", "optim.base.augment=flip"),
    *("optim.base.max_epochs=-1", "optim.base.num_val_samples=40", "optim.lr=5e-4", "optim.groups.head_lr_factor=4"),
    *("optim.max_epochs=-1", "callbacks.pictures=null", "callbacks.curves=null"),
)
SHORT_TEST = ("dataset.num_val_episodes=2", "dataset.num_test_episodes=2", "dataset.num_test_seeds=1")
SEEDS = (0, 1)


def run_training(job: Job) -> None:
    """Both stages and the test, on photographs: what it reaches, and where its time goes."""
    rate = training_rate(job)
    # What is not training: imports, checks, four validations, the test.
    steps = 4 if job.rehearse else max(int(0.75 * (job.left() - 35) * rate), 50)
    words = training_words(job, steps, validations=2 if job.rehearse else 4)
    result = finish_training(job, *start_training(job, "training", words))
    if result is None:
        return
    job.row("steps", "training steps of stage 2", steps)
    job.row("miou", "mIoU of the novel classes, fold 0, 1-shot", 100 * (result["test"]["miou"] or 0.0), "%")
    job.row("fb_iou", "FB-IoU", 100 * (result["test"]["fb_iou"] or 0.0), "%")
    say_logged(job, job.work / "outputs" / "training", "≤ 0.05")
    for phase, seconds in result["timings"].items():
        job.row(f"time_{phase}", f"time: {phase}", seconds, "s")
    job.row("time_total", "time: all phases", sum(result["timings"].values()), "s")


def run_distillation(job: Job) -> None:
    """Two seeds with distillation and two without, side by side on the one GPU, from the same base learner."""
    rate = training_rate(job)
    kept = (job.work / "outputs" / "cache" / "base_learners").glob("*.pt")
    learner = max(kept, key=lambda path: path.stat().st_mtime)
    kinds, seeds = {"with": [], "without": ["ablation=table6_none"]}, SEEDS[:1] if job.rehearse else SEEDS
    # They share the GPU and the cores, and each of them starts, validates and is tested.
    share = len(kinds) * len(seeds)
    steps = 4 if job.rehearse else max(int(0.6 * (job.left() - 40) * rate / share), 30)
    words = [*training_words(job, steps, validations=2), f"base_ckpt={learner}", "dataset.num_test_seeds=1"]
    words += [f"num_workers={job.workers // share}"]
    job.row("steps", "training steps of each", steps)
    started = {
        (kind, seed): start_training(job, f"{kind}_{seed}", [*words, *changes, f"seed={seed}"])
        for seed in seeds
        for kind, changes in kinds.items()
    }
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for (kind, seed), (folder, child) in started.items():
        result = finish_training(job, folder, child)
        if result is not None:
            miou = 100 * (result["test"]["miou"] or 0.0)
            found[kind].append(miou)
            job.row(f"{kind}_{seed}", f"mIoU {kind} distillation, seed {seed}", miou, "%")
    if all(found.values()):
        difference = statistics.fmean(found["with"]) - statistics.fmean(found["without"])
        job.row("difference", "mean with distillation less mean without", difference, "points")


def training_words(job: Job, steps: int, *, validations: int) -> list[str]:
    """The command line of a training of so many steps."""
    side = 65 if job.rehearse else 473
    words = [*VOC, *backbone(job, "mobilenet_v2"), f"dataset.image_size={side}", f"dataset.base_image_size={side}"]
    words += [f"batch_size={batch_size(job)}", f"num_workers={job.workers}", f"optim.max_steps={steps}"]
    words += [f"dataset.episodes_per_epoch={max(steps // validations, 1) * batch_size(job)}"]
    if job.rehearse:
        words += ["optim.base.batch_size=2", "optim.base.max_steps=2", "dataset.min_area=128", "trainer=cpu"]
        return [*words, "trainer.log_every_n_steps=1", *SHORT_TEST]
    words += ["optim.base.batch_size=16", "optim.base.max_steps=300"]
    return [*words, "dataset.num_val_episodes=100", "dataset.num_test_episodes=1000", "dataset.num_test_seeds=2"]


def batch_size(job: Job) -> int:
    """Episodes a step of the real training."""
    return 2 if job.rehearse else 8


def training_rate(job: Job) -> float:
    """Steps of stage 2 a second, by a short run that also trains the base learner; found once for all sections.

    Raises:
        RuntimeError: The run has failed.
    """
    kept = job.work / "rate.json"
    if kept.is_file():
        return float(json.loads(kept.read_text(encoding="utf-8")))
    words = [*training_words(job, 2 if job.rehearse else 60, validations=1), *SHORT_TEST]
    folder, child = start_training(job, "rate", words)
    result = finish_training(job, folder, child)
    if result is None:
        raise RuntimeError("the short run that finds the rate has failed")
    job.row("stage1", "stage 1, its start and validation included", result["timings"]["base_learner"], "s")
    rate = settled(read_log(folder, "throughput/episodes_per_second") or [1.0]) / batch_size(job)
    kept.write_text(json.dumps(rate), encoding="utf-8")
    return rate


def say_logged(job: Job, folder: Path, goal: str) -> None:
    """Speed, data wait and memory as a run itself has logged them; `goal` is the data wait's."""
    logged = (
        ("episodes_per_second", "training", "episodes/s", ""),
        ("data_wait", f"share of the training's time that it waits for data, {job.workers} workers", "", goal),
        ("gpu_memory_gib", "peak memory", "GiB", ""),
    )
    for key, label, unit, target in logged:
        values = read_log(folder, f"throughput/{key}")
        if values:
            job.row(key, label, settled(values), unit, target)


# ------------------------------------------------------------------------------------------------------------ profile


def run_profile(job: Job) -> None:
    """Kernels, launches, waits and idle time: of real training steps, then of the step alone."""
    _profile_run(job)
    for side, shots, batch in ((65, 1, 2),) if job.rehearse else ((473, 1, 4), (633, 5, 4)):
        if job.left() < 5:
            job.note(f"no time left for the step alone at {side}², {shots}-shot, and what comes after it")
            return
        name = "resnet_narrow" if job.rehearse else "resnet50"
        spec = Spec("train", side=side, shots=shots, batch=batch, precision="bf16", device=job.device, backbone=name)
        call = build_case(spec)
        for _ in range(3):
            call()
        once = time_calls(call, 1 if job.rehearse else 10, job.device)
        figures = trace_calls(call, 2 if job.rehearse else 5, job.device)
        say_profile(job, f"step_{side}_{shots}shot", f"step alone, {side}², {shots}-shot, batch {batch}", figures, once)


def _profile_run(job: Job) -> None:
    """Some steps of a training with ResNet-50, random weights, whose every callback runs."""
    side, batch, first, steps = (65, 2, 2, 2) if job.rehearse else (473, 4, 120, 8)
    learner, trace = job.work / "untrained_base.pt", job.work / "trace.json"
    words = ["dataset=pascal", "fold=0", *backbone(job, "resnet50"), f"dataset.image_size={side}"]
    write_untrained_base(learner, words)
    words += [
        *("dataset.train_list=voc", f"base_ckpt={learner}", "trainer.precision=bf16-mixed", *SHORT_TEST),
        *(f"batch_size={batch}", f"num_workers={job.workers}", "callbacks.pictures=null", "callbacks.curves=null"),
        *("optim.max_epochs=-1", f"optim.max_steps={first + steps}"),
        *(f"dataset.episodes_per_epoch={(first + steps) * batch}", "+callbacks.trace._target_=gpu_trace.StepTrace"),
        *(f"+callbacks.trace.path={trace}", f"+callbacks.trace.first={first}", f"+callbacks.trace.steps={steps}"),
        *(["trainer=cpu", "dataset.min_area=128", "trainer.log_every_n_steps=1"] if job.rehearse else []),
    ]
    folder, child = start_training(job, "profiled", words)
    if finish_training(job, folder, child) is None:
        return
    figures = StepFigures(**json.loads(trace.read_text(encoding="utf-8")))
    every = 1 if job.rehearse else 10
    before = first // every  # what was logged before the profiler began
    rates = read_log(folder, "throughput/episodes_per_second")[:before]
    seconds = batch / settled(rates) if rates else None
    say_profile(job, "run", f"training, {side}², 1-shot, batch {batch}", figures, seconds, "≥ 0.85")
    waits = read_log(folder, "throughput/data_wait")[:before]
    if waits:
        label = f"training: share of the time that it waits for data, {job.workers} workers"
        job.row("data_wait", label, settled(waits), target="≤ 0.05")


def say_profile(job: Job, name: str, title: str, figures: StepFigures, seconds: float | None, goal: str = "") -> None:
    """The figures of a trace.

    Args:
        job: Gets them.
        name: Begins the keys.
        title: Begins the labels.
        figures: From the trace.
        seconds: Of a step without the profiler, whose own delays leave a GPU idle.
        goal: What the busy share should be.
    """
    if seconds:
        job.row(f"{name}/step_ms", f"{title}: a step", 1e3 * seconds, "ms")
        busy = figures.busy_ms / 1e3 / seconds
        job.row(f"{name}/busy", f"{title}: share of a step in which the device works", busy, target=goal)
    job.row(f"{name}/idle", f"{title}: idle share under the profiler", figures.idle)
    counted = {
        "kernels": "kernels",
        "launches": "launches",
        "waits": "waits of the CPU for the device",
        "to_host": "copies to the host",
        "to_device": "copies to the device",
    }
    for key, label in counted.items():
        job.row(f"{name}/{key}", f"{title}: {label} a step", getattr(figures, key))
    for place, (kernel, share, spent, times) in enumerate(figures.largest, start=1):
        label = f"{title}: {place}. `{kernel[:70].replace('|', '/')}`, {times:.3g} times, {spent:.2f} ms"
        job.row(f"{name}/kernel{place}", label, 100 * share, "%")
