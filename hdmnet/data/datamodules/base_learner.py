"""The DataModule of stage 1: pictures with the masks of the base classes."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Unpack

import numpy as np

from hdmnet.data.datamodules.base import VAL_SEED, FoldDataModule, FoldOptions
from hdmnet.data.episodes.samples import EvalSegmentation, TrainSegmentation, hold_out_images, permutation
from hdmnet.data.types import (
    SegmentationSample,
    collate_segmentation,
)
from hdmnet.runtime.errors import DatasetError

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from hdmnet.data.datasets.base import SegmentationDataset, Split


class BaseLearnerDataModule(FoldDataModule):
    """Stage 1: ordinary segmentation of the base classes, on the fold's training images or on all of the list.

    Novel pixels are background, or ignored (`novel_pixels`). Validation takes all validation images (base IoU is pooled
    over pixels), resized to `val_size` and compared there.

    Attributes:
        class_split: Class values for training, validation and test; known before `setup`, as are the names.
        train_ids: The training images, in list order; set by `setup("fit")`.
        val_ids: Validation images; set by `setup`.

    Args:
        dataset: The data set.
        base_samples_per_epoch: Over all processes; None: all images. Fewer or more walk on through shuffled passes.
        num_val_samples: A fixed random choice of the validation images, for quick runs; None: all.
        all_images: Train on every image of the list, whatever `filter_novel` and the least area say, as BAM's release
            does; only what is held out for validation stays out.
        val_size: (H, W) of validation images; None: `image_size`.
        options: What both stages take, see `FoldDataModule`; `augment` is usually a `BaseLearnerAugment`.

    Raises:
        ValueError: If an argument is out of range, or, in `setup`, the fold has no training image.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        *,
        base_samples_per_epoch: int | None = None,
        num_val_samples: int | None = None,
        all_images: bool = False,
        val_size: tuple[int, int] | None = None,
        **options: Unpack[FoldOptions],
    ) -> None:
        self.base_samples_per_epoch = base_samples_per_epoch
        self.num_val_samples = num_val_samples
        self.all_images = all_images
        super().__init__(dataset, **options)
        self.val_size = val_size or self.image_size
        self.train_ids: list[str] = []
        self.val_ids: list[str] = []

    def _check_arguments(self) -> None:
        super()._check_arguments()
        for name in ("base_samples_per_epoch", "num_val_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DatasetError(f"{name}={value}; expected at least 1, or null for all")

    def _splits(self, stage: str | None) -> tuple[Split, ...]:
        if self.skips is not None:
            return super()._splits(stage)  # which files can be read, only a catalog tells
        return ("train",) if stage in (None, "fit") else ()  # all validation images are used: no areas are asked for

    def setup(self, stage: str | None = None) -> None:
        """Make the lists of images that a stage needs: `fit`, `validate`, `test`, or None for all."""
        if stage in (None, "fit") and not self.train_ids:
            self.train_ids = self._training_images()
            if not self.train_ids:
                raise DatasetError(
                    f"no training image of {self.dataset.name} holds a base class of fold {self.class_split.fold} with "
                    "enough area: check the masks, the lists and min_area"
                )
        if not self.val_ids:
            ids = self.dataset.ids("val") if self.skips is None else self._catalog("val").ids.tolist()
            chosen = sorted(permutation(VAL_SEED, 0, len(ids))[: self.num_val_samples].tolist())
            self.val_ids = [ids[position] for position in chosen]

    def _training_images(self) -> list[str]:
        """Ids of the images to train on, in list order."""
        if not self.all_images:
            return [str(image_id) for image_id in self._train_view().ids]
        view, share = self._base_view(), self.base_val_share  # refuses a fold without base classes
        held_out = set(hold_out_images(view, share)) if share else set()
        return [image_id for image_id in self._catalog("train").ids.tolist() if image_id not in held_out]

    def digest(self) -> str:
        """Hex sha256 over the training images and the areas of their classes; the same on every machine."""
        assert self.train_ids, "setup('fit') comes first"
        catalog = self._catalog("train")
        kept = np.isin(catalog.ids[catalog.image_index], self.train_ids)
        areas = np.stack([catalog.class_value[kept], catalog.area[kept]]).astype("<i8")
        return hashlib.sha256("\n".join(self.train_ids).encode(errors="surrogateescape") + areas.tobytes()).hexdigest()

    def train_dataloader(self) -> DataLoader[SegmentationSample]:
        """Loader of this rank's training images; raises ValueError if an epoch fills no batch."""
        assert self.train_ids, "setup('fit') comes first"
        pictures = TrainSegmentation(
            self.dataset,
            self.train_ids,
            classes=self.class_split.train,
            augment=self.augment,
            seed=self.seed,
            ignored=self.ignored,
            skips=self.skips,
        )
        samples = len(self.train_ids) if self.base_samples_per_epoch is None else self.base_samples_per_epoch
        return self._loader(pictures, collate_segmentation, num_train=samples)

    def val_dataloader(self) -> DataLoader[SegmentationSample]:
        """Loader of this rank's share of the validation images."""
        assert self.val_ids, "setup comes first"
        pictures = EvalSegmentation(
            self.dataset,
            self.val_ids,
            classes=self.class_split.train,
            image_size=self.val_size,
            ignored=self.ignored,
        )
        return self._loader(pictures, collate_segmentation, num_eval=len(pictures))

    def test_dataloader(self) -> DataLoader[SegmentationSample]:
        """The validation images: the base classes have no test set of their own."""
        return self.val_dataloader()
