"""Small data sets in memory, and DataModules on them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from hdmnet.data.class_split import ClassSplit
from hdmnet.data.datamodules.base_learner import BaseLearnerDataModule
from hdmnet.data.datamodules.few_shot import FewShotDataModule
from hdmnet.data.datasets.base import LabelMapDataset, SegmentationDataset
from hdmnet.data.transforms import BaseLearnerAugment, build_augment

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NUM_IMAGES = {"train": 48, "val": 24}


class MemoryDataset(LabelMapDataset):
    """Pictures of many sizes, made when read: one or two of 8 classes each, and a stripe to ignore."""

    name = "memory"
    class_names = tuple("abcdefgh")
    min_area = 20

    def ids(self, split):
        return [f"{split}{number}" for number in range(NUM_IMAGES[split])]

    def read_mask(self, image_id):
        number = int(image_id.lstrip("trainvl"))
        mask = np.zeros((40 + number % 7, 50 + number % 5), np.uint8)
        mask[4:20, 3:25] = number % 8 + 1
        if number % 3:
            mask[22:38, 20:45] = (number // 8 + 2 * number) % 8 + 1
        mask[:2] = 255
        return mask

    def read_image(self, image_id):
        mask = self.read_mask(image_id)
        noise = np.random.default_rng(sum(image_id.encode())).integers(0, 50, (*mask.shape, 3))
        return (noise + 20 * (mask % 255)[..., None]).astype(np.uint8)


class ManyClasses(SegmentationDataset):
    """A thousand classes as a user would write them: no more than has to be there, and a split of three.

    Every fifth class has four pictures of its own, with a patch of the next class over its edge.
    """

    name = "thousand"
    class_names = tuple(f"class {value}" for value in range(1, 1001))
    splits = ("train", "val", "test")
    min_area = 10

    def class_split(self, fold):
        return ClassSplit(train=tuple(range(1, 521)), val=tuple(range(521, 761)), test=tuple(range(761, 1001)))

    def ids(self, split):
        return [f"{value}-{shot}" for value in getattr(self.class_split(0), split)[::5] for shot in range(4)]

    def read_image(self, image_id):
        value, shot = map(int, image_id.split("-"))
        picture = np.full((16, 20, 3), 10 * shot, np.uint8)
        picture[self.read_class_mask(image_id, value) == 1] = (value % 256, value // 256, 200)
        return picture

    def read_class_mask(self, image_id, class_value):
        own = int(image_id.split("-")[0])
        mask = np.zeros((16, 20), np.uint8)
        if class_value == own:
            mask[2:10, 2:12] = 1
        elif class_value == own + 1:
            mask[8:12, 8:12] = 1
        mask[15] = 255
        return mask

    def class_areas(self, image_id):
        own = int(image_id.split("-")[0])
        return {own: 80, own + 1: 16}


def few_shot(dataset=None, *, setup="fit", augment="official", **changes):
    """A DataModule of episodes on a data set, `MemoryDataset` by default."""
    size = changes.pop("image_size", (32, 40))
    options = {
        "fold": 1,
        "shot": 2,
        "image_size": size,
        "augment": build_augment(augment, image_size=size, scale=(0.9, 1.1), mean=MEAN),
        "batch_size": 4,
        "mean": MEAN,
        "std": STD,
        "cache_dir": None,
        "num_workers": 0,
        "episodes_per_epoch": 10,
        "num_val_episodes": 7,
        "num_test_episodes": 5,
        "num_test_seeds": 3,
    }
    module = FewShotDataModule(dataset or MemoryDataset(), **(options | changes))
    if setup is not None:
        module.setup(setup)
    return module


def base_learner(dataset=None, *, setup="fit", **changes):
    """A DataModule of stage 1 on a data set, `MemoryDataset` by default."""
    options = {
        "fold": 1,
        "image_size": (32, 32),
        "augment": BaseLearnerAugment((32, 32), mean=MEAN),
        "batch_size": 4,
        "mean": MEAN,
        "std": STD,
        "cache_dir": None,
        "num_workers": 0,
    }
    module = BaseLearnerDataModule(dataset or MemoryDataset(), **(options | changes))
    if setup is not None:
        module.setup(setup)
    return module


def on_rank(module, rank, world_size):
    """The module as a process of several has it."""
    module.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, num_devices=world_size)
    return module
