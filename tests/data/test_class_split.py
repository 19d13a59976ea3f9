"""Fold lists against the published ones, and the base learner's renumbering."""

from __future__ import annotations

import numpy as np
import pytest

from hdmnet.data.class_split import make_fold


@pytest.mark.parametrize(
    ("fold", "novel"),
    [(0, (1, 2, 3, 4, 5)), (1, (6, 7, 8, 9, 10)), (2, (11, 12, 13, 14, 15)), (3, (16, 17, 18, 19, 20))],
)
def test_pascal_5i(fold: int, novel: tuple[int, ...]) -> None:
    result = make_fold(20, 4, fold, "contiguous")
    assert result.index == fold
    assert result.novel == novel
    assert result.base == tuple(sorted(set(range(1, 21)) - set(novel)))


def test_coco_20i() -> None:
    fold = make_fold(80, 4, 1, "interleaved")
    expected = (2, 6, 10, 14, 18, 22, 26, 30, 34, 38, 42, 46, 50, 54, 58, 62, 66, 70, 74, 78)
    assert fold.novel == expected
    assert len(fold.base) == 60
    assert make_fold(80, 4, 2, "contiguous").novel == tuple(range(41, 61))


@pytest.mark.parametrize("rule", ["contiguous", "interleaved"])
def test_every_class_is_novel_once(rule: str) -> None:
    folds = [make_fold(12, 4, index, rule) for index in range(4)]  # type: ignore[arg-type]
    assert sorted(value for fold in folds for value in fold.novel) == list(range(1, 13))
    assert all(not set(fold.base) & set(fold.novel) for fold in folds)


def test_base_lookup() -> None:
    table = make_fold(8, 4, 1, "contiguous").base_lookup()  # novel 3, 4
    assert table.dtype == np.uint8
    assert table.shape == (256,)
    mask = np.array([[0, 1, 2, 3, 4], [5, 6, 7, 8, 255]], dtype=np.uint8)
    np.testing.assert_array_equal(table[mask], [[0, 1, 2, 0, 0], [3, 4, 5, 6, 255]])
    assert set(table[9:].tolist()) == {255}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((20, 4, 7, "contiguous"), r"^fold=7 does not exist, expected one of 0\.\.3: .*$"),
        ((20, 4, -1, "contiguous"), r"fold=-1 does not exist"),
        ((21, 4, 0, "contiguous"), r"21 classes cannot be split into 4 equal folds"),
        ((256, 4, 0, "contiguous"), r"256 classes cannot be split"),
        ((0, 4, 0, "contiguous"), r"0 classes cannot be split"),
        ((20, 1, 0, "contiguous"), r"num_folds=1, expected at least 2"),
        ((20, 4, 0, "random"), r"split rule 'random' is unknown, expected one of contiguous, interleaved"),
    ],
)
def test_errors_are_one_line(arguments: tuple[int, int, int, str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make_fold(*arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
