"""What the sections of `gpu.py` share: what they are given, the pictures, and runs of the entry point."""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from benchmark_measure import Row
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from hdmnet.config.paths import HYDRA_VERSION_BASE, conf_dir
from hdmnet.config.schemas import register_schemas
from hdmnet.config.values import to_stored
from hdmnet.run.build import build_base_learner, build_model
from hdmnet.run.checkpoints import save_base_learner
from hdmnet.runtime.checkpoint_file import RUN_KEY, write_atomically
from hdmnet.runtime.provenance import available_cpus

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = "mobilenet_v2_imagenet.pth"
NUM_BASE = 15  # of PASCAL-5i


@dataclass
class Job:
    """What a section is given.

    Attributes:
        device: "cuda", or "cpu" of a rehearsal.
        rehearse: Tiny sizes.
        end: When it has to be over, by `time.monotonic`.
        work: Scratch folder of all sections.
        spool: Gets the lines.
    """

    device: str
    rehearse: bool
    end: float
    work: Path
    spool: Path

    def left(self) -> float:
        """Seconds that are left."""
        return self.end - time.monotonic()

    def say(self, **line: Any) -> None:
        """Write a line, whole, that is taken up at once: row, note or machine."""
        descriptor = os.open(self.spool, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(descriptor, (json.dumps(line, ensure_ascii=False) + "\n").encode())
        finally:
            os.close(descriptor)

    def row(self, key: str, label: str, value: float, unit: str = "", target: str = "") -> None:
        """A figure; see `benchmark_measure.Row`."""
        self.say(row=asdict(Row(key, label, value, unit, target)))

    def note(self, text: str) -> None:
        """A remark."""
        self.say(note=text)

    @property
    def workers(self) -> int:
        """Loader workers: 12 where there are cores enough."""
        return 0 if self.rehearse else max(min(12, available_cpus() - 2), 1)


# ---------------------------------------------------------------------------------------------- pictures and networks


def data_dir(job: Job) -> Path:
    """The folder that holds pascal/: the one given, else the embedded shapes written as such a tree."""
    given = Path(os.environ.get("HDMNET_DATA", "data")).absolute()
    if (given / "pascal" / "JPEGImages").is_dir():
        return given
    made = job.work / "data"
    if not made.is_dir():
        size = ("96", "128") if job.rehearse else ("375", "500")
        number = ("40", "30") if job.rehearse else ("320", "320")
        script = str(ROOT / "scripts" / "data" / "write_shapes.py")
        command = [sys.executable, script, "--format", "voc", "--output", str(made / "pascal"), "--image-size", *size]
        subprocess.run([*command, "--num-train", number[0], "--num-val", number[1]], check=True, cwd=ROOT)
    job.note("HDMNET_DATA/pascal is not there: the pictures are the embedded shapes, written as a VOC tree")
    return made


def backbone(job: Job, name: str) -> list[str]:
    """The backbone's words: a small one in a rehearsal; ImageNet's weights where they are at hand."""
    if job.rehearse:
        return ["backbone=resnet_narrow"]
    file = Path(os.environ.get("HDMNET_WEIGHTS", "weights")).absolute() / WEIGHTS
    if name == "mobilenet_v2" and file.is_file():
        return [f"backbone={name}", f"backbone.weights={file}"]
    return [f"backbone={name}", "backbone.weights=null"]


def compose_train(words: Sequence[str]) -> DictConfig:
    """The config of `python -m hdmnet.train` with these words."""
    register_schemas()
    with initialize_config_dir(config_dir=str(conf_dir()), version_base=HYDRA_VERSION_BASE):
        return compose("train", overrides=list(words))


def write_untrained(path: Path, words: Sequence[str]) -> None:
    """A run's checkpoint of a network with random weights: for times, which do not depend on them."""
    cfg = compose_train(words)
    torch.manual_seed(0)
    model = build_model(cfg, build_base_learner(cfg, NUM_BASE, weights=None))
    facts = {"method": cfg.model.name, "shot": cfg.shot, "num_base": NUM_BASE}
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    write_atomically({"state_dict": state, RUN_KEY: {"config": to_stored(cfg), "facts": facts}}, path)


def write_untrained_base(path: Path, words: Sequence[str]) -> None:
    """A base learner with random weights, likewise."""
    cfg = compose_train(words)
    torch.manual_seed(0)
    about = {"fold": cfg.fold, "backbone": cfg.backbone.name, "dataset": cfg.dataset.name, "base_miou": None}
    save_base_learner(build_base_learner(cfg, NUM_BASE, weights=None), path, about)


# ---------------------------------------------------------------------------------------------- runs of the entry point


def start_training(job: Job, name: str, words: Sequence[str]) -> tuple[Path, subprocess.Popen[bytes]]:
    """Begin `python -m hdmnet.train`; returns the run's folder and the process."""
    folder = job.work / "outputs" / name
    paths = [str(ROOT / "scripts" / "benchmarks"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "hdmnet.train", *words, f"paths.data_dir={data_dir(job)}"]
    command += [f"paths.output_dir={job.work / 'outputs'}", f"hydra.run.dir={folder}"]
    command += ["trainer.enable_progress_bar=false"]
    with (job.work / f"{name}.txt").open("w") as log:
        return folder, subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)


def finish_training(job: Job, folder: Path, child: subprocess.Popen[bytes]) -> dict[str, Any] | None:
    """Wait for a training; returns its result, or None, with a note, where it failed or had no time."""
    name = folder.name
    try:
        child.wait(max(job.left(), 0.1))
    except subprocess.TimeoutExpired:
        child.kill()
        job.note(f"{name}: cut off; val/miou until then: {read_log(folder, 'val/miou')}")
        return None
    if child.returncode:
        tail = (job.work / f"{name}.txt").read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
        job.note(f"{name}: FAILED with exit code {child.returncode}: {' / '.join(tail)}")
        return None
    result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return result


def read_log(folder: Path, name: str) -> list[float]:
    """A column of a run's metrics.csv, without the empty cells."""
    try:
        with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
            return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]
    except FileNotFoundError:
        return []


def settled(values: Sequence[float]) -> float:
    """Median without the first value, during which all warms up."""
    return statistics.median(values[1:] or values)
