"""Does `hdmnet.predict` give what `hdmnet.evaluate` scores? The same test episodes through both, pixel by pixel.

    python scripts/inspect/compare_predict.py RUN/checkpoints/best.ckpt seeds=1 episodes=100 [--out DIR] [--json FILE]

Takes the overrides of `python -m hdmnet.evaluate`. Each episode's supports and query are written as files, segmented by
`hdmnet.predict` and by `Segmenter`, and the mask PNGs are pooled as the test protocol pools its predictions: per class,
at the query's original size. `--out` keeps the files, among them the overlays to look at. Expect equal masks from the
two ways to one's own pictures; and beside the evaluator's a few pixels in a million whose two logits are equal up to
rounding, as it encodes other numbers of pictures together (`reuse=false batch_size=1`: none).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [path for path in (str(ROOT), str(Path(__file__).parent)) if path not in sys.path]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from compose_evaluation import compose_config  # noqa: E402
from hydra import compose, initialize_config_dir  # noqa: E402
from omegaconf import DictConfig  # noqa: E402
from PIL import Image  # noqa: E402
from tqdm import tqdm  # noqa: E402

from hdmnet.apps.predict import predict  # noqa: E402
from hdmnet.apps.segmenter import Segmenter  # noqa: E402
from hdmnet.callbacks.build import build_callbacks  # noqa: E402
from hdmnet.cli.parser import OneLineParser, run_main  # noqa: E402
from hdmnet.config.paths import HYDRA_VERSION_BASE, conf_dir, make_paths_absolute  # noqa: E402
from hdmnet.data.datamodules.few_shot import FewShotDataModule  # noqa: E402
from hdmnet.data.episodes.manifest import EpisodeSpec  # noqa: E402
from hdmnet.metrics import FewShotIoU  # noqa: E402
from hdmnet.models.method import FINAL  # noqa: E402
from hdmnet.run.build import build_trainer  # noqa: E402
from hdmnet.run.pipeline import prepare_evaluation  # noqa: E402
from hdmnet.runtime.atomic import replacing  # noqa: E402
from hdmnet.runtime.checkpoint_file import RUN_KEY  # noqa: E402
from hdmnet.runtime.warnings import silence_known_warnings  # noqa: E402
from hdmnet.tasks.few_shot import FewShotTask  # noqa: E402

NAME = "compare_predict"


@dataclass
class Comparison:
    """What was compared.

    Attributes:
        evaluator: mIoU of the evaluator, a fraction, of each test seed; `predict` likewise, from its mask PNGs.
        pixels: Pixels of all queries.
        segmenter_differs: Pixels in which the PNGs and `Segmenter`'s masks differ.
        evaluator_differs: By how much the true and false positives of the episodes differ from the evaluator's, in all.
    """

    evaluator: list[float]
    predict: list[float] = field(default_factory=list)
    episodes: int = 0
    pixels: int = 0
    segmenter_differs: int = 0
    evaluator_differs: int = 0


def evaluate(cfg: DictConfig, task: FewShotTask, data: FewShotDataModule) -> list[float]:
    """Run the test; gives the mIoU of each seed."""
    trainer = build_trainer(cfg, "evaluate", callbacks=build_callbacks(cfg, "control"), logger=False)
    trainer.test(task, datamodule=data, verbose=False)
    return [float(seed["miou"]) for seed in task.test_results[FINAL]]


def write_inputs(data: FewShotDataModule, spec: EpisodeSpec, folder: Path) -> tuple[Path, list[tuple[Path, Path]]]:
    """Write an episode's pictures and support masks (0, 1, 255) as PNGs.

    Returns:
        Path of the query, and of picture and mask of each support.
    """
    folder.mkdir(parents=True)
    query = folder / "query.png"
    Image.fromarray(data.dataset.read_image(spec.query_id)).save(query)
    supports = []
    for number, name in enumerate(spec.support_ids):
        supports.append((folder / f"support{number}.png", folder / f"support{number}_marked.png"))
        Image.fromarray(data.dataset.read_image(name)).save(supports[-1][0])
        Image.fromarray(binary(data, name, spec.class_value)).save(supports[-1][1])
    return query, supports


def binary(data: FewShotDataModule, image_id: str, class_value: int) -> Any:
    """(H0, W0) uint8: 1 the class, 255 ignored, 0 all else."""
    return data.dataset.read_class_mask(image_id, class_value)


def run_predict(ckpt: Path, query: Path, supports: Sequence[tuple[Path, Path]], output: Path) -> Any:
    """`python -m hdmnet.predict` in this process; gives its mask (H0, W0) uint8, 0 and 255."""
    with initialize_config_dir(config_dir=str(conf_dir()), version_base=HYDRA_VERSION_BASE):
        cfg = compose("predict", overrides=["device=cpu"])
    cfg.ckpt = str(ckpt)
    make_paths_absolute(cfg, output)
    silence = io.StringIO()
    with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):  # a bar an episode is too many
        predict(cfg, {"object": list(supports)}, [query])
    with Image.open(output / f"{query.stem}_mask.png") as mask:
        return np.asarray(mask)


def compare(cfg: DictConfig, ckpt: Path, folder: Path, checkpoint: dict[str, Any]) -> Comparison:
    """Run all three ways over the same episodes.

    Args:
        cfg: The config of `hdmnet.evaluate`.
        ckpt: A run's checkpoint.
        folder: For the files.
        checkpoint: Its content.

    Raises:
        ValueError: It is of the official release.
    """
    if RUN_KEY not in checkpoint:
        raise ValueError(f"{ckpt} is of the official release; expected checkpoints/best.ckpt of a run's folder")
    task, data = prepare_evaluation(cfg, checkpoint)
    comparison = Comparison(evaluate(cfg, task, data))
    episodes = task.episodes
    segmenter = Segmenter.from_checkpoint(ckpt, device="cpu")
    metrics = [FewShotIoU(len(data.novel_names)) for _ in data.test_manifests]
    places = zip(episodes.seed.tolist(), episodes.index.tolist(), episodes.class_index.tolist(), strict=True)
    counts = episodes.pixels[FINAL].tolist()
    for (seed, index, place), counted in tqdm(list(zip(places, counts, strict=True)), desc="predict", unit="episode"):
        spec = data.test_manifests[seed][index]
        home = folder / f"seed{seed}_{index:04d}_{task.class_names[place]}"
        query, supports = write_inputs(data, spec, home)
        mask = run_predict(ckpt, query, supports, home / "out")
        direct = segmenter.fit(*zip(*supports, strict=True)).predict(query).mask
        truth = binary(data, spec.query_id, spec.class_value)
        predicted = torch.from_numpy(mask == 255)[None]
        metrics[seed].update(predicted, torch.from_numpy(truth)[None], torch.tensor([place]))
        right, wrong = int(((mask == 255) & (truth == 1)).sum()), int(((mask == 255) & (truth == 0)).sum())
        comparison.episodes += 1
        comparison.pixels += mask.size
        comparison.segmenter_differs += int((mask != direct * np.uint8(255)).sum())
        comparison.evaluator_differs += abs(right - counted[1][1]) + abs(wrong - counted[0][1])
    comparison.predict = [float(metric.compute()["miou"]) for metric in metrics]
    return comparison


def report(comparison: Comparison) -> str:
    """The lines that are printed."""
    lines = [
        f"seed {seed}: mIoU {100 * one:.4f} % by evaluate, {100 * other:.4f} % from predict's mask PNGs"
        for seed, (one, other) in enumerate(zip(comparison.evaluator, comparison.predict, strict=True))
    ]
    lines.append(
        f"{comparison.episodes} episodes, {comparison.pixels:,} pixels: predict and Segmenter differ in "
        f"{comparison.segmenter_differs:,}, true and false positives of predict and evaluate by "
        f"{comparison.evaluator_differs:,}"
    )
    return "\n".join(lines)


def run(argv: Sequence[str] | None) -> bool:
    """Compare as the command line says."""
    parser = OneLineParser(prog=NAME, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ckpt", type=Path, help="checkpoint of a run")
    parser.add_argument("overrides", nargs="*", help="key=value as of python -m hdmnet.evaluate")
    parser.add_argument("--out", type=Path, help="keep all files in this folder, which must be new")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.out is not None and arguments.out.exists():
        raise FileExistsError(f"--out {arguments.out} exists, expected a new folder: remove it or choose another")
    silence_known_warnings()
    with tempfile.TemporaryDirectory() as scratch:
        cfg, checkpoint = compose_config(arguments.ckpt, arguments.overrides, scratch)
        comparison = compare(cfg, arguments.ckpt, arguments.out or Path(scratch) / "files", checkpoint)
    print(report(comparison))
    if arguments.json is not None:
        with replacing(arguments.json) as temporary:
            temporary.write_text(json.dumps(asdict(comparison), indent=2) + "\n", encoding="utf-8")
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    return run_main(lambda: run(argv), NAME)


if __name__ == "__main__":
    sys.exit(main())
