"""What the DataModules of both stages share: fold, catalogs, loaders, ranks and normalisation.

All that reaches the network is a pure function of (seed, epoch, position): the number of workers, processes and a
resume change nothing. Batches travel as uint8 and become normalised float32 on the device.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, TypeVar

import cv2
import lightning as L
import torch
from torch.utils.data import DataLoader

from hdmnet.data.catalog import load_catalog, training_view
from hdmnet.data.class_split import single_class
from hdmnet.data.episodes.samplers import EpochSampler, EvalSampler
from hdmnet.data.episodes.samples import hold_out_images
from hdmnet.data.normalise import normalise
from hdmnet.data.types import Episode, EvaluationBatch, SegmentationSample
from hdmnet.runtime import signals
from hdmnet.runtime.errors import DatasetError
from hdmnet.runtime.provenance import available_cpus

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence, Sized
    from pathlib import Path

    from torch.utils.data import Dataset, Sampler

    from hdmnet.data.catalog import Catalog, CatalogView
    from hdmnet.data.class_split import ClassSplit
    from hdmnet.data.datasets.base import NovelPixels, SegmentationDataset, Split
    from hdmnet.data.datasets.skipped_files import SkippedFiles
    from hdmnet.data.transforms import Augment

MAX_WORKERS = 8
VAL_SEED = 0

_BatchT = TypeVar("_BatchT", Episode, EvaluationBatch, SegmentationSample)
_IMAGE_FIELDS = ("image", "query_image", "query_images", "support_images")


def default_num_workers(num_processes: int = 1) -> int:
    """Number of loader workers, 0 to 8, for each of several training processes on this machine.

    One core is left to each process, and more than 8 workers rarely help; 0 loads in the training process.
    """
    return min(max(available_cpus() // num_processes - 1, 0), MAX_WORKERS)


def init_worker(worker_id: int) -> None:
    """Keep a worker to one thread, and alive as long as its training wants a checkpoint.

    OpenCV's own threads times the workers would oversubscribe the cores.
    """
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    signals.outlive_one_signal()


class FoldOptions(TypedDict):
    """The keyword arguments of `FoldDataModule`, which both stages take; explained there."""

    fold: int
    image_size: tuple[int, int]
    augment: Augment
    batch_size: int
    mean: Sequence[float]
    std: Sequence[float]
    cache_dir: str | Path | None
    eval_batch_size: NotRequired[int | None]
    num_workers: NotRequired[int | None]
    seed: NotRequired[int]
    filter_novel: NotRequired[bool]
    novel_pixels: NotRequired[NovelPixels | None]
    base_val_share: NotRequired[float]
    skips: NotRequired[SkippedFiles | None]


class FoldDataModule(L.LightningDataModule):
    """Base class of the two.

    Attributes:
        class_split: Class values for training, validation and test; known before `setup`, as are the names.
        ignored: Class values whose pixels training ignores.
        start: Where a resumed training goes on: epoch, and number of its samples that all ranks together have seen.
        samples_per_epoch: Training samples an epoch over all processes; known once the training loader is made. Set
            before that it wins over what the config asks for: a resumed training keeps its epochs.

    Args:
        dataset: The data set.
        fold: Number of the fold.
        image_size: (H, W) of the network's input.
        augment: Makes training pairs of `image_size`.
        batch_size: Training samples (episodes or images) a batch and process.
        mean: RGB mean in [0, 1].
        std: RGB standard deviation.
        cache_dir: Folder of the catalog cache; None: none.
        eval_batch_size: Samples a batch in evaluation; None: `batch_size`.
        num_workers: Loader workers a process; None: by the number of cores.
        seed: Seed of the training samples' choice, order and augmentation.
        filter_novel: Whether training images with any novel pixel are left out; else such pixels are background.
        novel_pixels: Keeps these images all the same: their novel pixels are `background`, or `ignore`: 255 in masks of
            both stages. None: as `filter_novel` says.
        base_val_share: Share of each base class's training images that nothing is trained on, for validation on base
            classes (`selection=base`).
        skips: Lists what cannot be read, which is then left out; None: it is an error (`dataset.on_error`).

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        *,
        fold: int,
        image_size: tuple[int, int],
        augment: Augment,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        cache_dir: str | Path | None,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
        filter_novel: bool = True,
        novel_pixels: NovelPixels | None = None,
        base_val_share: float = 0.0,
        skips: SkippedFiles | None = None,
    ) -> None:
        super().__init__()
        self.dataset = dataset
        self.class_split: ClassSplit = dataset.class_split(fold)
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.augment = augment
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.filter_novel = filter_novel and novel_pixels is None
        self.ignored = self.class_split.novel if novel_pixels == "ignore" else ()
        self.base_val_share = base_val_share
        self.skips = skips
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        self.cache_dir = cache_dir
        self.start = (0, 0)
        self.samples_per_epoch: int | None = None
        self._catalogs: dict[Split, Catalog] = {}
        self._check_arguments()

    def _check_arguments(self) -> None:
        """Raise ValueError for what would otherwise fail late or silently."""
        for name in ("batch_size", "eval_batch_size"):
            if getattr(self, name) < 1:
                raise DatasetError(f"{name}={getattr(self, name)}; expected at least 1")
        if self.num_workers is not None and self.num_workers < 0:
            raise DatasetError(f"num_workers={self.num_workers}; expected 0 or more, or null to choose by the cores")
        if self.augment.image_size != self.image_size:
            raise DatasetError(
                f"the augmentation makes {self.augment.image_size} but image_size is {self.image_size}; "
                "expected the same (H, W)"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise DatasetError(f"mean={self.mean}, std={self.std}; expected three values each, std above 0")

    @property
    def val_classes(self) -> tuple[int, ...]:
        """Class values of the validation episodes, in the order of `Episode.class_index` there."""
        return self.class_split.train if self.base_val_share else self.class_split.val

    @property
    def base_names(self) -> tuple[str, ...]:
        """Name of the base classes, in the order of the base masks 1..num_base."""
        return self._names(self.class_split.train)

    @property
    def val_names(self) -> tuple[str, ...]:
        """Name of the classes of the validation episodes, in the order of `Episode.class_index` there."""
        return self._names(self.val_classes)

    @property
    def novel_names(self) -> tuple[str, ...]:
        """Name of the classes of the test episodes, in the order of `Episode.class_index` there."""
        return self._names(self.class_split.test)

    def _names(self, classes: Sequence[int]) -> tuple[str, ...]:
        return tuple(self.dataset.class_names[value - 1] for value in classes)

    @property
    def num_base(self) -> int:
        """Number of base classes, background not counted."""
        return len(self.class_split.train)

    @property
    def rank(self) -> int:
        """Number of this process over all machines; 0 without a trainer."""
        return self.trainer.global_rank if self.trainer is not None else 0

    @property
    def world_size(self) -> int:
        """Number of processes over all machines; 1 without a trainer."""
        return self.trainer.world_size if self.trainer is not None else 1

    @property
    def _overfits(self) -> bool:
        """Whether the same samples are trained on in every epoch (`trainer.overfit_batches`)."""
        return bool(getattr(self.trainer, "overfit_batches", 0))

    def prepare_data(self) -> None:
        """Check the files and builds the catalogs that will be needed, on one process a machine."""
        self.dataset.check(files=self.skips is None)
        for split in self._splits(None if self.trainer is None else self.trainer.state.fn):
            self._catalog(split)

    def _splits(self, stage: str | None) -> tuple[Split, ...]:
        """Lists whose catalogs a stage needs; the training masks need not be scanned for a test."""
        validated: Split = "train" if self.base_val_share else "val"
        by_stage: dict[str, tuple[Split, ...]] = {"validate": (validated,), "test": (self.test_list,)}
        return by_stage.get(stage or "fit", ("train", "val"))

    @property
    def test_list(self) -> Split:
        """List of images that test episodes are drawn from: "val" in a data set without one of its own."""
        return "test" if "test" in self.dataset.splits else "val"

    def _catalog(self, split: Split) -> Catalog:
        """Load a catalog once."""
        if split not in self._catalogs:
            self._catalogs[split] = load_catalog(
                self.dataset, split, self.cache_dir, skip=self.skips is not None, progress=self.rank == 0
            )
        return self._catalogs[split]

    def _train_view(self) -> CatalogView:
        """Training images of the fold, without those that are held out for validation."""
        view = self._base_view()
        if not self.base_val_share:
            return view
        return self._base_view(leave_out=hold_out_images(view, self.base_val_share))

    def _base_view(self, classes: Sequence[int] | None = None, leave_out: Collection[str] = ()) -> CatalogView:
        """Images of a base class (None: any) with enough area and, if filtered, no pixel of a novel class."""
        split = self.class_split
        if not split.train:
            names = self.dataset.class_names
            if len(names) == 1:
                raise DatasetError(single_class(self.dataset.name, names[0]))
            raise DatasetError(
                f"all {len(split.novel)} classes of {self.dataset.name} are novel, which is for evaluation only: set "
                "dataset.num_folds or dataset.folds to train"
            )
        return training_view(
            self._catalog("train"),
            self.dataset,
            split,
            filter_novel=self.filter_novel,
            classes=classes,
            leave_out=leave_out,
        )

    def _loader(
        self, dataset: Dataset[Any], collate: Callable[..., Any], *, num_train: int | None = None, num_eval: int = 0
    ) -> DataLoader[Any]:
        """Make the loader of this rank: for training with `num_train` samples an epoch, else for evaluation."""
        training = num_train is not None
        rank, world_size = self.rank, self.world_size
        if training:
            num_train = self.samples_per_epoch = num_train if self.samples_per_epoch is None else self.samples_per_epoch
        if num_train is not None and num_train // world_size < self.batch_size:
            raise DatasetError(
                f"{num_train} training samples an epoch on {world_size} process(es) fill no batch of {self.batch_size}"
                "; lower batch_size or raise the samples an epoch"
            )
        sampler: Sampler[int] = (
            EpochSampler(num_train, rank=rank, world_size=world_size, start=self.start, repeat=self._overfits)
            if num_train is not None
            else EvalSampler(num_eval, rank=rank, world_size=world_size)
        )
        return self._dataloader(
            dataset,
            batch_size=self.batch_size if training else self.eval_batch_size,
            sampler=sampler,
            collate_fn=collate,
            drop_last=training,  # the last batch would be smaller, of size 1 at worst, at which batch norm fails
        )

    def _planned_loader(self, dataset: Sized) -> DataLoader[Any]:
        """Make the loader of a data set whose items are this rank's batches, to be walked in order."""
        return self._dataloader(dataset, batch_size=None, sampler=EvalSampler(len(dataset)))

    def _dataloader(self, dataset: Any, **arguments: Any) -> DataLoader[Any]:
        """Make a loader with what all loaders have in common; `arguments` are `DataLoader`'s."""
        num_workers = self.num_workers
        if num_workers is None:
            num_workers = default_num_workers(1 if self.trainer is None else max(self.trainer.num_devices, 1))
        return DataLoader(
            dataset,
            num_workers=num_workers,
            worker_init_fn=init_worker,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # With a generator of its own the loader leaves torch's global one alone, from which it would draw once an
            # epoch without workers and only once in all with persistent ones: dropout would depend on num_workers.
            generator=torch.Generator().manual_seed(0),
            **arguments,
        )

    def on_after_batch_transfer(self, batch: _BatchT, dataloader_idx: int) -> _BatchT:
        """Normalise the images, uint8 to float32, on the device."""
        names = [field.name for field in dataclasses.fields(batch) if field.name in _IMAGE_FIELDS]
        changes: dict[str, Any] = {name: normalise(getattr(batch, name), self.mean, self.std) for name in names}
        return dataclasses.replace(batch, **changes)
