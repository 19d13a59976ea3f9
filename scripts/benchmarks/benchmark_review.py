"""How well scores of certainty rank what was found by how right it is: a Markdown table of candidates.

    python scripts/benchmarks/benchmark_review.py VOC_TREE pretrained prototype
    python scripts/benchmarks/benchmark_review.py VOC_TREE RUN0/checkpoints/best.ckpt RUN1/… RUN2/… RUN3/…

A list is a class: its first drawn picture is the support (`--shots` of them), `--pictures` others that show it and
`--absent` that do not are predicted, at most as many as the validation list has. Checkpoints count as one method, each
on the classes that its fold has held out. A score is good when the pictures with the least of it have the most wrong:
Spearman's correlation with the true IoU, over all lists and the mean within a list, and the share of all error (the sum
of 1 - IoU) in the first 20 % of the list; with any order that is 20 %, with the order by the truth the most possible.
Where the class is absent the IoU is 0, or 1 if nothing was found.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)] if str(ROOT) not in sys.path else []

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from tqdm import tqdm  # noqa: E402

from hdmnet.apps.review import class_certainty  # noqa: E402
from hdmnet.apps.segmenter import Prediction, Segmenter  # noqa: E402
from hdmnet.cli.parser import OneLineParser, run_main  # noqa: E402
from hdmnet.data.datasets.pascal import PascalDataset  # noqa: E402
from hdmnet.data.io.arrays import IGNORE  # noqa: E402

NAME = "benchmark_review"
FIRST = 0.2  # of the list

Bools = NDArray[np.bool_]
Row = dict[str, float]  # scores by name, "iou", "list" and "present"


def iou(a: Bools, b: Bools) -> float:
    """Intersection over union; 1 of two empty masks."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def scores(prediction: Prediction) -> dict[str, float]:
    """What a prediction of one class alone tells of itself, by the candidate's name; more is surer."""
    probability, region = prediction.probability, prediction.mask > 0
    margin = np.abs(2 * probability.astype(np.float64) - 1)
    clipped = probability.astype(np.float64).clip(1e-9, 1 - 1e-9)
    entropy = -(clipped * np.log(clipped) + (1 - clipped) * np.log(1 - clipped))
    steps = max(2, round(min(region.shape) / 40))
    grown, shrunk = (
        change(region.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=steps) > 0
        for change in (cv2.dilate, cv2.erode)
    )
    parts = cv2.connectedComponents(region.astype(np.uint8))[0] - 1
    return {
        "expected IoU": class_certainty(probability, region),
        "margin, all pixels": float(margin.mean()),
        "margin, around the border": _mean(margin, grown & ~shrunk),
        "margin, region with its border": _mean(margin, grown),
        "entropy, all pixels": -float(entropy.mean()),
        "probability in the region": _mean(probability, region),
        "IoU of the masks at 0.3 and 0.7": iou(probability > 0.3, probability > 0.7) if region.any() else 0.0,
        "size": float(region.mean()),
        "few parts": -float(parts),
    }


def _mean(values: NDArray[Any], where: Bools) -> float:
    return float(values[where].mean()) if where.any() else 0.0


def draw_list(
    dataset: PascalDataset, areas: Mapping[str, Mapping[int, int]], value: int, shots: int, counts: tuple[int, int]
) -> tuple[list[str], list[str]]:
    """Ids of a class's supports, and of the pictures to predict: those that show it, then those that do not."""
    generator = np.random.default_rng(value)
    shown = [one for one in areas if areas[one].get(value, 0) >= dataset.min_area]
    others = [one for one in areas if value not in areas[one]]
    shown, others = ([ids[place] for place in generator.permutation(len(ids))] for ids in (shown, others))
    return shown[:shots], shown[shots : shots + counts[0]] + others[: counts[1]]


def rows_of(
    segmenter: Segmenter,
    dataset: PascalDataset,
    value: int,
    supports: Sequence[str],
    queries: Sequence[str],
    flip: bool,
) -> Iterator[Row]:
    """Predict a list and score each picture."""
    pictures = [dataset.read_image(one) for one in supports]
    masks = [dataset.read_class_mask(one, value) for one in supports]
    alone = [copy.copy(segmenter).fit(one, mask) for one, mask in zip(pictures, masks, strict=True)]
    segmenter.fit(pictures, masks)
    for one in queries:
        picture, truth = dataset.read_image(one), dataset.read_class_mask(one, value)
        prediction, valid = segmenter.predict(picture), truth != IGNORE
        found, true = prediction.mask > 0, truth == 1
        row = scores(prediction) | {"iou": iou(found & valid, true), "list": value, "present": float(true.any())}
        if flip:
            mirrored = segmenter.predict(np.ascontiguousarray(picture[:, ::-1]))
            row["IoU with the mirror image's mask"] = iou(found, mirrored.mask[:, ::-1] > 0)
        if len(alone) > 1:
            row["mean IoU with each support's mask"] = float(
                np.mean([iou(found, each.predict(picture).mask > 0) for each in alone])
            )
        yield row


