"""Intervals: by hand, and against what chance does when the truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hdmnet.tasks.episode_table import EpisodeTable
from hdmnet.tasks.intervals import estimate
from tests.helpers.episode_tables import table


def test_pixels_are_pooled_by_class_as_the_metric_does():
    both = table(
        a=[(0, 0, "p", 1, 4), (1, 0, "q", 3, 4), (2, 1, "p", 1, 1)],
        b=[(0, 0, "p", 2, 4), (1, 0, "q", 0, 4), (2, 1, "p", 0, 2)],
    )
    found = estimate(both, "a", "b")
    assert found.values == pytest.approx(((4 / 8 + 1) / 2, (2 / 8 + 0) / 2))
    assert found.num_episodes == 3
    assert estimate(both, "a").values == pytest.approx(found.values[:1])


def test_the_interval_by_hand():
    """One class of three pictures, of which one at a time is left out; Student's t of 2 degrees is 4.3027."""
    one = table(names=("a",), a=[(0, 0, "p", 1, 4), (1, 0, "q", 3, 4), (2, 0, "r", 5, 8)])
    moves = np.array([8 / 12, 6 / 12, 4 / 8]) - 9 / 16
    half = 4.302653 * math.sqrt(2 / 3 * ((moves - moves.mean()) ** 2).sum())
    found = estimate(one, "a")
    assert (found.low, found.high) == pytest.approx((9 / 16 - half, 9 / 16 + half))


def test_seeds_are_averaged_as_results_are_and_a_picture_leaves_all_of_them_at_once():
    rows = [(i, i % 2, f"p{i}", 20 + 7 * i % 60, 90, seed) for seed in (0, 1) for i in range(10)]
    twice, once = table(a=rows), table(a=rows[:10])
    both, first = estimate(twice, "a"), estimate(once, "a")
    assert both.values == pytest.approx(first.values)
    assert (both.low, both.high) == pytest.approx((first.low, first.high))
    unlike = [(0, 0, "p", 1, 2), (1, 1, "q", 1, 4), (0, 0, "p", 2, 2, 1)]  # class 1 has no episode in the second seed
    assert estimate(table(a=unlike), "a").values == pytest.approx(((3 / 8 + 1) / 2,))
    assert estimate(table(a=unlike), "a", absent_is_zero=True).values == pytest.approx(((3 / 8 + 1 / 2) / 2,))


def test_only_episodes_that_both_have_count():
    both = table(a=[(0, 0, "p", 1, 2), (1, 0, "q", 2, 2), (5, 0, "u", 0, 9)], b=[(1, 0, "q", 1, 2), (0, 0, "p", 1, 4)])
    found = estimate(both, "a", "b")
    assert (found.num_episodes, found.values) == (2, (3 / 4, 2 / 6))
    assert estimate(table(a=[(0, 0, "p", 1, 2)], b=[(1, 0, "q", 1, 2)]), "a", "b") is None
    assert estimate(table(a=[(0, 0, "p", 0, 0)], b=[(0, 0, "p", 0, 0)]), "a", "b") is None
    assert estimate(both, "a", "c") is None


def test_a_single_picture_tells_nothing_of_the_noise():
    both = table(a=[(0, 0, "p", 9, 10), (1, 1, "q", 9, 10)], b=[(0, 0, "p", 1, 10), (1, 1, "q", 1, 10)])
    found = estimate(both, "a", "b")
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert not found.is_above


def test_a_class_of_one_picture_is_taken_for_as_noisy_as_the_others():
    rows = [(0, 0, "p", 1, 4), (1, 0, "q", 3, 4), (2, 0, "r", 5, 8)]
    alone, beside = (estimate(table(a=rows + more), "a") for more in ([], [(3, 1, "s", 1, 2)]))
    # Half the weight in the mean, and twice the variance.
    assert beside.high - beside.low == pytest.approx((alone.high - alone.low) / math.sqrt(2))


