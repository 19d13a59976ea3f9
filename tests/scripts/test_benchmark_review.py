"""The measurement of review scores: its figures by hand."""

from __future__ import annotations

import numpy as np
import pytest

from hdmnet.apps.segmenter import Prediction
from scripts.benchmarks import benchmark_review as bench


def test_share_of_the_error_in_the_first_fifth():
    error = np.array([0.1, 0.4, 0.2, 0.3, 0.0, 0.5])  # a fifth of six: one picture, and 0.2 of the next
    assert bench.first_share(error, -error) == pytest.approx((0.5 + 0.2 * 0.4) / 1.5)
    assert bench.first_share(error, np.arange(6)) == pytest.approx((0.1 + 0.2 * 0.4) / 1.5)


def test_scores_of_a_prediction():
    probability = np.full((8, 8), 0.1, np.float32)
    probability[:4] = 0.9
    found = bench.scores(Prediction((probability > 0.5).astype(np.uint8), {"object": probability}))
    assert found["expected IoU"] == pytest.approx(32 * 0.9 / (32 + 32 * 0.1))
    assert found["margin, all pixels"] == found["margin, around the border"] == pytest.approx(0.8)
    assert found["IoU of the masks at 0.3 and 0.7"] == 1
    assert (found["size"], found["few parts"]) == (0.5, -1)
    entropy = 0.1 * np.log(0.1) + 0.9 * np.log(0.9)
    assert found["entropy, all pixels"] == pytest.approx(entropy)


def test_the_table_puts_what_ranks_best_first():
    rows = [
        {"good": value, "bad": -value, "iou": value, "list": place % 2}
        for place, value in enumerate((0.1, 0.2, 0.6, 0.9))
    ]
    for row in rows:
        row["present"] = 1.0
    lines = bench.table("method", rows)
    assert lines[0].startswith("method: 4 pictures, 2 lists, 4 show the class; mean IoU 0.450")
    assert [line.split("|")[1:4] for line in lines[4:7]] == [
        [" the truth ", " 1.00 ", " 1.00 "],
        [" good ", " 1.00 ", " 1.00 "],
        [" bad ", " -1.00 ", " -1.00 "],
    ]
