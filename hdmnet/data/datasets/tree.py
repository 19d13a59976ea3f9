"""What data sets of files have in common: a picture and a mask file for every image, and lists of ids as text files."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from hdmnet.data.class_split import SplitRule
from hdmnet.data.datasets.base import LabelMapDataset, Split
from hdmnet.data.datasets.files import strip_path
from hdmnet.data.datasets.pair_lists import PairLists, read_pair_lists
from hdmnet.data.datasets.palettes import CommonColours, common_colours, refuse_other_palette
from hdmnet.data.io.arrays import UInt8Array
from hdmnet.data.io.masks import read_mask
from hdmnet.data.io.pictures import read_image, read_size
from hdmnet.runtime.errors import MissingFileError
from hdmnet.runtime.home import expand_home


class TreeDataset(LabelMapDataset):
    """A data set in a folder; its subclasses tell where the files of an image lie.

    Attributes:
        default_lists: The list of each split where the user names none; None: the folder itself says.
        root: The folder.
        lists: The list of each split.
        named_lists: Of `lists`, the names that stand for lists of other lines of work.

    Args:
        root: The folder.
        train_list: List of training images.
        val_list: List of validation images.
        num_folds: Number of folds.
        split_rule: How classes are dealt out to folds; None: as is usual for the data set.
        min_area: Fewest pixels, at original size, for a class to count in an image.
        lists: Both lists at once, in place of `train_list` and `val_list`: one of `named_lists`, or a folder of HSNet's
            lists of images and classes, see `pair_lists.py`.
    """

    named_lists: ClassVar[dict[str, dict[Split, str | None]]] = {}
    default_lists: ClassVar[dict[Split, str | None]] = {"train": None, "val": None}

    def __init__(
        self,
        root: str | Path,
        train_list: str | None = None,
        val_list: str | None = None,
        *,
        num_folds: int = 4,
        split_rule: SplitRule | None = None,
        min_area: int = 2 * 32 * 32,
        lists: str | None = None,
    ) -> None:
        self.root = expand_home(root)
        given: dict[Split, str | None] = {"train": train_list, "val": val_list}
        self._pairs_folder: str | None = None
        if lists in self.named_lists:
            given = self.named_lists[lists]
        elif lists is not None:
            self._pairs_folder = lists
        self.lists = self.default_lists | {split: listed for split, listed in given.items() if listed is not None}
        self.num_folds = num_folds
        self.split_rule = self.split_rule if split_rule is None else split_rule
        self.min_area = min_area

    @cached_property
    def pair_lists(self) -> PairLists | None:
        """HSNet's lists; None: there are none.

        Raises:
            FileNotFoundError: `lists` is neither a known name nor their folder.
            ValueError: One is malformed.
        """
        if self._pairs_folder is None:
            return None
        candidates = (self.root / self._pairs_folder, expand_home(self._pairs_folder))
        folder = next((one for one in candidates if one.is_dir()), None)
        if folder is None:
            names = f"{', '.join(self.named_lists)}, or " if self.named_lists else ""
            raise MissingFileError(
                f"dataset.lists={self._pairs_folder}: expected {names}the folder of HSNet's lists, which is neither in "
                f"{self.root} nor in {Path.cwd()}"
            )
        return read_pair_lists(folder, len(self.class_names), self._parse_listed)

    def _parse_listed(self, text: str) -> str:
        """Id of a picture in HSNet's lists."""
        return strip_path(text)

    def listed_pairs(self, split: Split) -> frozenset[tuple[str, int]] | None:
        """Images with the classes by which they count; see the base class."""
        return None if self.pair_lists is None else self.pair_lists.pairs[split]

    @abstractmethod
    def image_path(self, image_id: str) -> Path:
        """Path of a picture; need not exist."""

    @abstractmethod
    def mask_path(self, image_id: str) -> Path:
        """Path of a mask; need not exist."""

    def read_image(self, image_id: str) -> UInt8Array:
        """Picture as (H, W, 3) uint8 RGB at original size; grey pictures too."""
        return read_image(self.image_path(image_id))

    def read_mask(self, image_id: str) -> UInt8Array:
        """Mask as (H, W) uint8 at original size: 0 background, 1..C class, 255 ignore."""
        return read_mask(self.mask_path(image_id))

    def class_areas(self, image_id: str) -> dict[int, int]:
        """Pixels of each class; refuses what is no mask, and one whose palette is not that of the others."""
        areas = super().class_areas(image_id)
        refuse_other_palette(self.mask_path(image_id), self._colours)
        return areas

    @cached_property
    def _colours(self) -> CommonColours:
        return common_colours([self.mask_path(image_id) for split in self.splits for image_id in self.ids(split)])

    def image_size(self, image_id: str) -> tuple[int, int]:
        """Size (H, W) of the picture, from its header; refuses one that is cut short."""
        return read_size(self.image_path(image_id))

    def mask_location(self, image_id: str) -> str:
        """Path of the mask, for error messages."""
        return str(self.mask_path(image_id))
