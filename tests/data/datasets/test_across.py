"""PASCAL as source and target of tests across data sets."""

from __future__ import annotations

import pytest

from hdmnet.data.datasets import coco, pascal
from hdmnet.data.datasets.across import CocoToPascal, PascalAll
from hdmnet.data.datasets.coco import CocoDataset

# What PASCAL's classes are called in COCO, where that differs.
IN_COCO = {
    **{"aeroplane": "airplane", "diningtable": "dining table", "motorbike": "motorcycle"},
    **{"pottedplant": "potted plant", "sofa": "couch", "tvmonitor": "tv"},
}


def test_coco_to_pascal_has_the_published_classes():
    """RePRI (Boudiaf et al., CVPR 2021) publishes them; they are the classes that COCO-20i's fold holds out."""
    dataset = CocoToPascal("nowhere")
    assert [dataset.class_split(fold).test for fold in range(4)] == [
        (1, 4, 9, 11, 12, 15), (2, 6, 13, 18), (3, 7, 16, 17, 19, 20), (5, 8, 10, 14)
    ]  # fmt: skip
    for fold in range(4):
        split = dataset.class_split(fold)
        held_out = {coco.CLASS_NAMES[value - 1] for value in CocoDataset("nowhere").class_split(fold).test}
        names = [pascal.CLASS_NAMES[value - 1] for value in split.test]
        assert {IN_COCO.get(name, name) for name in names} == held_out & {
            IN_COCO.get(name, name) for name in pascal.CLASS_NAMES
        }
        assert (split.train, split.val, split.fold) == ((), split.test, fold)
    with pytest.raises(ValueError, match="fold=4 does not exist"):
        dataset.class_split(4)


def test_all_of_pascal_leaves_no_class_out():
    split = PascalAll("nowhere").class_split(0)
    assert split.train == split.val == split.test == tuple(range(1, 21))
    assert split.novel == ()
    assert split.tests_base
    with pytest.raises(ValueError, match="leaves no class out, expected fold=0"):
        PascalAll("nowhere").class_split(1)
    assert not CocoToPascal("nowhere").class_split(0).tests_base
    assert not pascal.PascalDataset("nowhere").class_split(0).tests_base
