"""FSS-1000: a thousand classes of ten pictures each, split into 520, 240 and 240 (Li et al., CVPR 2020, section 4)."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from hdmnet.data.class_split import ClassSplit
from hdmnet.data.datasets.base import SegmentationDataset, Split
from hdmnet.data.datasets.files import check_unique, fingerprint_files, read_ids
from hdmnet.data.datasets.pascal import LISTS
from hdmnet.data.io.arrays import UInt8Array
from hdmnet.data.io.pictures import decode, read_image, read_size
from hdmnet.runtime.errors import DatasetError, MissingFileError
from hdmnet.runtime.home import expand_home

logger = logging.getLogger(__name__)

NUM_CLASSES = (520, 240, 240)
PICTURES_PER_CLASS = 10
_LIST_NAMES: dict[Split, str] = {"train": "trn.txt", "val": "val.txt", "test": "test.txt"}
_PLACES = (".", "data", "fewshot_data", "fewshot_data/fewshot_data")  # of the class folders, as people have them
_HALF = 128


class Fss1000Dataset(SegmentationDataset):
    """Class folders `CLASS/1.jpg … 10.jpg` with masks `CLASS/1.png … 10.png`, below the root or where its zip has them.

    The 240 test classes are those of the authors' list, which is shipped. They published none of training and
    validation classes: whoever uses the data set draws 240 of the other 760. `split_dir` takes such a draw; without one
    the classes whose names have the lowest sha256 are for validation, the same everywhere.

    The split is one, so any fold is taken, as checkpoints of any fold are tested on it. Ids are such as "abacus/1".

    Attributes:
        root: Folder of the class folders.

    Args:
        root: That folder, or one that holds it as `data` or `fewshot_data`.
        split_dir: Folder of `trn.txt`, `val.txt` and `test.txt` with a class a line, as of HSNet's code; None: `splits`
            in the given root, if there is one.
        num_classes: How many classes training, validation and test must have, of ten pictures each; None: not checked,
            of a part of the data set.
        min_area: Fewest pixels for a class to count in an image.
    """

    name = "fss1000"
    splits = ("train", "val", "test")
    num_folds = 1

    def __init__(
        self,
        root: str | Path,
        *,
        split_dir: str | None = None,
        num_classes: Sequence[int] | None = NUM_CLASSES,
        min_area: int = 1,
    ) -> None:
        given = expand_home(root)
        some = read_ids(LISTS / "fss1000_test.txt", str)
        places = [given / place for place in _PLACES if any((given / place / name).is_dir() for name in some)]
        self.root = places[0] if places else given
        usual = given / "splits" if (given / "splits").is_dir() else None
        self.split_dir = usual if split_dir is None else expand_home(split_dir)
        self.num_classes = None if num_classes is None else tuple(num_classes)
        self.min_area = min_area

    @cached_property
    def class_lists(self) -> dict[Split, tuple[str, ...]]:
        """Names of the classes of each split, in alphabetical order.

        Raises:
            FileNotFoundError: The folder or a list is missing.
            ValueError: A list is malformed, a class in two of them, or one has another number of classes.
        """
        if not self.root.is_dir():
            raise MissingFileError(
                f"FSS-1000 folder {self.root} is missing: unpack the data set's zip there, or set paths.data_dir "
                "(HDMNET_DATA) to the folder that holds fss1000/"
            )
        if self.split_dir is not None:
            lists = {split: read_ids(self.split_dir / name, str) for split, name in _LIST_NAMES.items()}
        else:
            lists = self._own_lists()
        check_unique([name for names in lists.values() for name in names], f"the class lists of {self.root}")
        found = tuple(len(names) for names in lists.values())
        if self.num_classes not in (None, found):
            raise DatasetError(
                f"{self.split_dir or self.root} has {found} classes for training, validation and test, expected "
                f"{self.num_classes}: unpack the data set again, or of a part of it set dataset.num_classes=null"
            )
        return {split: tuple(sorted(names)) for split, names in lists.items()}

    def _own_lists(self) -> dict[Split, list[str]]:
        """The authors' test classes, and of all others the share 240 / 760 by the sha256 of their names."""
        folders = {path.name for path in self.root.iterdir() if path.is_dir() and (path / "1.jpg").is_file()}
        test = [name for name in read_ids(LISTS / "fss1000_test.txt", str) if name in folders]
        others = sorted(folders.difference(test), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
        num_val = len(others) * NUM_CLASSES[1] // sum(NUM_CLASSES[:2])
        return {"train": others[num_val:], "val": others[:num_val], "test": test}

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]  # read when first asked for
        """Names of all classes, in alphabetical order."""
        return tuple(sorted(name for names in self.class_lists.values() for name in names))

    def class_split(self, fold: int) -> ClassSplit:
        """The split, whatever the fold."""
        values = {name: value for value, name in enumerate(self.class_names, start=1)}
        train, val, test = (tuple(values[name] for name in names) for names in self.class_lists.values())
        return ClassSplit(train=train, val=val, test=test)

    def ids(self, split: Split) -> list[str]:
        """Image ids of a split's classes, such as "abacus/1": by class, then by name.

        Raises:
            FileNotFoundError: A class's folder is missing.
            ValueError: A class has another number of pictures than ten.
        """
        return list(self._ids[split])

    @cached_property
    def _ids(self) -> dict[Split, tuple[str, ...]]:
        return {
            split: tuple(image_id for name in names for image_id in self._class_ids(name))
            for split, names in self.class_lists.items()
        }

    def _class_ids(self, name: str) -> list[str]:
        try:
            files = os.listdir(self.root / name)
        except OSError:
            raise MissingFileError(
                f"class folder {self.root / name} is missing: unpack the data set again, or take it off the list"
            ) from None
        stems = sorted(file.removesuffix(".jpg") for file in files if file.endswith(".jpg") and file[0] != ".")
        if self.num_classes is not None and len(stems) != PICTURES_PER_CLASS:
            raise DatasetError(
                f"class folder {self.root / name} has {len(stems)} pictures, expected {PICTURES_PER_CLASS}: unpack the "
                "data set again, or of a part of it set dataset.num_classes=null"
            )
        return [f"{name}/{stem}" for stem in stems]

    def read_image(self, image_id: str) -> UInt8Array:
        """Picture as (H, W, 3) uint8 RGB at original size."""
        return read_image(self._file(image_id, "jpg"))

    def image_size(self, image_id: str) -> tuple[int, int]:
        """Size (H, W) of the picture, from its header; refuses one that is cut short."""
        return read_size(self._file(image_id, "jpg"))

    def read_class_mask(self, image_id: str, class_value: int) -> UInt8Array:
        """Mask of one class as (H, W) uint8: 1 the class, which is that of the folder, 0 all else."""
        mask = read_half(self._file(image_id, "png"))
        return mask if self.class_names[class_value - 1] == image_id.split("/")[0] else np.zeros_like(mask)

    def class_areas(self, image_id: str) -> dict[int, int]:
        """Pixels of the picture's one class; refuses a mask of another size than its picture."""
        mask = read_half(self._file(image_id, "png"))
        self.check_mask(image_id, mask, self.image_size(image_id))
        area = int(mask.sum())
        return {self._values[image_id.split("/")[0]]: area} if area else {}

    @cached_property
    def _values(self) -> dict[str, int]:
        return {name: value for value, name in enumerate(self.class_names, start=1)}

    def _file(self, image_id: str, suffix: str) -> Path:
        return self.root / f"{image_id}.{suffix}"

    def mask_location(self, image_id: str) -> str:
        """Path of the mask."""
        return str(self._file(image_id, "png"))

    def fingerprint(self, split: Split) -> str:
        """Hex sha256 over the split's classes, and names, sizes and times of their files."""
        parts = [fingerprint_files(self.root / name, extra=[name]) for name in self.class_lists[split]]
        return hashlib.sha256("\n".join([*self.class_names, *parts]).encode(errors="surrogateescape")).hexdigest()

    def check(self, *, files: bool = True) -> None:
        """Check lists, folders and files, before any training; without `files` not each picture's mask.

        Raises:
            FileNotFoundError: A folder, a list or a mask is missing; one line.
            ValueError: A list or a folder is not as expected; one line.
        """
        if self.split_dir is None:
            logger.info("validation classes of %s: drawn by their names, as no list of them was published", self.root)
        for image_id in [image_id for ids in self._ids.values() for image_id in ids] if files else ():
            if not self._file(image_id, "png").is_file():
                raise MissingFileError(f"mask {self._file(image_id, 'png')} is missing: unpack the data set again")


def read_half(path: Path) -> UInt8Array:
    """Read a mask of one object as (H, W) uint8, 1 from a grey value of 128 on, as all who use the data set do.

    Of a file that holds 0 and 1 the object is 1. Of one that is grey all over, with alpha that varies, alpha counts.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read; one line that names the path.
    """
    picture = decode(path, "mask")
    grey = np.asarray(picture.convert("L"))
    if "A" in picture.getbands() and (grey == grey.flat[0]).all():
        alpha = np.asarray(picture.getchannel("A"))
        grey = alpha if (alpha != alpha.flat[0]).any() else grey
    return (grey >= (1 if grey.max() == 1 else _HALF)).astype(np.uint8)
