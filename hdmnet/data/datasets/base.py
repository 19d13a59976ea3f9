"""What every data set offers to the rest: lists of ids, pictures, a mask for each class, and a split of the classes.

A `SegmentationDataset` is the only thing that knows where a data set's files lie; catalogs, episodes and DataModules
work on any. A subclass needs `name`, `class_names`, `ids`, `read_image` and `read_class_mask`; all else has a default.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np

from hdmnet.data.class_split import ClassSplit, SplitRule, hold_out, split_classes
from hdmnet.data.io.arrays import IGNORE, MAX_LABELS, BoolArray, UInt8Array
from hdmnet.runtime.errors import DatasetError

Split = Literal["train", "val", "test"]
NovelPixels = Literal["background", "ignore"]

_SHOWN, _LISTED = 5, 100  # names in a line, and in a file


class LeftOut(NamedTuple):
    """Something in a data set's folders or files that it does not use, or not as it stands there.

    Attributes:
        what: Why it is left out, such as "no mask, left out"; the names stand before it.
        names: Of each: a path, an id, a line.
        wrong: Whether it cannot be meant so.
    """

    what: str
    names: tuple[str, ...]
    wrong: bool = False

    def tell(self) -> str:
        """One line with the first names and, of many, their number."""
        total = len(self.names)
        more = f" and {total - _SHOWN:,} more ({total:,} in all)" if total > _SHOWN else ""
        return f"{', '.join(self.names[:_SHOWN])}{more}: {self.what}"

    def as_dict(self) -> dict[str, Any]:
        """For `result.json`: what, how many, and the names, the first hundred of many."""
        return {"what": self.what, "count": len(self.names), "names": list(self.names[:_LISTED])}


class SegmentationDataset(ABC):
    """One data set's pictures and masks; must be picklable, as it travels to worker processes.

    Attributes:
        name: Short name of the data set; part of the keys of catalogs and episodes.
        class_names: Names of the C classes, however many; class value c in 1..C is `class_names[c - 1]`.
        splits: Lists of images that there are. Without "test" the images of "val" serve validation and test.
        num_folds: Number of folds that the classes are split into.
        split_rule: How the classes are dealt out to the folds (see `split_classes`).
        folds: Novel class values of each fold, where they are not dealt out by the rule.
        min_area: Fewest pixels, at original size, for a class to count in an image.
        novel_for: Another data set, whose fold of the same number has left these classes out; None: its own.
    """

    name: str
    class_names: tuple[str, ...]
    splits: tuple[Split, ...] = ("train", "val")
    num_folds: int = 4
    split_rule: SplitRule = "contiguous"
    folds: tuple[tuple[int, ...], ...] | None = None
    min_area: int = 2 * 32 * 32
    novel_for: str | None = None

    @abstractmethod
    def ids(self, split: Split) -> list[str]:
        """Image ids of one of `splits`, in list order, without duplicates."""

    @abstractmethod
    def read_image(self, image_id: str) -> UInt8Array:
        """Picture as (H, W, 3) uint8 RGB at original size."""

    @abstractmethod
    def read_class_mask(self, image_id: str, class_value: int) -> UInt8Array:
        """Mask of one class as (H, W) uint8 at original size: 1 the class, 0 all else, 255 ignore."""

    def class_split(self, fold: int) -> ClassSplit:
        """Which classes are for training, validation and test: as `folds` says, else `num_folds` and `split_rule`.

        A data set of which all classes are novel takes any fold, as checkpoints of any fold are tested on it.

        Raises:
            ValueError: No such fold.
        """
        num_classes = len(self.class_names)
        if self.folds is None:
            return split_classes(num_classes, self.num_folds, fold, self.split_rule)
        if self.folds == (tuple(range(1, num_classes + 1)),):
            return hold_out(num_classes, self.folds[0], 0)
        if fold not in range(len(self.folds)):
            raise DatasetError(f"fold={fold} does not exist, expected one of 0..{len(self.folds) - 1}: set fold to one")
        return hold_out(num_classes, self.folds[fold], fold)

    def class_areas(self, image_id: str) -> dict[int, int]:
        """Pixels, at original size, of each class that the image holds.

        The default reads the mask of every class: say here what is known, where there are many.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A mask is unreadable, holds other values, or has another size than its picture.
        """
        size = self.image_size(image_id) or self.read_image(image_id).shape[:2]
        areas = {}
        for value in range(1, len(self.class_names) + 1):
            mask = self.read_class_mask(image_id, value)
            self.check_mask(image_id, mask, size)
            counts = np.bincount(mask.ravel(), minlength=256)
            if counts[2:IGNORE].any():
                wrong = int(counts[2:IGNORE].argmax()) + 2
                raise DatasetError(
                    f"{self.mask_location(image_id)} of class {value} holds {wrong}, expected 0, 1 or 255"
                )
            if counts[1]:
                areas[value] = int(counts[1])
        return areas

    def read_label_map(self, image_id: str, classes: Sequence[int] | None = None) -> UInt8Array:
        """All classes in one map, which only the base learner is trained on; at most 254.

        Args:
            image_id: Which image.
            classes: Class values, labelled 1, 2, … in this order; None: all, labelled by their class values.

        Returns:
            (H, W) uint8 at original size: 0 background and classes not asked for, 1..n label, 255 ignore. Where classes
            overlap the one with the smaller area is on top.
        """
        labels = label_table(len(self.class_names), classes)
        areas = self.class_areas(image_id)
        mask = self.read_class_mask(image_id, min(areas, default=1)) // IGNORE * np.uint8(IGNORE)
        for value in sorted(areas, key=lambda value: (-areas[value], value)):
            mask[self.read_class_mask(image_id, value) == 1] = labels[value]
        return mask

    def find_classes(self, image_id: str, classes: Sequence[int]) -> BoolArray:
        """Where any of some classes is, as (H, W) bool at original size."""
        found: BoolArray = self.read_class_mask(image_id, classes[0]) == 1
        for value in classes[1:]:
            found |= self.read_class_mask(image_id, value) == 1
        return found

    def listed_pairs(self, split: Split) -> frozenset[tuple[str, int]] | None:
        """Images with the class values by which they count in episodes, beside the least area; None: by all."""
        return None

    def fingerprint(self, split: Split) -> str | None:
        """Text that changes whenever the split's masks do (see `fingerprint_files`).

        None, the default: it cannot be told, so what the masks hold is never kept from one run to the next.
        """
        return None

    def check(self, *, files: bool = True) -> None:
        """Raise one clear line when a folder, list or file is missing; called before any training.

        Args:
            files: Whether each image has to have its files; False where those that cannot be read are left out.

        Raises:
            FileNotFoundError: Something is missing; the message says what and where it is to be had.
        """
        for split in self.splits:
            self.ids(split)

    def left_out(self) -> list[LeftOut]:
        """What of the data set's folders and files is not used; by default nothing that is known of."""
        return []

    def image_size(self, image_id: str) -> tuple[int, int] | None:
        """Size (H, W) of the picture where it can be told without decoding, else None.

        Raises:
            FileNotFoundError: There is no such picture.
            ValueError: It is no picture or not whole.
        """
        return None

    def mask_location(self, image_id: str) -> str:
        """Where the masks come from, for error messages; data sets with files return the path."""
        return f"{self.name} mask {image_id!r}"

    def check_mask(self, image_id: str, mask: UInt8Array, size: tuple[int, ...]) -> None:
        """Raise ValueError, in one line, on a mask that is no (H, W) uint8 or has another size than its picture."""
        where = self.mask_location(image_id)
        if mask.ndim != 2 or mask.dtype != np.uint8:
            raise DatasetError(
                f"{where} has shape {mask.shape} and type {mask.dtype}, expected (H, W) uint8 class indices"
            )
        if mask.shape != size:
            raise DatasetError(
                f"{where} is {mask.shape[0]}x{mask.shape[1]} (HxW) but its picture is {size[0]}x{size[1]}: expected the"
                " same size, prepare the mask again"
            )