def test_the_same_gain_everywhere_is_no_chance_though_the_pictures_differ_much():
    """What makes a picture hard is the same for both, and falls out."""
    hard = np.random.default_rng(1).integers(5, 95, 40)
    both = table(
        a=[(i, i % 2, i, int(h) + 3, 100) for i, h in enumerate(hard)],
        b=[(i, i % 2, i, int(h), 100) for i, h in enumerate(hard)],
    )
    found = estimate(both, "a", "b")
    assert found.low == pytest.approx(0.03)
    assert found.is_above


def test_asking_the_same_pictures_again_makes_nothing_more_certain():
    random = np.random.default_rng(2)
    a, b = ([(i, 0, i, int(random.integers(20, 80)), 100) for i in range(8)] for _ in range(2))
    once = estimate(table(a=a, b=b), "a", "b")
    again, more = ([(i + 8 * k, *rest) for k in range(30) for i, *rest in rows] for rows in (a, b))
    often = estimate(table(a=again, b=more), "a", "b")
    assert often.high - often.low == pytest.approx(once.high - once.low)


# ------------------------------------------------------------------------------------------- a world of known truth

NUM_CLASSES, AREA = 5, 180_000  # pixels of a picture
MOST_ASKED = 8  # times that a picture is asked


def sample(random, value, number, times):
    """Pixels of pictures of a class: intersection and union (N, T, 2) of two predictions, T times asked; which count.

    Objects of all sizes (log-normal), some hard; what a prediction finds hangs on picture, support and method, and
    false positives come in lumps.
    """
    area = np.exp(random.normal(9.5, 1.2, number)).clip(500, 150_000)[:, None, None]
    hard = random.normal(0, 0.8, (number, 1, 1))
    support = random.normal(0, 0.7, (number, times, 1))
    own = random.normal(0, 0.6, (number, times, 2)) + np.array([0.0, 0.075])  # the second method is a little better
    recall = 1 / (1 + np.exp(-1.5 * (0.4 + value / 20 + hard + support + own + 0.25 * np.log(area / 13_000))))
    false = np.exp(random.normal(8, 1.4, recall.shape)) * (1 - 0.7 * recall)
    asked = np.arange(times) < (1 + random.poisson(1.7, number))[:, None]
    return recall * area, area + np.minimum(false, AREA - area), asked


def truth():
    """mIoU of both methods over all pictures there could be."""
    random = np.random.default_rng(0)
    sums = np.zeros((NUM_CLASSES, 2, 2))
    for value in range(NUM_CLASSES):
        found, either, asked = sample(random, value, 60_000, 3)
        sums[value] = [one[asked].sum(0) for one in (found, either)]
    return (sums[:, 0] / sums[:, 1]).mean(0)


@pytest.mark.parametrize("per_class", [30, pytest.param(70, marks=pytest.mark.slow)])
def test_the_intervals_hold_what_is_true_in_95_of_100_tests(per_class):
    """1,000 tests of which each has other pictures: mIoU, and the difference of two methods."""
    real = truth()
    random = np.random.default_rng(per_class)
    held = np.zeros(2)
    for _ in range(1000):
        parts = [sample(random, value, per_class, MOST_ASKED) for value in range(NUM_CLASSES)]
        found, either, asked = (np.concatenate(part) for part in zip(*parts, strict=True))
        picture, _ = np.nonzero(asked)
        shared, union = found[asked].round().astype(np.int64), either[asked].round().astype(np.int64)
        zeros = np.zeros_like(shared)
        pixels = np.stack([zeros, union - shared, zeros, shared], axis=-1).reshape(-1, 2, 2, 2)
        episodes = EpisodeTable(
            tuple(map(str, range(NUM_CLASSES))),
            seed=np.zeros(len(picture), dtype=np.int64),
            index=np.arange(len(picture)),
            class_index=picture // per_class,
            queries=tuple(picture.tolist()),
            pixels={"a": pixels[:, 0], "b": pixels[:, 1]},
        )
        for place, (names, wanted) in enumerate(((("a",), real[0]), (("b", "a"), real[1] - real[0]))):
            one = estimate(episodes, *names)
            held[place] += one.low <= wanted <= one.high
    assert np.all((held >= 930) & (held <= 970)), held
