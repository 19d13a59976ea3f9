"""How well heads do on episodes, beside the prototype without training and support masks of ones alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from episodes import TestEpisode, read_class
from features import Features
from photos import CLASSES
from torch import Tensor

from hdmnet.data.transforms import resize_mask
from hdmnet.metrics import tally_pixels
from hdmnet.models.correlation.model import Correlation
from hdmnet.models.prototype.model import Prototype
from hdmnet.models.similarity import QueryUnits, SupportUnits, foreground_share
from hdmnet.tasks.feature_store import resize

SHIFTS = (-2.0, -1.5, -1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5)  # of the threshold, in logits


@torch.no_grad()
def evaluate(model: Correlation, features: Features, episodes: Sequence[TestEpisode]) -> dict[str, Any]:
    """IoU pooled per class at the queries' original sizes.

    Returns:
        "mean", and each folder by its name: mIoU in percent of "trained +0.00" and other thresholds, "prototype", and
        "all ones" (trained, support masks all ones); of each folder also "classes", the IoU of each by name, and
        "episodes". "mean" is that of the folders.
    """
    prototype = Prototype(encoder=model.trunk.backbone, levels=[-3, -2, -1])
    width = sum(prototype.widths)
    features.encode([view for one in episodes for view in one.views])
    tallies: dict[str, dict[str, dict[int, Tensor]]] = defaultdict(lambda: defaultdict(dict))
    counts: dict[str, int] = defaultdict(int)
    for one in episodes:
        units = features.load([view.name for view in one.views])
        side = model_side(one)
        masks = torch.from_numpy(
            np.stack([resize_mask(read_class(photo, one.number), (side, side)) for photo in one.supports])
        )
        query = QueryUnits(units[:1], (side, side))
        support = SupportUnits(units[1:], foreground_share(masks, (units.shape[2], units.shape[3])))
        plain = SupportUnits(support.units, torch.ones_like(support.foreground))
        cut = (
            QueryUnits(query.units[:, -width:], query.size),
            SupportUnits(support.units[:, -width:], support.foreground),
        )
        shots = len(one.supports)
        truth = torch.from_numpy(read_class(one.query, one.number))[None]
        logits = {
            "trained": model.match(query, support, shots=shots).logits,
            "all ones": model.match(query, plain, shots=shots).logits,
            "prototype": prototype.match(*cut, shots=shots).logits,
        }
        for name, value in logits.items():
            over = resize(value, truth.shape[1:])
            over = over[:, 1] - over[:, 0]
            for shift in SHIFTS if name == "trained" else (0.0,):
                shown = f"{name} {shift:+.2f}" if name == "trained" else name
                tally, check = tally_pixels(over > shift, truth)
                check(tally)
                by_class = tallies[one.query.folder][shown]
                by_class[one.number] = by_class.get(one.number, 0) + tally[0]
        counts[one.query.folder] += 1
    found: dict[str, Any] = {}
    for folder, kinds in tallies.items():
        found[folder] = {kind: round(_miou(by_class), 1) for kind, by_class in kinds.items()}
        found[folder]["classes"] = {
            kind: {CLASSES[number - 1]: round(_iou(tally), 1) for number, tally in kinds[kind].items()}
            for kind in ("trained +0.00", "prototype")
        }
        found[folder]["episodes"] = counts[folder]
    kinds_ = list(next(iter(tallies.values())))
    found["mean"] = {kind: round(float(np.mean([found[folder][kind] for folder in tallies])), 1) for kind in kinds_}
    return found


def model_side(episode: TestEpisode) -> int:
    """S of an episode's views."""
    return int(episode.views[0].name.rsplit("-", 1)[1])


def _iou(tally: Tensor) -> float:
    """Percent, of counts (5,), see `tally_pixels`."""
    _, false, missed, hit = (int(count) for count in tally[:4])
    return 100 * hit / max(hit + false + missed, 1)


def _miou(by_class: Mapping[int, Tensor]) -> float:
    return float(np.mean([_iou(tally) for tally in by_class.values()]))
