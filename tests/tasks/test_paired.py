"""Paired counts: by hand, and the interval against what chance does when the truth is known."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hdmnet.tasks.paired import PairedCounts, compare_pairs


def counts(**by_name):
    """Of each prediction rows (place, class, shared pixels, pixels of either)."""
    found = PairedCounts()
    found.by_name = {name: {place: rest for place, *rest in rows} for name, rows in by_name.items()}
    return found


def test_pixels_are_pooled_by_class_as_the_metric_does():
    both = counts(a=[(0, 0, 1, 4), (1, 0, 3, 4), (2, 1, 1, 1)], b=[(0, 0, 2, 4), (1, 0, 0, 4), (2, 1, 0, 2)])
    found = compare_pairs(both, "a", "b", ["p", "q", "p"])
    assert found.first == pytest.approx((4 / 8 + 1) / 2)
    assert found.second == pytest.approx((2 / 8 + 0) / 2)
    assert found.num_episodes == 3
    assert both.miou("a") == pytest.approx(found.first)


def test_only_episodes_that_both_have_count():
    both = counts(a=[(0, 0, 1, 2), (1, 0, 2, 2), (5, 0, 0, 9)], b=[(1, 0, 1, 2), (0, 0, 1, 4)])
    found = compare_pairs(both, "a", "b", list("pqrstu"))
    assert (found.num_episodes, found.first, found.second) == (2, 3 / 4, 2 / 6)
    assert compare_pairs(counts(a=[(0, 0, 1, 2)], b=[(1, 0, 1, 2)]), "a", "b", "pq") is None
    assert compare_pairs(counts(a=[(0, 0, 0, 0)], b=[(0, 0, 0, 0)]), "a", "b", "p") is None


def test_a_single_picture_tells_nothing_of_the_noise():
    both = counts(a=[(0, 0, 9, 10), (1, 1, 9, 10)], b=[(0, 0, 1, 10), (1, 1, 1, 10)])
    found = compare_pairs(both, "a", "b", "pq")
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert not found.is_above


def test_the_same_gain_everywhere_is_no_chance_though_the_pictures_differ_much():
    """What makes a picture hard is the same for both, and falls out."""
    hard = np.random.default_rng(1).integers(5, 95, 40)
    both = counts(
        a=[(i, i % 2, int(h) + 3, 100) for i, h in enumerate(hard)],
        b=[(i, i % 2, int(h), 100) for i, h in enumerate(hard)],
    )
    found = compare_pairs(both, "a", "b", [str(i) for i in range(40)])
    assert found.low == pytest.approx(0.03)
    assert found.is_above


def test_asking_the_same_pictures_again_makes_nothing_more_certain():
    random = np.random.default_rng(2)
    rows = [(i, 0, int(random.integers(20, 80)), 100) for i in range(8)]
    other = [(i, 0, int(random.integers(20, 80)), 100) for i in range(8)]
    once = compare_pairs(counts(a=rows, b=other), "a", "b", list(range(8)))
    again = [(i + 8 * k, *rest) for k in range(30) for i, *rest in rows]
    more = [(i + 8 * k, *rest) for k in range(30) for i, *rest in other]
    often = compare_pairs(counts(a=again, b=more), "a", "b", list(range(8)) * 30)
    assert often.high - often.low == pytest.approx(once.high - once.low)


def test_the_interval_holds_what_is_true_about_as_often_as_it_says():
    """Two predictions of equal worth: of 200 tests few call one better; two-sided 95 % leave 2.5 % above."""
    random = np.random.default_rng(3)
    above = 0
    for _ in range(200):
        shared = random.integers(30, 70, (2, 2, 25))  # prediction, class, picture
        rows = [[(25 * c + i, c, int(shared[p, c, i]), 100) for c in range(2) for i in range(25)] for p in range(2)]
        above += compare_pairs(counts(a=rows[0], b=rows[1]), "a", "b", list(range(50))).is_above
    assert above <= 14


def test_episodes_of_the_first_seed_are_taken_each_at_its_place():
    batch = SimpleNamespace(
        index=torch.tensor([4, 7, 2, 3]), seed_index=torch.tensor([0, 1, 0, 0]), class_index=torch.tensor([1, 0, 2])
    )
    pixels = torch.tensor([[[5, 1], [2, 3]], [[0, 0], [0, 9]], [[4, 0], [0, 6]]])
    found = PairedCounts()
    found.add("all", pixels, batch, item=[0, 1, 2, 2])
    found.add("some", pixels[2:], batch, item=[0, 1, 2, 2], chosen=[2])
    assert found.by_name["all"] == {4: (1, 3, 6), 2: (2, 6, 6), 3: (2, 6, 6)}
    assert found.by_name["some"] == {2: (2, 6, 6), 3: (2, 6, 6)}
    found.gather()  # alone: nothing to wait for
    assert set(found.by_name) == {"all", "some"}
