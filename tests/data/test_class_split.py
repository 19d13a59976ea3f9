"""Fold lists against the published ones, and the base learner's renumbering."""

from __future__ import annotations

import pytest

from hdmnet.data.class_split import ClassSplit, split_classes


@pytest.mark.parametrize(
    ("fold", "novel"),
    [(0, (1, 2, 3, 4, 5)), (1, (6, 7, 8, 9, 10)), (2, (11, 12, 13, 14, 15)), (3, (16, 17, 18, 19, 20))],
)
def test_pascal_5i(fold: int, novel: tuple[int, ...]) -> None:
    result = split_classes(20, 4, fold, "contiguous")
    assert result.fold == fold
    assert result.val == result.test == result.novel == novel
    assert result.train == tuple(sorted(set(range(1, 21)) - set(novel)))


def test_coco_20i() -> None:
    fold = split_classes(80, 4, 1, "interleaved")
    expected = (2, 6, 10, 14, 18, 22, 26, 30, 34, 38, 42, 46, 50, 54, 58, 62, 66, 70, 74, 78)
    assert fold.novel == expected
    assert len(fold.train) == 60
    assert split_classes(80, 4, 2, "contiguous").novel == tuple(range(41, 61))


@pytest.mark.parametrize("rule", ["contiguous", "interleaved"])
def test_every_class_is_novel_once(rule: str) -> None:
    folds = [split_classes(12, 4, index, rule) for index in range(4)]  # type: ignore[arg-type]
    assert sorted(value for fold in folds for value in fold.novel) == list(range(1, 13))
    assert all(not set(fold.train) & set(fold.novel) for fold in folds)


def test_any_number_of_classes_can_be_split() -> None:
    assert len(split_classes(1000, 5, 4, "interleaved").train) == 800


def test_three_kinds_of_classes() -> None:
    split = ClassSplit(train=(1, 4), val=(2,), test=(3, 2))
    assert split.novel == (2, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((20, 4, 7, "contiguous"), r"^fold=7 does not exist, expected one of 0\.\.3: .*$"),
        ((20, 4, -1, "contiguous"), r"fold=-1 does not exist"),
        ((21, 4, 0, "contiguous"), r"21 classes cannot be split into 4 equal folds"),
        ((0, 4, 0, "contiguous"), r"0 classes cannot be split"),
        ((20, 1, 0, "contiguous"), r"num_folds=1, expected at least 2"),
        ((20, 4, 0, "random"), r"split rule 'random' is unknown, expected one of contiguous, interleaved"),
    ],
)
def test_errors_are_one_line(arguments: tuple[int, int, int, str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        split_classes(*arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
