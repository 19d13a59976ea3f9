"""Runs the doors in this process, as their command lines do: importing torch each time would take most of the time."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[2]

# Some seconds of the embedded data: few and small pictures, four steps of each stage, two validations.
WHOLE = (
    *("trainer=cpu", "num_workers=0", "dataset.image_size=65", "dataset.num_train=40", "dataset.num_val=30"),
    *("dataset.episodes_per_epoch=4", "dataset.num_val_episodes=4", "dataset.num_test_episodes=6"),
    *("dataset.num_test_seeds=2", "dataset.controls=false", "optim.max_steps=4", "optim.batch_size=2"),
    *("optim.base.max_steps=4", "optim.base.batch_size=4", "optim.base.num_val_samples=4"),
    *(
        "trainer.log_every_n_steps=1",
        "optim.lr=1e-6",
        "optim.warmup_steps=0",
        "optim.base.warmup_steps=0",
        "callbacks.pictures.num_episodes=2",
    ),
)
SHAPES = (*(word for word in WHOLE if "pictures" not in word), "callbacks.pictures=null", "callbacks.curves=null")
# The same for a real-format tree; everything else is what the dataset's own file says.
REAL = (
    *("trainer=cpu", "num_workers=0", "dataset.image_size=65", "dataset.base_image_size=65", "dataset.min_area=128"),
    *("dataset.num_val_episodes=2", "dataset.num_test_episodes=3", "dataset.num_test_seeds=2", "trainer.max_steps=2"),
    *("optim.batch_size=2", "optim.base.batch_size=2", "optim.base.num_val_samples=4"),
    *("backbone=resnet18", "backbone.weights=null", "backbone.feature_channels=64"),
    "callbacks.pictures.num_episodes=1",
)


@dataclass
class Answer:
    """What a command gave."""

    code: int
    out: str
    err: str

    @property
    def folder(self) -> Path:
        """The run's folder, as the last line names it."""
        return Path(self.out.strip().splitlines()[-1].partition(": ")[2])

    @property
    def result(self) -> dict[str, Any]:
        return json.loads((self.folder / "result.json").read_text(encoding="utf-8"))

    def refusal(self) -> str:
        """The one line of a command that was refused."""
        assert self.code in (1, 2), (self.code, self.out, self.err)
        lines = [line for line in self.err.splitlines() if line.strip() and "mask/s]" not in line]  # the catalog's bar
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        # No training began: neither stage has written a thing.
        assert "training it (stage 1)" not in self.out
        return lines[0].removeprefix("error: ")


def call(door: str, output: Path, *words: str) -> Answer:
    """`python -m hdmnet.<door> words` in this process, the runs under `output`."""
    main = importlib.import_module(f"hdmnet.{door}").main
    out, err, code = io.StringIO(), io.StringIO(), 0
    command = _as_a_command(door, [*words, f"paths.output_dir={output}"])
    with command, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except Exception as error:
            error.add_note(out.getvalue())
            raise
    return Answer(code, out.getvalue(), err.getvalue())


def run(door: str, output: Path, *words: str) -> Answer:
    """As `call`, of a command that must succeed."""
    answer = call(door, output, *words)
    assert answer.code == 0, answer.err
    return answer


def run_process(door: str, output: Path, *words: str, timeout: float = 240, threads: int = 1) -> Answer:
    """The command in a process of its own."""
    leave_out = ("HYDRA_FULL_ERROR", "HDMNET_JOB_CONFIG")
    environment = {name: value for name, value in os.environ.items() if name not in leave_out}
    done = subprocess.run(
        [sys.executable, "-m", f"hdmnet.{door}", *words, f"paths.output_dir={output}"],
        cwd=output.parent,
        env={
            **environment,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)),
        },
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


@contextlib.contextmanager
def _as_a_command(door: str, words: list[str]) -> Iterator[None]:
    """Sets what a process of its own would have, and puts back what a door leaves behind."""
    argv, environment = sys.argv, dict(os.environ)
    root_logger, generator = logging.getLogger(), torch.get_rng_state()
    handlers, level = root_logger.handlers[:], root_logger.level
    sys.argv = [door, *words]
    # For the jobs of a multirun.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    try:
        yield
    finally:
        sys.argv = argv
        HydraConfig.instance().cfg = None
        os.environ.clear()
        os.environ.update(environment)
        root_logger.handlers[:] = handlers  # Hydra's write to a stdout that is closed by now
        root_logger.setLevel(level)
        torch.set_rng_state(generator)


def load(path: Path) -> dict[str, Any]:
    """A checkpoint, by the safe way only."""
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content


def same_weights(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold the same bits."""
    a, b = load(one)["state_dict"], load(other)["state_dict"]
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def enliven(checkpoint: Path, output: Path) -> Path:
    """Shifts and sharpens the last layer so that about half of the pixels become foreground; writes it to `output`."""
    from hdmnet.data.types import collate_episodes
    from hdmnet.run import build
    from hdmnet.run.checkpoints import load_strictly, run_state_dict

    content = load(checkpoint)
    cfg = OmegaConf.create(content["hdmnet"]["config"])
    data = build.build_few_shot_data(cfg, build.build_dataset(cfg))
    data.setup("test")
    model = build.build_untrained(cfg, data.num_base).eval()
    load_strictly(model, run_state_dict(content), "checkpoint")
    dataset = data.test_dataloader().dataset
    batch = data.on_after_batch_transfer(collate_episodes([dataset[index] for index in range(4)]), 0)
    with torch.no_grad():
        logits = model(batch.query_image, batch.support_images, batch.support_masks).logits
    weight, bias = (content["state_dict"][f"model.meta_learner.decoder.head.4.{name}"] for name in ("weight", "bias"))
    difference = logits[:, 1] - logits[:, 0]
    bias[0] += difference.median()
    for tensor in (weight, bias):
        tensor.mul_(5 / difference.std())
    torch.save(content, output)
    return output


def figures(result: dict[str, Any]) -> dict[str, Any]:
    """The measured part of a result."""
    return {key: result[key] for key in ("test", "test_no_ensemble", "manifest_sha256")}
