"""Which classes are trained on, validated on and tested on in a fold (PASCAL-5i, COCO-20i and their like)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from hdmnet.runtime.errors import DatasetError

SplitRule = Literal["contiguous", "interleaved"]


@dataclass(frozen=True)
class ClassSplit:
    """Class values (1..C, ascending) of one fold.

    Attributes:
        train: The base classes; the base learner numbers them 1..len(train) in this order.
        val: Classes of the validation episodes, held out in training unless no class is.
        test: Classes of the test episodes, likewise; in this field mostly those of the validation.
        fold: Number that goes into the episodes' key; 0 where a data set has but one split.
    """

    train: tuple[int, ...]
    val: tuple[int, ...]
    test: tuple[int, ...]
    fold: int = 0

    @property
    def novel(self) -> tuple[int, ...]:
        """All held-out classes, ascending: what training pictures must not show."""
        return tuple(sorted({*self.val, *self.test}.difference(self.train)))

    @property
    def tests_base(self) -> bool:
        """Whether no class is left out: the test is on classes of the training."""
        return bool(self.train) and set(self.test) <= set(self.train)


def single_class(dataset: str, name: str) -> str:
    """Why a data set of one class cannot be trained on, and what it is for."""
    return (
        f"{dataset} has a single class, {name!r}, and a training needs base classes beside the novel ones: train on "
        "another data set, then test this one (python -m hdmnet.evaluate ckpt=… without dataset.num_folds and "
        "dataset.folds) or segment its pictures (python -m hdmnet.predict ckpt=…)"
    )


def hold_out(num_classes: int, novel: tuple[int, ...], fold: int) -> ClassSplit:
    """The split whose novel classes are validated and tested on, and all others trained on."""
    base = sorted(set(range(1, num_classes + 1)).difference(novel))
    return ClassSplit(train=tuple(base), val=novel, test=novel, fold=int(fold))


def split_classes(num_classes: int, num_folds: int, fold: int, rule: SplitRule) -> ClassSplit:
    """Split the classes 1..C into base and novel; the novel ones serve validation and test.

    Args:
        num_classes: Number of classes C, without background.
        num_folds: Number of folds; must divide C.
        fold: Which fold, 0..num_folds-1.
        rule: "contiguous": fold i holds out classes i*n+1 … i*n+n with n = C/num_folds (PASCAL-5i).
            "interleaved": fold i holds out classes i+1, i+1+num_folds, i+1+2*num_folds, … (COCO-20i).

    Raises:
        ValueError: No such fold or rule, or the classes cannot be split evenly.
    """
    if num_folds < 2:
        raise DatasetError(f"num_folds={num_folds}, expected at least 2: one fold would leave no base classes")
    if num_classes < 1 or num_classes % num_folds:
        raise DatasetError(
            f"{num_classes} classes cannot be split into {num_folds} equal folds: expected a multiple of the number of"
            " folds"
        )
    if fold not in range(num_folds):
        raise DatasetError(f"fold={fold} does not exist, expected one of 0..{num_folds - 1}: set fold to one of these")
    num_novel = num_classes // num_folds
    if rule == "contiguous":
        novel = tuple(range(fold * num_novel + 1, (fold + 1) * num_novel + 1))
    elif rule == "interleaved":
        novel = tuple(range(fold + 1, num_classes + 1, num_folds))
    else:
        raise DatasetError(f"split rule {rule!r} is unknown, expected one of {', '.join(get_args(SplitRule))}")
    return hold_out(num_classes, novel, fold)
