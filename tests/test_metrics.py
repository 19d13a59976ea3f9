"""FewShotIoU and SegmentationIoU against hand-computed masks, numpy loops, and two processes."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hdmnet.metrics import FewShotIoU, SegmentationIoU, SeveralClassesIoU, count_pixels


def _random_episodes(seed: int, num: int, num_classes: int, size: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """Returns logits (num, 2, size, size), targets with 0/1/255 and class indices."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(size=(num, 2, size, size)).astype(np.float32))
    target = torch.from_numpy(rng.choice([0, 1, 255], p=[0.5, 0.4, 0.1], size=(num, size, size)).astype(np.uint8))
    return logits, target, torch.from_numpy(rng.integers(0, num_classes, num))


def _reference(logits: Tensor, target: Tensor, classes: Tensor, num_classes: int) -> dict[str, np.ndarray]:
    """An independent reference: boolean sets, one episode after the other, no confusion matrix."""
    inter, union = np.zeros((num_classes, 2)), np.zeros((num_classes, 2))
    for scores, truth, owner in zip(logits.numpy(), target.numpy(), classes.tolist(), strict=True):
        foreground = scores[1] > scores[0]
        for label in (0, 1):
            said, is_true = foreground == bool(label), truth == label
            inter[owner, label] += np.logical_and(said, is_true).sum()
            union[owner, label] += np.logical_and(np.logical_or(said, is_true), truth != 255).sum()
    per_class = np.array([i / u if u else np.nan for i, u in zip(inter[:, 1], union[:, 1], strict=True)])
    pooled = [sum(inter[:, label]) / sum(union[:, label]) for label in (0, 1)]
    return {"miou": np.nanmean(per_class), "fb_iou": np.mean(pooled), "iou_per_class": per_class}


def test_hand_computed_masks_with_mixed_classes_and_ignored_pixels() -> None:
    metric = FewShotIoU(3, ("cat", "dog", "cow"))
    prediction = torch.tensor([[[1, 1], [0, 0]], [[1, 0], [1, 1]], [[1, 0], [0, 0]]])
    target = torch.tensor([[[1, 0], [1, 0]], [[1, 255], [255, 0]], [[1, 0], [0, 0]]], dtype=torch.uint8)
    metric.update(prediction, target, torch.tensor([0, 2, 0]))
    values = metric.compute()
    # class 0: episode 1 has 1 of 3, episode 3 has 1 of 1: pooled 2/4; 1: none; class 2: 1 of 2, two ignored
    assert values["intersection"].tolist() == [2, 0, 1]
    assert values["union"].tolist() == [4, 0, 2]
    assert values["counts"].tolist() == [2, 0, 1]
    assert values["iou_per_class"][[0, 2]].tolist() == [0.5, 0.5]
    assert math.isnan(values["iou_per_class"][1])
    assert values["miou"].item() == 0.5
    # background: class 0 has 1/3 and 3/3, class 2 has 0/1: pooled 4/7; foreground: 3/6
    assert values["fb_iou"].item() == pytest.approx((4 / 7 + 3 / 6) / 2, abs=1e-12)


def test_a_class_without_an_episode_can_count_as_zero() -> None:
    """As PFENet, BAM, HSNet and HDMNet divide: the sum over all classes of the fold, by their number."""
    target = torch.ones(1, 2, 2, dtype=torch.long)
    prediction = torch.tensor([[[1, 1], [1, 0]]])
    for absent_is_zero, miou in ((False, 0.75), (True, 0.25)):
        metric = FewShotIoU(3, absent_is_zero=absent_is_zero)
        metric.update(prediction, target, torch.tensor([1]))
        values = metric.compute()
        assert values["miou"].item() == miou
        assert values["iou_per_class"].isfinite().tolist() == [absent_is_zero, True, absent_is_zero]
        assert values["fb_iou"].item() == 0.375  # pooled: foreground 3/4, background 0/1