def first_share(error: NDArray[Any], score: NDArray[Any]) -> float:
    """Share of the error in the first 20 % by a score, least first; of the picture at the edge its part."""
    count = FIRST * len(error)
    weights = (count - np.arange(len(error))).clip(0, 1)
    return float((error[np.argsort(score, kind="stable")] * weights).sum() / error.sum())


def table(name: str, rows: Sequence[Row]) -> list[str]:
    """Lines of a method's table, the best score first."""
    from scipy.stats import spearmanr

    truth = np.array([row["iou"] for row in rows])
    lists = [np.flatnonzero([row["list"] == one for row in rows]) for one in dict.fromkeys(row["list"] for row in rows)]
    lines = []
    for key in ["the truth", *(key for key in rows[0] if key not in ("iou", "list", "present"))]:
        values = truth if key == "the truth" else np.array([row[key] for row in rows])
        within = [spearmanr(values[one], truth[one]).statistic for one in lists if np.ptp(values[one]) > 0]
        shares = [first_share(1 - truth[one], values[one]) for one in lists]
        figures = spearmanr(values, truth).statistic, float(np.mean(within)), first_share(1 - truth, values)
        lines.append((*figures, float(np.mean(shares)), key))
    body = [
        f"| {key} | {pooled:.2f} | {within:.2f} | {100 * first:.0f} | {100 * mean:.0f} |"
        for pooled, within, first, mean, key in sorted(lines, key=lambda line: line[-2], reverse=True)
    ]
    shown = sum(row["present"] for row in rows)
    head = f"{name}: {len(rows)} pictures, {len(lists)} lists, {shown:.0f} show the class; mean IoU {truth.mean():.3f}"
    titles = f"| score | rho | within a list | error in the first {FIRST:.0%} | within a list |"
    return [head, "", titles, "|---|---|---|---|---|", *body, ""]


def build(names: Sequence[str], side: int | None) -> Iterator[tuple[str, Segmenter, Sequence[int] | None]]:
    """Methods: what to call each, its segmenter, and the class values that a checkpoint's fold has held out."""
    for name in names:
        if name == "pretrained":
            yield name, Segmenter.pretrained(image_size=side), None
        elif Path(name).is_file():
            segmenter = Segmenter.from_checkpoint(name, image_size=side)
            config = segmenter.recipe.config or {}
            fold = PascalDataset(".").class_split(int(config["fold"])).test
            yield f"{config['model']['name']}, checkpoints", segmenter, fold
        else:
            yield name, Segmenter.without_training(name, image_size=side), None


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and print the tables."""
    parser = OneLineParser(prog=NAME, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="a VOC tree")
    parser.add_argument("methods", nargs="+", help="pretrained, a method without training, checkpoints")
    parser.add_argument("--pictures", type=int, default=8, help="that show the class, a list (default: 8)")
    parser.add_argument("--absent", type=int, default=2, help="that do not (default: 2)")
    parser.add_argument("--shots", type=int, default=1, help="supports of a list (default: 1)")
    parser.add_argument("--side", type=int, default=257, help="of the network's input (default: 257)")
    parser.add_argument("--flip", action="store_true", help="mirror images too: twice the time")

    def body() -> bool:
        given = parser.parse_args(argv)
        dataset = PascalDataset(given.root)
        areas = {one: dataset.class_areas(one) for one in dataset.ids("val")}
        rows: dict[str, list[Row]] = {}
        for name, segmenter, values in build(given.methods, given.side):
            for value in tqdm(values or range(1, len(dataset.class_names) + 1), desc=name, mininterval=20):
                counts = given.pictures, given.absent
                supports, queries = draw_list(dataset, areas, value, given.shots, counts)
                rows.setdefault(name, []).extend(rows_of(segmenter, dataset, value, supports, queries, given.flip))
        for name, found in rows.items():
            print(*table(name, found), sep="\n")
        return True

    return run_main(body, NAME)


if __name__ == "__main__":
    sys.exit(main())
