"""Tests of several classes at once: N-way episodes, and base and novel classes together (generalised).

The method runs as ever, once for each class of an episode on the query's features, and what it says of the classes is
decided together (`hdmnet.models.several_classes`).

Dimension letters: B episodes, N classes of an episode, H0 W0 original size.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from hdmnet.metrics import SeveralClassesIoU, count_labels
from hdmnet.models.method import FINAL, encodes_apart
from hdmnet.models.several_classes import decide_together, likeness_of, log_odds
from hdmnet.runtime.errors import InputError
from hdmnet.tasks.feature_store import at_size, resize
from hdmnet.tasks.few_shot import FewShotTask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hdmnet.data.types import Episode, EvaluationBatch
    from hdmnet.models.method import FewShotMethod, Segmentation


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
        outputs = self.features.segment_ways(encodes_apart(self.model), planned, len(planned.ways[0]))
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
            (H0, W0) integer: 0 background, 1..N.
        """
        said = (_said(output, item, size, name) for output in outputs)
        return decide_together(said, likeness_of(outputs, item))


class GeneralisedTask(SeveralClassesTask):
    """Tests base and novel classes at once, by the rule of BAM (Lang et al., CVPR 2022) for generalised segmentation.

    A pixel is of the novel class that the joint decision names where that one's probability is above the threshold;
    elsewhere it is what the base learner says: one of its classes, or background.

    Args:
        model: A method with a base learner (`segments_base`).
        class_names: Of the novel classes.
        base_names: Of the base classes, in the base learner's order: the first in all figures.
        threshold: Between 0 and 1. At 0.5 a novel class is where foreground is ahead of the background.
        arguments: As of `FewShotTask`.

    Raises:
        ValueError: The method has no base learner.
    """

    def __init__(
        self,
        *,
        model: FewShotMethod,
        class_names: Sequence[str],
        base_names: Sequence[str],
        threshold: float = 0.5,
        **arguments: Any,
    ) -> None:
        if not model.segments_base:
            raise InputError(
                f"generalised=true: {type(model).__name__} does not segment base classes; expected a checkpoint of a "
                "method that does beside the novel one (model=hdmnet, model=bam), without test_scales and test_flip"
            )
        super().__init__(model=model, class_names=(*base_names, *class_names), **arguments)
        self.num_base = len(base_names)
        self.least_odds = math.log(threshold / (1 - threshold))
        self.test_metrics = self._joint_metrics(self.num_base)

    def labelled(self, ways: Sequence[int]) -> Sequence[int]:
        """All classes."""
        return range(len(self.class_names))

    def decide(self, outputs: Sequence[Segmentation], item: int, size: torch.Size, name: str = FINAL) -> Tensor:
        """Label one of B queries: base classes from 1 on, then the novel ones; arguments as of the base class."""
        odds = (_said(output, item, size, name)[1] for output in outputs)
        novel = decide_together((one > self.least_odds, one) for one in odds)
        # What the base learner says of a picture is the same whatever the supports.
        base = resize(outputs[0].auxiliary_logits["base"][item : item + 1], size)[0].argmax(0)
        return torch.where(novel > 0, novel.long() + self.num_base, base)


def _said(output: Segmentation, item: int, size: torch.Size, name: str) -> tuple[Tensor, Tensor]:
    """What a method says of a class: foreground (H0, W0) bool, and its log-odds."""
    scores, foreground = at_size(output, item, size, name)
    return foreground, log_odds(scores, is_probability=output.is_probability and name == FINAL)
