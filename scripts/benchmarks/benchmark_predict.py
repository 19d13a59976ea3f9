"""What a query costs once `Segmenter.fit` has encoded the supports, beside an episode from its pictures.

A fresh episode is the whole network on one query and its K supports, ready as tensors: without reading and resizing, so
that the comparison favours it. A query after `fit` is `Segmenter.predict` on a picture: resize, query's features,
matching, mask and probability at the picture's own size. Weights are random: they do not change what is computed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from benchmark_measure import Context, Row, interleave
from hydra import compose, initialize_config_dir

from hdmnet.apps.segmenter import Segmenter
from hdmnet.apps.segmenter_file import SegmenterSpec
from hdmnet.config.paths import HYDRA_VERSION_BASE, conf_dir
from hdmnet.config.schemas import register_schemas
from hdmnet.config.values import image_size, to_stored
from hdmnet.data.io.arrays import UInt8Array
from hdmnet.data.normalise import normalise
from hdmnet.data.transforms import resize_image, resize_mask
from hdmnet.models.method import Segmentation
from hdmnet.run.build import build_untrained
from hdmnet.tasks.feature_store import resize

SHOTS = 5
PICTURE = (375, 500)  # (H0, W0), as in VOC
NUM_BASE = 15
FOREGROUND = 0.2  # share of the supports that is marked


@dataclass(frozen=True)
class Case:
    """A network: its name in the table, and the words of `train` that choose it."""

    name: str
    words: tuple[str, ...]


RESNET = Case("ResNet-50, 473²", ("dataset=pascal", "backbone=resnet50", "backbone.weights=null"))
SMALL = Case("the default run's, 129²", ("dataset=shapes",))
TINY = Case("tiny", ("dataset=shapes", "dataset.image_size=65"))


def build_segmenter(case: Case, shots: int) -> Segmenter:
    """A segmenter with random weights."""
    register_schemas()
    with initialize_config_dir(config_dir=str(conf_dir()), version_base=HYDRA_VERSION_BASE):
        cfg = compose("train", overrides=[*case.words, f"shot={shots}"])
    torch.manual_seed(0)
    model = build_untrained(cfg, NUM_BASE)
    about = cfg.backbone
    recipe = SegmenterSpec(
        image_size(cfg.dataset.image_size), tuple(about.mean), tuple(about.std), config=to_stored(cfg)
    )
    return Segmenter(model, recipe, device="cpu")


def make_pictures(count: int) -> tuple[list[UInt8Array], UInt8Array]:
    """Noise (H0, W0, 3) uint8, and a mask (H0, W0) with a square of `FOREGROUND` of the area."""
    generator = np.random.default_rng(0)
    pictures = [generator.integers(0, 256, (*PICTURE, 3), dtype=np.uint8) for _ in range(count)]
    mask = np.zeros(PICTURE, dtype=np.uint8)
    height, width = (round(side * FOREGROUND**0.5) for side in PICTURE)
    mask[40 : 40 + height, 60 : 60 + width] = 1
    return pictures, mask


class Episode:
    """An episode whose pictures are ready as the network's input."""

    def __init__(self, segmenter: Segmenter, query: UInt8Array, supports: list[UInt8Array], mask: UInt8Array) -> None:
        size, recipe, device = segmenter.image_size, segmenter.recipe, segmenter.device
        small = np.stack([resize_image(picture, size) for picture in (query, *supports)])
        images = torch.from_numpy(small).permute(0, 3, 1, 2).to(device)
        images = normalise(images, recipe.mean, recipe.std)
        marked = torch.from_numpy(resize_mask(mask, size)).to(device)
        self.model = segmenter.model
        self.inputs = images[:1], images[None, 1:], marked.expand(1, len(supports), *size).contiguous()

    @torch.no_grad()
    def __call__(self) -> Segmentation:
        """The whole network."""
        return cast(Segmentation, self.model(*self.inputs))


def measure(case: Case, context: Context) -> list[Row]:
    """The figures of one network."""
    context.progress.step(f"predict, {case.name}")
    segmenter, alone = (build_segmenter(case, shots) for shots in (SHOTS, 1))
    (query, *supports), mask = make_pictures(1 + SHOTS)
    segmenter.fit(supports, [mask] * SHOTS)
    alone.fit(supports[0], mask)
    fresh = Episode(segmenter, query, supports, mask)
    fitting = build_segmenter(case, SHOTS)
    contestants: dict[str, Callable[[], object]] = {
        "fresh": fresh,
        "fit": lambda: fitting.fit(supports, [mask] * SHOTS),
        "query": lambda: segmenter.predict(query),
        "query_1shot": lambda: alone.predict(query),
    }
    seconds = interleave(context, contestants, name=f"predict/{case.name}")
    processor = {name: _processor_seconds(call, context.repeats) for name, call in contestants.items()}
    logits = resize(fresh().logits, torch.Size(PICTURE))[0]
    unequal = (logits[1] > logits[0]).cpu().numpy() != (segmenter.predict(query).mask == 1)
    label = f"{case.name}, {SHOTS}-shot: "
    return [
        Row(f"{case.name}/fresh_s", f"{label}fresh episode", seconds["fresh"], "s"),
        Row(f"{case.name}/fit_s", f"{label}fit, once", seconds["fit"], "s"),
        Row(f"{case.name}/query_s", f"{label}a query after fit", seconds["query"], "s"),
        Row(
            f"{case.name}/query_1shot_s", f"{case.name}: a query after fit on one support", seconds["query_1shot"], "s"
        ),
        Row(f"{case.name}/ratio", f"{label}fresh over fitted", seconds["fresh"] / seconds["query"]),
        Row(
            f"{case.name}/processor_ratio",
            f"{label}the same in processor time",
            processor["fresh"] / processor["query"],
        ),
        *(
            Row(f"{case.name}/{name}_processor_s", f"{label}{name}, processor time", processor[name], "s")
            for name in processor
        ),
        Row(f"{case.name}/pixels", f"{label}pixels of the mask that differ", int(unequal.sum())),
    ]


def _processor_seconds(call: Callable[[], object], repeats: int) -> float:
    """Median time of the processors, all threads together: what other programs beside take does not count."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return statistics.median(times)


def run_predict(context: Context) -> list[Row]:
    """Section `predict`."""
    return [row for case in ((TINY,) if context.quick else (RESNET, SMALL)) for row in measure(case, context)]