def test_pooled_is_not_the_mean_over_images() -> None:
    metric = FewShotIoU(1)
    target = torch.ones(2, 4, 4, dtype=torch.long)
    target[1] = 0
    target[1, 0, 0] = 1
    prediction = torch.ones(2, 4, 4, dtype=torch.long)
    metric.update(prediction, target, torch.zeros(2, dtype=torch.long))
    assert metric.compute()["miou"].item() == pytest.approx(17 / 32)  # the mean over images would be (1 + 1/16) / 2


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_independent_reference_for_every_batch_size(seed: int) -> None:
    logits, target, classes = _random_episodes(seed, 24, 5)
    expected = _reference(logits, target, classes, 5)
    for batch_size in (1, 5, 24):
        metric = FewShotIoU(5)
        for start in range(0, 24, batch_size):
            part = slice(start, start + batch_size)
            metric.update(logits[part], target[part], classes[part])
        values = metric.compute()
        for key, value in expected.items():
            np.testing.assert_allclose(values[key].numpy(), value, rtol=1e-12)


def test_items_of_different_sizes_pool_when_updated_one_by_one() -> None:
    metric = FewShotIoU(2)
    metric.update(torch.ones(1, 2, 3, dtype=torch.bool), torch.ones(1, 2, 3, dtype=torch.uint8), torch.tensor([1]))
    metric.update(torch.ones(1, 5, 2, dtype=torch.bool), torch.zeros(1, 5, 2, dtype=torch.uint8), torch.tensor([1]))
    assert metric.compute()["iou_per_class"][1].item() == pytest.approx(6 / 16)


def test_states_are_exact_integers_that_reset_and_survive_pickling() -> None:
    metric = FewShotIoU(2)
    metric.update(torch.ones(1, 2, 2, dtype=torch.long), torch.ones(1, 2, 2, dtype=torch.long), torch.tensor([0]))
    metric = pickle.loads(pickle.dumps(metric.half()))
    assert metric.confusion.dtype == torch.int64
    assert metric.confusion[0].tolist() == [[0, 0], [0, 4]]
    metric.reset()
    assert metric.confusion.sum() == 0
    assert metric.counts.tolist() == [0, 0]


def test_all_pixels_ignored_counts_the_episode_but_leaves_the_iou_undefined() -> None:
    metric = FewShotIoU(2)
    metric.update(torch.ones(1, 2, 2, dtype=torch.long), torch.full((1, 2, 2), 255), torch.tensor([1]))
    values = metric.compute()
    assert values["counts"].tolist() == [0, 1]
    assert math.isnan(values["miou"])
    assert math.isnan(values["fb_iou"])


@pytest.mark.parametrize(
    ("prediction", "target", "class_index", "match"),
    [
        (torch.zeros(1, 2, 4, 4), torch.full((1, 4, 4), 3), torch.tensor([0]), r"target .*holds \[3\]; expected 0..1"),
        (
            torch.zeros(1, 2, 4, 4),
            torch.zeros(1, 4, 5).long(),
            torch.tensor([0]),
            r"\(1, 4, 4\) but target is \(1, 4, 5\)",
        ),
        (torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4), torch.tensor([0]), "target is torch.float32; expected integer"),
        (
            torch.zeros(1, 2, 4, 4),
            torch.zeros(1, 4, 4).long(),
            torch.tensor([2]),
            r"class_index holds \[2\]; expected 0..1",
        ),
        (torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4).long(), torch.tensor([-1]), r"class_index holds \[-1\]"),
        (
            torch.zeros(2, 2, 4, 4),
            torch.zeros(2, 4, 4).long(),
            torch.tensor([1]),
            r"shape \(1,\); expected integers \(2,\)",
        ),
        (
            torch.zeros(1, 3, 4, 4),
            torch.zeros(1, 4, 4).long(),
            torch.tensor([0]),
            r"expected float logits \(B, 2, H, W\)",
        ),
        (torch.full((1, 4, 4), 2), torch.zeros(1, 4, 4).long(), torch.tensor([0]), r"prediction holds \[2\]"),
    ],
)
def test_wrong_input_is_refused_in_one_line(
    prediction: Tensor, target: Tensor, class_index: Tensor, match: str
) -> None:
    metric = FewShotIoU(2)
    with pytest.raises(ValueError, match=match) as error:
        metric.update(prediction, target, class_index)
    assert "\n" not in str(error.value)
    assert metric.counts.sum() == 0  # nothing half-added


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="num_classes is 0"):
        FewShotIoU(0)
    with pytest.raises(ValueError, match="class_names has 1 names for num_classes=2"):
        FewShotIoU(2, ("one",))
    with pytest.raises(ValueError, match="ignore_index is 1"):
        FewShotIoU(2, ignore_index=1)
    with pytest.raises(ValueError, match="num_classes is 1"):
        SegmentationIoU(1)
    with pytest.raises(ValueError, match="ignore_index 3 is one of the labels"):
        SegmentationIoU(4, ignore_index=3)


