"""Which classes are base and which are novel in each fold (PASCAL-5i, COCO-20i and their like)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np

from hdmnet.data.datasets.base import SegmentationDataset, SplitRule
from hdmnet.data.io.arrays import IGNORE, UInt8Array


@dataclass(frozen=True)
class Fold:
    """Class values (1..C, ascending) of one fold.

    Attributes:
        index: Number of the fold, from 0.
        base: Classes that are trained on; the base learner numbers them 1..len(base) in this order.
        novel: Classes that are held out for validation and test.
    """

    index: int
    base: tuple[int, ...]
    novel: tuple[int, ...]

    def base_lookup(self) -> UInt8Array:
        """Table that turns a class mask into the base learner's mask: `fold.base_lookup()[mask]`.

        Returns:
            (256,) uint8: base classes to 1..len(base), background and novel classes to 0, 255 (ignore) kept. Values
            that are no class at all also go to 255; the catalog refuses masks that hold any.
        """
        table = np.full(256, IGNORE, dtype=np.uint8)
        table[0] = 0
        table[list(self.novel)] = 0
        table[list(self.base)] = np.arange(1, len(self.base) + 1, dtype=np.uint8)
        return table


def fold_of(source: SegmentationDataset, fold: int) -> Fold:
    """Fold of a data set, by its own list of folds or by its rule.

    Args:
        source: The data set.
        fold: Which fold, 0..num_folds-1. A data set of which all classes are novel has no others: it takes any number,
            as checkpoints of any fold are tested on it.

    Returns:
        The fold.

    Raises:
        ValueError: No such fold.
    """
    if source.folds is None:
        return make_fold(len(source.class_names), source.num_folds, fold, source.split_rule)
    values = range(1, len(source.class_names) + 1)
    if source.folds == (tuple(values),):
        return Fold(index=0, base=(), novel=source.folds[0])
    if fold not in range(len(source.folds)):
        raise ValueError(f"fold={fold} does not exist, expected one of 0..{len(source.folds) - 1}: set fold to one")
    novel = source.folds[fold]
    return Fold(index=int(fold), base=tuple(value for value in values if value not in novel), novel=novel)


def make_fold(num_classes: int, num_folds: int, fold: int, rule: SplitRule) -> Fold:
    """Split the classes into base and novel.

    Args:
        num_classes: Number of classes C, without background; class values are 1..C.
        num_folds: Number of folds; must divide C.
        fold: Which fold, 0..num_folds-1.
        rule: "contiguous": fold i holds out classes i*n+1 … i*n+n with n = C/num_folds (PASCAL-5i).
            "interleaved": fold i holds out classes i+1, i+1+num_folds, i+1+2*num_folds, … (COCO-20i).

    Returns:
        The fold.

    Raises:
        ValueError: No such fold or rule, or the classes cannot be split evenly.
    """
    if num_folds < 2:
        raise ValueError(f"num_folds={num_folds}, expected at least 2: one fold would leave no base classes")
    if not 1 <= num_classes < IGNORE or num_classes % num_folds:
        raise ValueError(
            f"{num_classes} classes cannot be split into {num_folds} equal folds: expected 1..254 classes, a multiple"
            " of the number of folds"
        )
    if fold not in range(num_folds):
        raise ValueError(f"fold={fold} does not exist, expected one of 0..{num_folds - 1}: set fold to one of these")
    num_novel = num_classes // num_folds
    if rule == "contiguous":
        novel = tuple(range(fold * num_novel + 1, (fold + 1) * num_novel + 1))
    elif rule == "interleaved":
        novel = tuple(range(fold + 1, num_classes + 1, num_folds))
    else:
        raise ValueError(f"split rule {rule!r} is unknown, expected one of {', '.join(get_args(SplitRule))}")
    base = tuple(value for value in range(1, num_classes + 1) if value not in novel)
    return Fold(index=int(fold), base=base, novel=novel)