class LabelMapDataset(SegmentationDataset):
    """A data set whose masks hold all classes of a picture at once: `read_mask` gives the masks of the classes."""

    @abstractmethod
    def read_mask(self, image_id: str) -> UInt8Array:
        """Mask as (H, W) uint8 at original size: 0 background, 1..C class value, 255 ignore."""

    def read_class_mask(self, image_id: str, class_value: int) -> UInt8Array:
        """Mask of one class as (H, W) uint8: 1 the class, 0 all else, 255 ignore."""
        return apply_table(self.read_mask(image_id), label_table(MAX_LABELS, [class_value]))

    def read_label_map(self, image_id: str, classes: Sequence[int] | None = None) -> UInt8Array:
        """All classes in one map; see the base class."""
        mask = self.read_mask(image_id)
        return mask if classes is None else apply_table(mask, label_table(len(self.class_names), classes))

    def find_classes(self, image_id: str, classes: Sequence[int]) -> BoolArray:
        """Where any of some classes is, as (H, W) bool; the mask is read once."""
        table = np.zeros(256, dtype=np.uint8)
        table[list(classes)] = 1
        return apply_table(self.read_mask(image_id), table).astype(bool)

    def class_areas(self, image_id: str) -> dict[int, int]:
        """Pixels of each class, as counted in `read_mask`; refuses what is no mask."""
        num_classes = len(self.class_names)
        mask = self.read_mask(image_id)
        self.check_mask(image_id, mask, self.image_size(image_id) or self.read_image(image_id).shape[:2])
        areas = np.bincount(mask.ravel(), minlength=256).tolist()
        wrong = [value for value in range(num_classes + 1, IGNORE) if areas[value]]
        if wrong:
            raise DatasetError(
                f"{self.mask_location(image_id)} holds class index {wrong[0]}, expected 0..{num_classes} or {IGNORE}"
                f" ({self.name} has {num_classes} classes): prepare the mask again or check the dataset setting"
            )
        return {value: areas[value] for value in range(1, num_classes + 1) if areas[value]}


def label_table(num_classes: int, classes: Sequence[int] | None) -> UInt8Array:
    """Table from class values to labels: `table[mask]`.

    Args:
        num_classes: Number of classes C.
        classes: Class values, labelled 1, 2, … in this order; None: all, by their values.

    Returns:
        (max(C + 1, 256),) uint8: 0 for background and classes not asked for. In a table of up to 254 classes values
        that are no class at all go to 255, as ignore does; catalogs refuse masks that hold any.

    Raises:
        ValueError: More classes are asked for than a label map can hold.
    """
    asked = list(range(1, num_classes + 1) if classes is None else classes)
    if len(asked) > MAX_LABELS:
        raise DatasetError(
            f"a label map of {len(asked):,} classes is asked for, expected at most {MAX_LABELS}: choose a method "
            "without base learner, or fewer classes"
        )
    table = np.full(max(num_classes + 1, 256), IGNORE, dtype=np.uint8)
    table[: num_classes + 1] = 0
    table[asked] = np.arange(1, len(asked) + 1, dtype=np.uint8)
    return table


def apply_table(mask: UInt8Array, table: UInt8Array) -> UInt8Array:
    """`table[mask]` of a mask (H, W) and a table (256,)."""
    return cv2.LUT(mask, table)  # type: ignore[return-value]  # ten times as fast as indexing
