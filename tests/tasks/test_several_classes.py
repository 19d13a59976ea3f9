"""N-way and generalised tests of a method whose answers can be told in advance."""

from __future__ import annotations

import math

import lightning as L
import pytest
import torch

from hdmnet.data.types import EvaluationBatch, FeatureKey
from hdmnet.models.method import FewShotMethod, Segmentation
from hdmnet.runtime.warnings import silence_known_warnings
from hdmnet.tasks.several_classes import GeneralisedTask, SeveralClassesTask


class Channels(FewShotMethod):
    """Foreground is where the query's channel is above 0 that a support's pixels name; the base class, in the third."""

    reported = ("final", "meta")
    segments_base = True

    def forward(self, query_image, support_images, support_masks, class_index=None):
        chosen = support_images[:, 0, 0, 0, 0].long()
        own = query_image[torch.arange(len(chosen)), chosen]
        base = torch.stack([torch.zeros_like(own), query_image[:, 2]], dim=1)
        return Segmentation(
            torch.stack([-own, own], dim=1),
            tuple(query_image.shape[2:]),
            auxiliary={"base": base, "meta": torch.stack([own, -own], dim=1)},
        )


# Two queries of four pixels: log-odds of class a are 2, .4, -2, -2 and 1, -1, 3, -2, those of class b 1, .8, -2, -2 and
# 2, -1, 1, -2; the base class is where it says 1.
QUERIES = torch.tensor(
    [
        [[[1.0, 0.2, -1.0, -1.0]], [[0.5, 0.4, -1.0, -1.0]], [[1.0, 1.0, 1.0, -1.0]]],
        [[[0.5, -0.5, 1.5, -1.0]], [[1.0, -0.5, 0.5, -1.0]], [[-1.0, 1.0, 1.0, 1.0]]],
    ]
)


def batch_of(masks, seeds=(0, 0)):
    """An evaluation batch of the two queries, both classes asked for, with masks of four pixels."""
    queries, supports = [FeatureKey("q0"), FeatureKey("q1")], [FeatureKey("s", 1), FeatureKey("s", 2)]
    return EvaluationBatch(
        drop=[],
        new_queries=queries,
        query_images=QUERIES,
        new_supports=supports,
        support_images=torch.stack([torch.full((3, 1, 4), float(channel)) for channel in (0, 1)]),
        support_masks=torch.ones(2, 1, 4, dtype=torch.uint8),
        queries=queries,
        supports=[supports, supports],
        query_masks_original=[torch.tensor([mask], dtype=torch.uint8) for mask in masks],
        mask_index=[0, 1],
        class_index=torch.tensor([0, 1]),
        item=[0, 1],
        index=torch.tensor([0, 1]),
        seed_index=torch.tensor(seeds),
        ways=[[0, 1], [0, 1]],
    )


def run(task, batch):
    silence_known_warnings()
    silent = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    loader = torch.utils.data.DataLoader([batch], batch_size=None)
    L.Trainer(accelerator="cpu", logger=False, **silent).test(task, loader, verbose=False)
    return task.test_results


def test_two_ways_by_hand():
    # Predicted are a b 0 0 and b 0 a 0.
    task = SeveralClassesTask(model=Channels(), class_names=["a", "b", "never"])
    (final,) = run(task, batch_of([[1, 1, 2, 0], [2, 0, 1, 255]]))["final"]
    # a: the first pixel and the last query's third, of three; b: one of three.
    assert final["iou_per_class"].tolist()[:2] == [2 / 3, 1 / 3]
    assert math.isnan(final["iou_per_class"][2])
    assert float(final["exact_match"]) == 1
    assert final["counts"].tolist() == [2, 2, 0]
    assert int(final["num_episodes"]) == 2
    # The auxiliary prediction says the opposite: 0 0 a a and 0 a 0 a, a being the first of equal ones.
    (meta,) = task.test_results["meta"]
    assert meta["intersection"].tolist() == [0, 0, 0]
    assert float(meta["exact_match"]) == 0


def test_seeds_are_kept_apart():
    task = SeveralClassesTask(model=Channels(), class_names=["a", "b"], num_test_seeds=2)
    first, second = run(task, batch_of([[1, 2, 0, 0], [1, 0, 2, 0]], seeds=(0, 1)))["final"]
    assert (float(first["miou"]), float(second["miou"])) == (1, 0)


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (0.5, [[2, 3, 1, 0], [3, 1, 2, 1]]),
        (0.7, [[2, 1, 1, 0], [3, 1, 2, 1]]),  # log-odds above 0.85
        (0.9, [[1, 1, 1, 0], [0, 1, 2, 1]]),  # above 2.2
        (0.1, [[2, 3, 2, 2], [3, 2, 2, 2]]),  # above -2.2, as all are; where a and b are equal it is a
    ],
)
def test_generalised_by_hand(threshold, expected):
    """The base class is 1, a 2 and b 3."""
    task = GeneralisedTask(model=Channels(), class_names=["a", "b"], base_names=["base"], threshold=threshold)
    (final,) = run(task, batch_of(expected))["final"]
    shown = {label for row in expected for label in row if label}
    assert [value == 1 for value in final["iou_per_class"].tolist()] == [label in shown for label in (1, 2, 3)]
    assert float(final["fb_iou"] if 0 in expected[0] else final["exact_match"]) == 1


def test_generalised_figures():
    task = GeneralisedTask(model=Channels(), class_names=["a", "b"], base_names=["base"])
    # Predicted are 2 3 1 0 and 3 1 2 1.
    (final,) = run(task, batch_of([[2, 2, 1, 1], [3, 1, 1, 255]]))["final"]
    assert final["iou_per_class"].tolist() == [2 / 4, 1 / 3, 1 / 2]
    base, novel = 2 / 4, (1 / 3 + 1 / 2) / 2
    assert float(final["miou_base"]) == base
    assert float(final["miou_novel"]) == pytest.approx(novel)
    assert float(final["miou"]) == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 3)
    assert float(final["harmonic_mean"]) == pytest.approx(2 * base * novel / (base + novel))
    assert task.class_names == ("base", "a", "b")


def test_a_method_without_base_classes_is_refused():
    class Plain(Channels):
        segments_base = False

    with pytest.raises(ValueError, match=r"^generalised=true: Plain does not segment base classes; expected a check"):
        GeneralisedTask(model=Plain(), class_names=["a"], base_names=["base"])