def test_segmentation_iou_hand_computed_leaves_background_and_absent_labels_out() -> None:
    target = torch.tensor([[[0, 1, 1], [2, 2, 255]]])
    prediction = torch.tensor([[[0, 1, 0], [2, 1, 2]]])
    metric = SegmentationIoU(4)
    metric.update(prediction, target)
    values = metric.compute()
    # background 1/2, label 1: 1/3, label 2: 1/2 (the ignored pixel counts nowhere), label 3: in neither
    np.testing.assert_allclose(values["iou_per_class"].numpy(), [1 / 2, 1 / 3, 1 / 2, np.nan])
    assert values["miou"].item() == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_segmentation_iou_equals_sets_and_checks_labels() -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(3, 5, 7, 6)))
    target = torch.from_numpy(rng.choice([0, 1, 2, 3, 4, 255], size=(3, 7, 6)))
    metric = SegmentationIoU(5)
    metric.update(logits[:1], target[:1])
    metric.update(logits[1:], target[1:])
    best = logits.numpy().argmax(axis=1)
    known = target.numpy() != 255
    for label in range(5):
        said, is_true = set(np.flatnonzero((best == label) & known)), set(np.flatnonzero(target.numpy() == label))
        expected = len(said & is_true) / len(said | is_true)
        assert metric.compute()["iou_per_class"][label].item() == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match=r"target .*holds \[7\]; expected 0..4"):
        metric.update(logits, torch.full((3, 7, 6), 7))


