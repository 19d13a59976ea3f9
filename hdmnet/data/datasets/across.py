"""PASCAL as the source or the target of a cross-dataset test."""

from __future__ import annotations

from dataclasses import replace

from hdmnet.data.class_split import ClassSplit
from hdmnet.data.datasets.pascal import PascalDataset
from hdmnet.runtime.errors import DatasetError


class CocoToPascal(PascalDataset):
    """PASCAL for checkpoints of COCO-20i: fold i tests the classes that COCO-20i's fold i has left out.

    As RePRI (Boudiaf et al., CVPR 2021) and HSNet test across data sets. For evaluation only, of VOC val.
    """

    name = "coco2pascal"
    splits = ("val",)
    novel_for = "coco"
    folds = (
        (1, 4, 9, 11, 12, 15),  # aeroplane, boat, chair, diningtable, dog, person
        (2, 6, 13, 18),  # bicycle, bus, horse, sofa
        (3, 7, 16, 17, 19, 20),  # bird, car, pottedplant, sheep, train, tvmonitor
        (5, 8, 10, 14),  # bottle, cat, cow, motorbike
    )

    def class_split(self, fold: int) -> ClassSplit:
        """The classes of a fold to test on, none to train on; ValueError: there is no such fold."""
        return replace(super().class_split(fold), train=())


class PascalAll(PascalDataset):
    """PASCAL with no class left out, to train for tests on other data sets.

    Validated and tested on the validation list's pictures of the same classes: no few-shot figures. As the
    cross-domain benchmark trains (Lei et al., "Cross-Domain Few-Shot Semantic Segmentation", ECCV 2022: PATNet).
    """

    name = "pascal_all"

    def class_split(self, fold: int) -> ClassSplit:
        """All classes for everything; ValueError: the fold is not 0."""
        if fold != 0:
            raise DatasetError(f"fold={fold}: {self.name} leaves no class out, expected fold=0")
        every = tuple(range(1, len(self.class_names) + 1))
        return ClassSplit(train=every, val=every, test=every)
