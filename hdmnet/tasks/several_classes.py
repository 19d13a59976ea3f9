"""Tests of several classes at once: N-way episodes, and base and novel classes together (generalised).

The method runs as ever, once for each class of an episode on the query's features, and what it says of the classes is
decided together (`hdmnet.models.several_classes`).

Dimension letters: B episodes, N classes of an episode, H0 W0 original size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from hdmnet.metrics import SeveralClassesIoU, count_labels
from hdmnet.models.method import FINAL, encodes_apart
from hdmnet.models.several_classes import decide_together, log_odds
from hdmnet.tasks.feature_store import at_size
from hdmnet.tasks.few_shot import FewShotTask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hdmnet.data.types import Episode, EvaluationBatch
    from hdmnet.models.method import Segmentation


class SeveralClassesTask(FewShotTask):
    """Tests N-way episodes, N the same in all; arguments as of `FewShotTask`."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.test_metrics = self._joint_metrics()

    def _joint_metrics(self, num_base: int = 0) -> nn.ModuleDict:
        """A metric a reported prediction and seed."""

        def seeds() -> nn.ModuleList:
            settings: dict[str, Any] = {"num_base": num_base, "absent_is_zero": self.absent_is_zero}
            names = self.class_names
            return nn.ModuleList(SeveralClassesIoU(len(names), names, **settings) for _ in range(self.num_test_seeds))

        return nn.ModuleDict({name: seeds() for name in self.model.reported})

    def test_step(self, batch: Episode | EvaluationBatch, batch_idx: int) -> dict[str, Any]:
        """Pool one batch of test episodes; returns nothing, as no pictures are drawn of several classes."""
        planned = cast("EvaluationBatch", batch)  # the DataModule refuses to do without reuse
        outputs = self.features.segment_ways(encodes_apart(self.model), planned)
        for name, metrics in self.test_metrics.items():
            for item, place in enumerate(planned.mask_index):
                truth = planned.query_masks_original[place]
                labels, classes = self.decide(outputs, item, truth.shape, name), self.labelled(planned.ways[item])
                pixels = count_labels(labels, truth, 1 + len(classes)).cpu()
                equal = zip(planned.item, planned.seed_index.tolist(), strict=True)
                for seed in (seed for one, seed in equal if one == item):
                    cast("nn.ModuleList", metrics)[seed].add(pixels, classes)
        return {}

    def labelled(self, ways: Sequence[int]) -> Sequence[int]:
        """Which classes, by their places, the labels 1, 2, … are of, given those of an episode."""
        return ways

    def decide(self, outputs: Sequence[Segmentation], item: int, size: torch.Size, name: str = FINAL) -> Tensor:
        """Label one of B queries with the classes of its episode.

        Args:
            outputs: The answer to the B queries for each of the N classes.
            item: Which query.
            size: (H0, W0) of the labels.
            name: Of the prediction.

        Returns:
            (H0, W0) uint8: 0 background, 1..N.
        """
        return decide_together(_said(output, item, size, name) for output in outputs)


def _said(output: Segmentation, item: int, size: torch.Size, name: str) -> tuple[Tensor, Tensor]:
    """What a method says of a class: foreground (H0, W0) bool, and its log-odds."""
    scores, foreground = at_size(output, item, size, name)
    return foreground, log_odds(scores, is_probability=output.is_probability and name == FINAL)