def _worker(rank: int, folder: str) -> None:
    """One of two processes: sees every second episode, computes the synchronised value, saves it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    logits, target, classes = _random_episodes(3, 11, 4)
    few_shot, base = FewShotIoU(4), SegmentationIoU(2)
    few_shot.update(logits[rank::2], target[rank::2], classes[rank::2])
    base.update(logits[rank::2], target[rank::2])
    torch.save({"few_shot": few_shot.compute(), "base": base.compute()}, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_states_of_processes_add_up() -> None:
    logits, target, classes = _random_episodes(3, 11, 4)
    few_shot, base = [FewShotIoU(4) for _ in range(3)], [SegmentationIoU(2) for _ in range(3)]
    for number, part in enumerate((slice(None), slice(0, None, 2), slice(1, None, 2))):
        few_shot[number].update(logits[part], target[part], classes[part])
        base[number].update(logits[part], target[part])
    for whole, one, other in (few_shot, base):
        one.merge_state(other)  # type: ignore[arg-type]
        torch.testing.assert_close(one.compute(), whole.compute(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.slow  # starts two processes; the short suite has the test above
def test_two_processes_compute_the_one_process_value(tmp_path: Path) -> None:
    mp.spawn(_worker, args=(str(tmp_path),), nprocs=2)
    logits, target, classes = _random_episodes(3, 11, 4)
    few_shot, base = FewShotIoU(4), SegmentationIoU(2)
    few_shot.update(logits, target, classes)
    base.update(logits, target)
    for rank in range(2):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        torch.testing.assert_close(found["few_shot"], few_shot.compute(), rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(found["base"], base.compute(), rtol=0, atol=0, equal_nan=True)


# ----------------------------------------------------------------------------------------------------- any episodes


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 4), st.data())
def test_any_split_of_any_episodes_gives_the_pooled_figures(seed, num, num_classes, data):
    """Order, batches and processes must not matter, and the figures are those of the plain loop."""
    logits, target, classes = _random_episodes(seed, num, num_classes, size=4)
    whole = FewShotIoU(num_classes)
    whole.update(logits, target, classes)
    order = data.draw(st.permutations(range(num)))
    cut = data.draw(st.integers(0, num))
    parts = FewShotIoU(num_classes)
    for part in (order[:cut], order[cut:]):
        if part:
            parts.update(logits[part], target[part], classes[part])
    for name in ("intersection", "union", "counts"):
        assert torch.equal(whole.compute()[name], parts.compute()[name]), name
    values, expected = whole.compute(), _reference(logits, target, classes, num_classes)
    assert values["counts"].sum() == num
    np.testing.assert_allclose(values["iou_per_class"].numpy(), expected["iou_per_class"], rtol=1e-6)
    if not np.isnan(expected["miou"]):
        np.testing.assert_allclose(float(values["miou"]), expected["miou"], rtol=1e-6)
        assert 0 <= float(values["miou"]) <= 1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_ignored_pixels_count_nowhere(seed, num):
    logits, target, classes = _random_episodes(seed, num, 3, size=4)
    metric, other = FewShotIoU(3), FewShotIoU(3)
    metric.update(logits, target, classes)
    changed = logits.clone()
    changed[(target == 255)[:, None].expand_as(logits)] *= -1
    other.update(changed, target, classes)
    assert torch.equal(metric.compute()["union"], other.compute()["union"])
    assert torch.equal(metric.compute()["intersection"], other.compute()["intersection"])


def test_targets_of_any_integer_are_counted_alike() -> None:
    """8 bits in one pass on a CPU; the others as on a GPU."""
    logits, target, _ = _random_episodes(5, 4, 2)
    expected = count_pixels(logits, target)
    assert expected.sum((1, 2)).tolist() == (target != 255).sum((1, 2)).tolist()
    for dtype in (torch.int16, torch.int64):
        assert torch.equal(count_pixels(logits, target.to(dtype)), expected)
    renamed = torch.where(target == 255, -7, target.long())
    assert torch.equal(count_pixels(logits, renamed, ignore_index=-7), expected)
    for wrong in (target.clone(), target.long()):
        wrong[2, 3, 4] = 2
        with pytest.raises(ValueError, match=r"target \(besides ignore_index 255\) holds \[2\]; expected 0..1"):
            count_pixels(logits, wrong)


class TestSeveralClasses:
    """Three classes; episodes of two. The pictures are rows."""

    # Labels 1 and 2 are the first and the second class of the episode.
    EPISODES = (
        # classes 0 and 2; the truth shows both, the prediction too: exact.
        ([1, 1, 2, 0, 2, 0], [1, 2, 2, 0, 0, 255], (0, 2)),
        # classes 1 and 2; the query lacks class 2, and a stray pixel of it is predicted: not exact.
        ([1, 1, 0, 2, 0, 0], [1, 1, 1, 0, 0, 0], (1, 2)),
        # classes 2 and 0; what is predicted where the truth is ignored counts nowhere: exact.
        ([1, 0, 2, 0, 0, 0], [1, 0, 255, 0, 0, 0], (2, 0)),
    )

    def metric(self, episodes=EPISODES, **changes):
        metric = SeveralClassesIoU(3, ("cat", "dog", "cow"), **changes)
        for prediction, target, classes in episodes:
            metric.update(torch.tensor([prediction]), torch.tensor([target]), classes)
        return metric

    def test_hand_computed(self):
        values = self.metric().compute()
        # cat: 1 of 2 (its second pixel is a cow); dog: 2 of 3; cow: 1 + 0 + 1 of (the cow called cat, the hit, the
        # false one) + (the stray one) + (the hit)
        assert values["intersection"].tolist() == [1, 2, 2]
        assert values["union"].tolist() == [2, 3, 5]
        assert values["iou_per_class"].tolist() == [1 / 2, 2 / 3, 2 / 5]
        assert values["miou"].item() == pytest.approx((1 / 2 + 2 / 3 + 2 / 5) / 3)
        # Background: 1 of 2, 2 of 4, 4 of 4.
        assert values["iou_background"].item() == 7 / 10
        assert values["miou_with_background"].item() == pytest.approx((1 / 2 + 2 / 3 + 2 / 5 + 7 / 10) / 4)
        # Whatever class: 3 of 4, 2 of 4, 1 of 1.
        assert values["fb_iou"].item() == pytest.approx((6 / 9 + 7 / 10) / 2)
        assert values["exact_match"].item() == pytest.approx(2 / 3)
        assert (values["num_episodes"].item(), values["counts"].tolist()) == (3, [1, 1, 2])

    def test_base_and_novel(self):
        values = self.metric(num_base=2).compute()
        base, novel = (1 / 2 + 2 / 3) / 2, 2 / 5
        assert values["miou_base"].item() == pytest.approx(base)
        assert values["miou_novel"].item() == pytest.approx(novel)
        assert values["harmonic_mean"].item() == pytest.approx(2 * base * novel / (base + novel))
        nothing = self.metric([([0, 0], [1, 2], (0, 2))], num_base=2).compute()
        assert nothing["harmonic_mean"].item() == 0
        assert "harmonic_mean" not in self.metric().compute()

    def test_a_class_that_no_episode_has(self):
        episodes = [episode for episode in self.EPISODES if 1 not in episode[2]]
        assert self.metric(episodes).compute()["miou"].item() == pytest.approx((1 / 2 + 2 / 4) / 2)
        zero = self.metric(episodes, absent_is_zero=True).compute()
        assert zero["miou"].item() == pytest.approx((1 / 2 + 2 / 4) / 3)

    def test_of_one_class_it_is_the_metric_of_one_class(self):
        logits, target, classes = _random_episodes(7, 20, 3)
        several, one = SeveralClassesIoU(3), FewShotIoU(3)
        one.update(logits, target, classes)
        for scores, truth, owner in zip(logits, target, classes.tolist(), strict=True):
            several.update(scores.argmax(0), truth, [owner])
        found, expected = several.compute(), one.compute()
        for key in ("miou", "fb_iou", "iou_per_class", "intersection", "union"):
            assert found[key].equal(expected[key]), key

    def test_order_and_pickling_change_nothing(self):
        again = pickle.loads(pickle.dumps(self.metric(self.EPISODES[::-1])))
        for key, value in self.metric().compute().items():
            assert again.compute()[key].equal(value), key

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (([[3]], [[0]], (0, 1)), r"prediction holds \[3\]"),
            (([[0]], [[3]], (0, 1)), r"target .* holds \[3\]"),
            (([[0]], [[0, 0]], (0, 1)), "resize"),
            (([[0]], [[0]], (1, 1)), "one stands twice"),
            (([[0]], [[0]], (0, 3)), r"classes holds \[3\]; expected 0..2"),
        ],
    )
    def test_wrong_input_is_refused(self, arguments, message):
        prediction, target, classes = arguments
        with pytest.raises(ValueError, match=message):
            self.metric(()).update(torch.tensor(prediction), torch.tensor(target), classes)

    def test_wrong_numbers_are_refused(self):
        for changes in ({"num_base": 3}, {"num_base": -1}):
            with pytest.raises(ValueError, match="expected at least one class"):
                self.metric(**changes)
