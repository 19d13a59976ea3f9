"""IoU of every test episode, and what its false positives are: to learn where a model fails.

Dimension letters: E episodes, H0 W0 query's original size, V class values (0 background, 1..C classes).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray

from hdmnet.data.types import Episode, EvaluationBatch
from hdmnet.tasks.feature_store import resize

if TYPE_CHECKING:
    from hdmnet.data.datasets.base import SegmentationDataset


@dataclass(frozen=True)
class EpisodeScore:
    """One test episode, compared at the query's original size.

    Attributes:
        seed_index: Place of its test seed.
        index: Its place in the seed's manifest.
        class_index: Place of its class among the novel classes.
        query_id: The query.
        iou: Of the foreground, final prediction; 0 where neither truth nor prediction has any.
        false_positives: (V,) int64 pixels called foreground by mistake, by the class value that they have.
        true_positives: Pixels called foreground rightly.
    """

    seed_index: int
    index: int
    class_index: int
    query_id: str
    iou: float
    false_positives: NDArray[np.int64]
    true_positives: int


class EpisodeScores(Callback):
    """Collects the scores of a test's episodes, of one process.

    Args:
        dataset: The data set that is tested, for all classes of the queries.

    Attributes:
        scores: Of the last test, in the order of seed and index.
    """

    def __init__(self, dataset: SegmentationDataset) -> None:
        """Start with no episode."""
        self.dataset = dataset
        self.scores: list[EpisodeScore] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier test."""
        self.scores = []

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Score what the batch holds."""
        self.scores += self.score(outputs)

    def score(self, outputs: Mapping[str, Any]) -> list[EpisodeScore]:
        """Score a batch's episodes.

        Args:
            outputs: What the task's test step returns.

        Returns:
            One score an episode; nothing is kept.
        """
        batch: Episode | EvaluationBatch = outputs["episode"]
        masks: Any
        places: Sequence[int]
        items: Sequence[int]
        if isinstance(batch, EvaluationBatch):
            queries = [key.image_id for key in batch.queries]
            masks, places, items = batch.query_masks_original, batch.mask_index, batch.item
        else:
            queries = list(batch.query_id)
            masks, places, items = batch.query_mask_original, range(len(queries)), range(len(queries))
        logits, classes = outputs["output"].logits, batch.class_index.reshape(-1).tolist()
        found = [
            self._compare(logits[item : item + 1], masks[place], query)
            for item, (place, query) in enumerate(zip(places, queries, strict=True))
        ]
        indices, seeds = batch.index.reshape(-1).tolist(), batch.seed_index.reshape(-1).tolist()
        return [
            EpisodeScore(seed, index, classes[item], queries[item], *found[item])
            for item, index, seed in zip(items, indices, seeds, strict=True)
        ]

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the episodes in order."""
        self.scores.sort(key=lambda score: (score.seed_index, score.index))

    def _compare(self, logits: torch.Tensor, mask: torch.Tensor, query: str) -> tuple[float, NDArray[np.int64], int]:
        """IoU, false positives by class value, true positives of logits (1, 2, H, W) with a mask (H0, W0), 0/1/255."""
        resized = resize(logits, mask.shape[-2:])[0]
        predicted = (resized[1] > resized[0]).cpu().numpy()  # as `count_pixels` decides
        truth = mask.cpu().numpy()
        wrong, right = predicted & (truth == 0), int((predicted & (truth == 1)).sum())
        union = right + int(wrong.sum()) + int((~predicted & (truth == 1)).sum())
        values = np.zeros(len(self.dataset.class_names) + 1, dtype=np.int64)
        background = wrong.copy()
        for value in self.dataset.class_areas(query):
            of_class = self.dataset.read_class_mask(query, value) == 1
            values[value] = (wrong & of_class).sum()
            background &= ~of_class
        values[0] = background.sum()
        return (right / union if union else 0.0), values, right
