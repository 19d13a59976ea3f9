from __future__ import annotations

import os
from math import sqrt

import pytest

from hdmnet.reporting.aggregate import Value, choose, describe_runs, mixed_episodes, pool_runs
from hdmnet.reporting.collect import collect
from tests.helpers.reports import write_run


@pytest.fixture
def runs_of(tmp_path):
    def write(*keys):
        for number, own in enumerate(keys):
            os.utime(write_run(tmp_path, f"run{number}", **own) / "result.json", (number, number))
        return collect([tmp_path]).runs

    return write


def test_one_run_spreads_over_its_test_seeds(runs_of):
    value = pool_runs(runs_of({"miou": (0.4, 0.6)}))
    assert value == Value(pytest.approx(0.5), pytest.approx(0.1 * sqrt(2)), "2 test seeds", (0,), 1)


def test_mean_over_folds_spreads_over_the_test_seeds_of_that_mean(runs_of):
    value = pool_runs(runs_of({"fold": 0, "miou": (0.2, 0.4)}, {"fold": 2, "miou": (0.8, 0.6)}))
    # Seed 1: (0.2 + 0.8) / 2; seed 2: (0.4 + 0.6) / 2: the same.
    assert value == Value(pytest.approx(0.5), pytest.approx(0.0), "2 test seeds", (0, 2), 2)


def test_training_seeds_come_first(runs_of):
    runs = runs_of(
        {"fold": 0, "seed": 0, "miou": (0.1, 0.3)},
        {"fold": 0, "seed": 1, "miou": (0.5, 0.7)},
        {"fold": 1, "seed": 0, "miou": (0.4, 0.4)},
        {"fold": 1, "seed": 1, "miou": (0.2, 0.2)},
    )
    # Seed 0: (0.2 + 0.4) / 2 = 0.3, seed 1: (0.6 + 0.2) / 2 = 0.4.
    value = pool_runs(runs)
    assert value == Value(pytest.approx(0.35), pytest.approx(0.1 / sqrt(2)), "2 training seeds", (0, 1), 4)
    assert describe_runs(runs) == "folds 0–1, 2 training seeds"


def test_folds_weigh_alike_whatever_their_number_of_seeds(runs_of):
    runs = runs_of(
        {"fold": 0, "seed": 0, "miou": (0.2, 0.4)},
        {"fold": 0, "seed": 1, "miou": (0.4, 0.6)},
        {"fold": 3, "seed": 0, "miou": (0.8, 0.9)},
    )
    # Fold 0: 0.4, fold 3: 0.85. One common training seed only: over test seeds, (0.3 + 0.8) / 2 and (0.5 + 0.9) / 2.
    assert pool_runs(runs) == Value(pytest.approx(0.625), pytest.approx(0.15 / sqrt(2)), "2 test seeds", (0, 3), 3)
    assert describe_runs(runs) == "folds 0, 3, 1 to 2 training seeds"


def test_no_spread_from_one_seed_or_unequal_numbers_of_them(runs_of):
    runs = runs_of({"fold": 0, "miou": (0.5,)}, {"fold": 1, "miou": (0.5, 0.6)})
    assert pool_runs(runs[:1]).spread is None
    assert pool_runs(runs).spread is None
    assert pool_runs([]) == Value()


def test_fb_iou_has_figures_of_its_own(runs_of):
    assert pool_runs(runs_of({"fb_iou": (0.7, 0.9)}), "fb_iou").mean == pytest.approx(0.8)


def test_of_equal_runs_the_one_with_most_episodes_then_the_newest_counts(runs_of):
    runs = runs_of(
        {"episodes": 100, "miou": (0.1, 0.1)},
        {"episodes": 1000, "miou": (0.2, 0.2)},
        {"episodes": 1000, "miou": (0.3, 0.3)},
        {"seed": 1, "episodes": 10},
    )
    chosen, left_out = choose(runs)
    assert [run.folder.name for run in chosen] == ["run2", "run3"]
    assert sorted(run.folder.name for run in left_out) == ["run0", "run1"]


def test_unequal_test_episodes_are_told(runs_of):
    runs = runs_of({"seed": 0}, {"seed": 1}, {"seed": 2, "episodes": 50}, {"fold": 1, "episodes": 50})
    (warning,) = mixed_episodes(runs)
    assert warning.startswith("fold 0, 1-shot: runs with 2 different sets of test episodes")
    assert "(100 x 2)" in warning
    assert "(50 x 2)" in warning
