"""Data sets keep the contract; one of a thousand classes, written as a user would, goes all the way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from hdmnet.data.catalog import load_catalog
from hdmnet.data.datasets.base import SegmentationDataset
from hdmnet.data.datasets.coco import CocoDataset
from hdmnet.data.datasets.folder.dataset import FolderDataset
from hdmnet.data.datasets.fss1000 import Fss1000Dataset
from hdmnet.data.datasets.lvis import LvisDataset
from hdmnet.data.datasets.pascal import PascalDataset
from hdmnet.data.datasets.shapes.dataset import ShapesDataset
from hdmnet.metrics import FewShotIoU
from tests.contracts import DatasetContract
from tests.helpers.datasets import ManyClasses, MemoryDataset, base_learner, few_shot
from tests.helpers.folder_trees import WRITERS, shapes_content, write


class TestShapes(DatasetContract):
    fold = 1

    @pytest.fixture
    def dataset(self):
        return ShapesDataset(fold=1, num_train=6, num_val=6)


class TestPascal(DatasetContract):
    @pytest.fixture
    def dataset(self, data_dir):
        lists = data_dir / "pascal" / "ImageSets" / "Segmentation"
        return PascalDataset(data_dir / "pascal", str(lists / "train.txt"), str(lists / "val.txt"))


class TestCoco(DatasetContract):
    @pytest.fixture
    def dataset(self, data_dir):
        return CocoDataset(data_dir / "coco")


class TestCoco2017(DatasetContract):
    @pytest.fixture
    def dataset(self, raw_data_dir, tmp_path):
        return CocoDataset(raw_data_dir / "coco", year=2017, cache_dir=tmp_path)


class TestLvis(DatasetContract):
    fold = 9

    @pytest.fixture
    def dataset(self, raw_data_dir, tmp_path):
        return LvisDataset(raw_data_dir / "coco", num_classes=None, cache_dir=tmp_path)


class TestFss1000(DatasetContract):
    @pytest.fixture
    def dataset(self, raw_data_dir):
        return Fss1000Dataset(raw_data_dir / "fss1000", num_classes=None)


class TestFolder(DatasetContract):
    @pytest.fixture(params=list(WRITERS))
    def dataset(self, request, tmp_path):
        root = tmp_path / "tree"
        root.mkdir()
        write(request.param, root, shapes_content(num_pictures=12, one_class=request.param == "fss", side=48))
        return FolderDataset(root, num_folds=2)


class TestMemory(DatasetContract):
    @pytest.fixture
    def dataset(self):
        return MemoryDataset()


class TestManyClasses(DatasetContract):
    @pytest.fixture
    def dataset(self):
        return ManyClasses()


# -------------------------------------------------------------------------------------------------- a thousand classes


def test_a_thousand_classes_go_all_the_way():
    module = few_shot(ManyClasses(), setup=None, image_size=(16, 16), augment="none", num_test_episodes=40)
    module.setup()
    assert (len(module.val_names), len(module.novel_names), module.num_base) == (240, 240, 520)
    assert (module.val_names[0], module.novel_names[-1]) == ("class 521", "class 1000")
    assert module.test_list == "test"
    assert [manifest.header["split"] for manifest in (module.val_manifest, *module.test_manifests)] == [
        *("val", "test", "test", "test")
    ]
    for manifest, classes in ((module.val_manifest, (521, 760)), (module.test_manifests[0], (761, 1000))):
        assert all(classes[0] <= episode.class_value <= classes[1] for episode in manifest)
        assert max(int(episode.query_id.split("-")[0]) for episode in manifest) > 520
    # The filter leaves out no base picture: none shows a class that is held out.
    assert len(module.train_manifest.view) == 416

    metric = FewShotIoU(len(module.novel_names))
    for batch in module.test_dataloader():
        assert set(batch.query_mask.unique().tolist()) == {0, 1, 255}
        for item, mask in enumerate(batch.query_mask_original):
            metric.update((mask == 1).long()[None], mask[None], batch.class_index[item : item + 1])
    assert metric.compute()["miou"] == 1
    batch = next(iter(module.train_dataloader()))
    assert int(batch.class_index.max()) < 520
    assert torch.equal((batch.support_masks == 1).flatten(2).any(2), torch.ones(4, 2, dtype=torch.bool))


def test_overlapping_classes_keep_all_of_their_pixels():
    dataset = ManyClasses()
    assert (dataset.read_class_mask("6-0", 6) == 1).sum() == 80
    labels = dataset.read_label_map("6-0", [7, 6])
    assert {label: int((labels == label).sum()) for label in (1, 2)} == {1: 16, 2: 72}  # the smaller one on top
    assert set(np.unique(dataset.read_label_map("6-0", [9]))) == {0, 255}


def test_a_label_map_of_too_many_classes_is_refused():
    with pytest.raises(ValueError, match="a label map of 520 classes is asked for, expected at most 254"):
        next(iter(base_learner(ManyClasses()).train_dataloader()))


@pytest.mark.long
def test_class_folders_hold_more_than_254_classes(tmp_path):
    """FSS-1000's layout."""
    for number in range(300):
        folder = tmp_path / f"{number:03d}"
        folder.mkdir()
        Image.new("RGB", (8, 6)).save(folder / "a.jpg")
        Image.fromarray(np.eye(6, 8, dtype=np.uint8) * np.uint8(255)).save(folder / "a.png")
    dataset = FolderDataset(tmp_path)
    assert len(dataset.class_names) == len(dataset.class_split(0).test) == 300
    assert dataset.class_areas("299/a") == {300: 6}
    assert dataset.read_class_mask("299/a", 300).sum() == 6
    catalog = load_catalog(dataset, "val", None, num_workers=0, progress=False)
    assert catalog.class_value.tolist() == list(range(1, 301))


class Careless(SegmentationDataset):
    """Masks by hand, with a mistake if asked for."""

    name, class_names = "careless", ("a", "b")

    def __init__(self, mask):
        self.mask = mask

    def ids(self, split):
        return ["one"]

    def read_image(self, image_id):
        return np.zeros((2, 3, 3), np.uint8)

    def read_class_mask(self, image_id, class_value):
        return self.mask if class_value == 1 else np.zeros((2, 3), np.uint8)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((2, 3), 7, np.uint8), r"careless mask 'one' of class 1 holds 7, expected 0, 1 or 255"),
        (np.zeros((3, 3), np.uint8), r"careless mask 'one' is 3x3 \(HxW\) but its picture is 2x3"),
        (np.zeros((2, 3), np.int64), r"careless mask 'one' has shape \(2, 3\) and type int64"),
    ],
)
def test_wrong_masks_are_refused_in_one_line(mask, message):
    with pytest.raises(ValueError, match=message):
        load_catalog(Careless(mask), "train", None, num_workers=0, progress=False)


def test_what_cannot_be_told_apart_is_not_kept(tmp_path):
    load_catalog(Careless(np.ones((2, 3), np.uint8)), "train", tmp_path, num_workers=0, progress=False)
    assert not list(tmp_path.iterdir())
