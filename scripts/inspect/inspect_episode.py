"""Shows where a checkpoint fails: single test episodes whole, the worst and the best, and what is mistaken for what.

    python scripts/inspect/inspect_episode.py RUN/checkpoints/best.ckpt --episode 17 --seed 0 --out DIR
    python scripts/inspect/inspect_episode.py RUN/checkpoints/best.ckpt --worst 8 --best 8 seeds=1 episodes=9 --out DIR

Takes the overrides of `python -m hdmnet.evaluate`. An episode is drawn as in the paper's Figures 12 and 13: supports,
query, predictions, prior masks, correlation maps of all stages. `--worst` or `--best` runs the test and leaves
`episodes.csv` (pixels of each at the query's original size), `worst.png`, `best.png`, and the classes that lie under
the false positives: `confusion.csv` (pixels) and `confusion.png`. `--seed` counts the test seeds from 0.
"""

from __future__ import annotations

import argparse
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

from hdmnet.callbacks.build import build_callbacks  # noqa: E402
from hdmnet.cli.parser import OneLineParser, run_main  # noqa: E402
from hdmnet.data.datamodules.few_shot import FewShotDataModule  # noqa: E402
from hdmnet.data.episodes.samples import EvalEpisodes  # noqa: E402
from hdmnet.data.types import collate_episodes  # noqa: E402
from hdmnet.models.method import FINAL  # noqa: E402
from hdmnet.run.build import build_trainer  # noqa: E402
from hdmnet.run.pipeline import prepare_evaluation  # noqa: E402
from hdmnet.runtime.atomic import replacing  # noqa: E402
from hdmnet.runtime.warnings import silence_known_warnings  # noqa: E402
from hdmnet.tasks.episode_table import EPISODES, EpisodeTable, tabulate_batch  # noqa: E402
from hdmnet.tasks.feature_store import count_predictions  # noqa: E402
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
def draw(task: FewShotTask, data: FewShotDataModule, seed: int, index: int) -> tuple[Picture, str]:
    """Run one episode and draw it.

    Args:
        task: In evaluation mode, on the CPU.
        data: Set up for the test.
        seed: Place of the test seed.
        index: Place in the seed's manifest.

    Returns:
        The row, and one line that tells class, query and IoU.

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
    segmented = task(batch)
    masks = cast("list[torch.Tensor]", batch.query_mask_original)
    pixels = count_predictions(segmented, FINAL, masks, mask_index=[0])
    iou = tabulate_batch(batch, task.class_names, [0], {FINAL: (pixels, [0])}).ious(FINAL)[0]
    name = task.class_names[int(batch.class_index)]
    where = f"{name}, episode {index} of seed {seed}: {100 * iou:.1f} % at original size; here"
    shown = {"episode": batch, "output": segmented, "class_names": [where] * len(task.class_names)}
    row = draw_batch_item(shown, 0, mean=task.image_mean, std=task.image_std, reported=cast(Any, task.model).reported)
    return row, f"{name}, query {batch.query_id[0]}: IoU {100 * iou:.2f} %"


def save(rows: Sequence[Picture], heading: str, path: Path) -> None:
    """Write the rows as one sheet."""
    save_sheet(rows, path, heading)
    print(f"wrote {path}")


def write_confusion(
    found: confusion.FalsePositives, episodes: EpisodeTable, classes: Sequence[str], folder: Path
) -> None:
    """Write and print what lies under the false positives.

    Args:
        found: Of the test.
        episodes: What it got right.
        classes: Of all classes, that of value 1 first.
        folder: Where to.
    """
    columns, names = (confusion.BACKGROUND, *classes), episodes.class_names
    foreground = episodes.pixels[FINAL][..., 1].sum(axis=1)
    predicted = np.bincount(episodes.class_index, foreground, minlength=len(names)).astype(np.int64)
    print(confusion.summarise(found.counts, predicted, names, columns))
    with replacing(folder / "confusion.csv") as temporary:
        temporary.write_text(confusion.to_csv(found.counts, predicted, names, columns), encoding="utf-8")
    title = f"False positives of {len(episodes)} episodes"
    confusion.draw(found.counts, predicted, names, columns, folder / "confusion.png", title)
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
        callback = confusion.FalsePositives(data.dataset, len(task.class_names))
        if arguments.worst or arguments.best:
            trainer = build_trainer(cfg, "test", callbacks=[*build_callbacks(cfg, "control"), callback], logger=False)
            trainer.test(task, datamodule=data, verbose=False)
            task.cpu()
    task.eval()
    folder: Path = arguments.out
    episodes = task.episodes
    ranked: list[int] = []
    if len(episodes):
        episodes.write(folder / EPISODES)
        print(f"wrote {folder / EPISODES}")
        write_confusion(callback, episodes, data.dataset.class_names, folder)
        # Of equal ones the earlier first; where truth and prediction are both empty there is no IoU.
        ranked = np.argsort(np.nan_to_num(episodes.ious(FINAL)), kind="stable").tolist()
    for name, chosen in (("worst", ranked[: arguments.worst]), ("best", ranked[::-1][: arguments.best])):
        if chosen:
            rows = [draw(task, data, int(episodes.seed[one]), int(episodes.index[one]))[0] for one in chosen]
            save(rows, f"the {len(chosen)} {name} of {len(ranked)} episodes", folder / f"{name}.png")
    if arguments.episode is not None:
        row, told = draw(task, data, arguments.seed, arguments.episode)
        print(told)
        save([row], arguments.ckpt.name, folder / f"episode_seed{arguments.seed}_{arguments.episode}.png")
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    return run_main(lambda: run(argv), NAME)


if __name__ == "__main__":
    sys.exit(main())
