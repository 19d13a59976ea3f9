"""Shows where a checkpoint fails: single test episodes whole, the worst and the best, and what is mistaken for what.

    python scripts/inspect/inspect_episode.py RUN/checkpoints/best.ckpt --episode 17 --seed 0 --out DIR
    python scripts/inspect/inspect_episode.py RUN/checkpoints/best.ckpt --worst 8 --best 8 seeds=1 episodes=9 --out DIR

Takes the overrides of `python -m hdmnet.evaluate`. An episode is drawn as in the paper's Figures 12 and 13: supports,
query, predictions, prior masks, correlation maps of all stages. `--worst` or `--best` runs the test and leaves
`episodes.csv` (IoU of each at the query's original size), `worst.png`, `best.png`, and the classes that lie under the
false positives: `confusion.csv` (pixels) and `confusion.png`. `--seed` counts the test seeds from 0.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [path for path in (str(ROOT), str(Path(__file__).parent)) if path not in sys.path]

import confusion  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from compose_evaluation import compose_config  # noqa: E402
from episode_scores import EpisodeScore, EpisodeScores  # noqa: E402

from hdmnet.callbacks.build import build_callbacks  # noqa: E402
from hdmnet.cli.parser import OneLineParser, run_main  # noqa: E402
from hdmnet.data.datamodules.few_shot import FewShotDataModule  # noqa: E402
from hdmnet.data.episodes.samples import EvalEpisodes  # noqa: E402
from hdmnet.data.types import collate_episodes  # noqa: E402
from hdmnet.run.build import build_trainer  # noqa: E402
from hdmnet.run.pipeline import prepare_evaluation  # noqa: E402
from hdmnet.runtime.atomic import replacing  # noqa: E402
from hdmnet.runtime.warnings import silence_known_warnings  # noqa: E402
from hdmnet.tasks.few_shot import FewShotTask  # noqa: E402
from hdmnet.visual.episode_grid import Picture, draw_batch_item, save_sheet  # noqa: E402

NAME = "inspect_episode"


def test_episodes(data: FewShotDataModule) -> EvalEpisodes:
    """The test episodes of all seeds, whole."""
    return EvalEpisodes(
        data.dataset,
        data.test_manifests,
        classes=data.class_split.test,
        image_size=data.image_size,
        support_mask=data.support_mask,
    )


@torch.no_grad()
def draw(
    task: FewShotTask, data: FewShotDataModule, seed: int, index: int, callback: EpisodeScores
) -> tuple[Picture, EpisodeScore]:
    """Run one episode and draw it.

    Args:
        task: In evaluation mode, on the CPU.
        data: Set up for the test.
        seed: Place of the test seed.
        index: Place in the seed's manifest.
        callback: Scores it.

    Returns:
        The row, and the score.

    Raises:
        ValueError: There is no such episode.
    """
    manifests = data.test_manifests
    if not 0 <= seed < len(manifests):
        raise ValueError(f"--seed {seed}: expected 0 to {len(manifests) - 1}; seeds=N makes more")
    if not 0 <= index < len(manifests[seed]):
        raise ValueError(f"--episode {index}: expected 0 to {len(manifests[seed]) - 1}; episodes=N makes more")
    number = sum(len(manifest) for manifest in manifests[:seed]) + index
    batch = data.on_after_batch_transfer(collate_episodes([test_episodes(data)[number]]), 0)
    output = {"episode": batch, "output": task(batch), "class_names": task.class_names}
    score = callback.score(output)[0]
    name = task.class_names[score.class_index]
    where = f"{name}, episode {index} of seed {seed}: {100 * score.iou:.1f} % at original size; here"
    shown = {**output, "class_names": [where] * len(task.class_names)}
    row = draw_batch_item(shown, 0, mean=task.image_mean, std=task.image_std, reported=cast(Any, task.model).reported)
    return row, score


def save(rows: Sequence[Picture], heading: str, path: Path) -> None:
    """Write the rows as one sheet."""
    save_sheet(rows, path, heading)
    print(f"wrote {path}")


def write_episodes(scores: Sequence[EpisodeScore], names: Sequence[str], path: Path) -> None:
    """Write the scores of all episodes as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["seed", "episode", "class", "query", "iou", "true_positive_pixels", "false_positive_pixels"])
    for one in scores:
        false = int(one.false_positives.sum())
        row = [one.seed_index, one.index, names[one.class_index], one.query_id, f"{one.iou:.6f}"]
        writer.writerow([*row, one.true_positives, false])
    with replacing(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
    print(f"wrote {path}")


def write_confusion(scores: Sequence[EpisodeScore], names: Sequence[str], classes: Sequence[str], folder: Path) -> None:
    """Write and print what lies under the false positives.

    Args:
        scores: Of all episodes.
        names: Of the novel classes.
        classes: Of all classes, that of value 1 first.
        folder: Where to.
    """
    columns = (confusion.BACKGROUND, *classes)
    counts = np.zeros((len(names), len(columns)), dtype=np.int64)
    predicted = np.zeros(len(names), dtype=np.int64)
    for one in scores:
        counts[one.class_index] += one.false_positives
        predicted[one.class_index] += one.true_positives + one.false_positives.sum()
    print(confusion.summarise(counts, predicted, names, columns))
    with replacing(folder / "confusion.csv") as temporary:
        temporary.write_text(confusion.to_csv(counts, predicted, names, columns), encoding="utf-8")
    confusion.draw(
        counts, predicted, names, columns, folder / "confusion.png", f"False positives of {len(scores)} episodes"
    )
    print(f"wrote {folder / 'confusion.csv'} and {folder / 'confusion.png'}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; ValueError of one line where it is wrong."""
    parser = OneLineParser(prog=NAME, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ckpt", type=Path, help="checkpoint of a run or of the official release")
    parser.add_argument("overrides", nargs="*", help="key=value as of python -m hdmnet.evaluate")
    parser.add_argument("--out", type=Path, default=Path("inspected"), help="folder for the files (default: inspected)")
    parser.add_argument("--episode", type=int, help="draw this episode")
    parser.add_argument("--seed", type=int, default=0, help="test seed of --episode, from 0 (default: 0)")
    parser.add_argument("--worst", type=int, default=0, metavar="N", help="draw the N episodes of lowest IoU")
    parser.add_argument("--best", type=int, default=0, metavar="N", help="draw the N episodes of highest IoU")
    arguments = parser.parse_intermixed_args(argv)
    if min(arguments.worst, arguments.best) < 0:
        parser.error(f"--worst {arguments.worst} --best {arguments.best}: expected 0 or more")
    if arguments.episode is None and not arguments.worst and not arguments.best:
        parser.error("nothing to show: give --episode N, --worst N or --best N")
    return arguments


def run(argv: Sequence[str] | None) -> bool:
    """Draw what is asked for."""
    arguments = parse(argv)
    silence_known_warnings()
    with tempfile.TemporaryDirectory() as run_dir:
        cfg, checkpoint = compose_config(arguments.ckpt, arguments.overrides, run_dir)
        task, data = prepare_evaluation(cfg, checkpoint)
        callback = EpisodeScores(data.dataset)
        if arguments.worst or arguments.best:
            trainer = build_trainer(cfg, "test", callbacks=[*build_callbacks(cfg, "control"), callback], logger=False)
            trainer.test(task, datamodule=data, verbose=False)
            task.cpu()
    task.eval()
    folder: Path = arguments.out
    if callback.scores:
        write_episodes(callback.scores, task.class_names, folder / "episodes.csv")
        write_confusion(callback.scores, task.class_names, data.dataset.class_names, folder)
    ranked = sorted(callback.scores, key=lambda one: one.iou)  # of equal ones the earlier first
    for name, chosen in (("worst", ranked[: arguments.worst]), ("best", ranked[::-1][: arguments.best])):
        if chosen:
            rows = [draw(task, data, one.seed_index, one.index, callback)[0] for one in chosen]
            save(rows, f"the {len(chosen)} {name} of {len(ranked)} episodes", folder / f"{name}.png")
    if arguments.episode is not None:
        row, score = draw(task, data, arguments.seed, arguments.episode, callback)
        print(f"{task.class_names[score.class_index]}, query {score.query_id}: IoU {100 * score.iou:.2f} %")
        save([row], arguments.ckpt.name, folder / f"episode_seed{arguments.seed}_{arguments.episode}.png")
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    return run_main(lambda: run(argv), NAME)


if __name__ == "__main__":
    sys.exit(main())
