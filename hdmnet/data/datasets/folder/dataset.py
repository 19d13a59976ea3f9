"""A user's own data set: a folder of pictures and masks in any of the usual shapes (see `layouts.py`)."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from hdmnet.data.class_split import SplitRule, single_class
from hdmnet.data.datasets.base import LabelMapDataset, LeftOut, NovelPixels, Split, apply_table, label_table
from hdmnet.data.datasets.files import read_ids, refuse_shared_ids, require_ids
from hdmnet.data.datasets.folder.layouts import scan
from hdmnet.data.datasets.folder.tree import LayoutName, Places
from hdmnet.data.datasets.palettes import CommonColours, common_colours, refuse_other_palette
from hdmnet.data.io.annotations import CROWD_VALUES, decode_segmentation
from hdmnet.data.io.arrays import IGNORE, BoolArray, UInt8Array
from hdmnet.data.io.listing import is_picture
from hdmnet.data.io.masks import read_mask
from hdmnet.data.io.object_masks import read_object_mask
from hdmnet.data.io.upright import fit_mask, orientation, read_upright, upright_size
from hdmnet.runtime.errors import DatasetError, MissingFileError
from hdmnet.runtime.home import expand_home

_CROWDS = {"ignore": "ignored (255)", "zero": "left out", "class": "taken as an object"}
_READER = "4"  # part of the fingerprint: another number when masks are read by another rule


def _expanded(path: Any) -> Any:
    """A path, or several, that begins with `~`."""
    if path is None or isinstance(path, str):
        return None if path is None else str(expand_home(path))
    return [str(expand_home(one)) for one in path]


class FolderDataset(LabelMapDataset):
    """Pictures and masks of a user.

    Pictures are turned upright by their EXIF data; masks may be of the upright or of the stored size.

    Where masks of several classes overlap, each class keeps all of its pixels, in its area and its own mask. In a map
    of all classes, which holds 254 at most, smaller regions lie on larger ones. What a COCO-style JSON marks as a
    crowd (see `crowd`), or a binary mask as 255 beside 1, is ignored where nothing else lies on it.

    Splits: without lists every image is in both. Training takes only images without novel classes and evaluation only
    images with one, so the two do not share any; but the base learner is then validated on what it trained on. With
    one list the other split is all the rest. Two COCO-style JSONs, for training and for validation, are lists too.

    Attributes:
        tree: What was found in the folder.
        root: The folder.
        lists: The lists of each split's images that were given.

    Args:
        root: The folder.
        name: Name of the data set, in results and caches.
        layout: Its shape; None: recognised.
        classes: Names of the classes that count, in order, or a file with one a line; None: the folder's classes.txt,
            else all that there are. Of index masks the folder's classes.txt names the values 1, 2, …, and those that do
            not count are background; without it this names the values.
        colours: For masks in colours, a file that names the class of each, see `hdmnet/data/io/colour_masks.py`; None:
            `classes` where it tells colours, or the folder's labelmap.txt.
        images: Folder of the pictures below the root; None: by its usual name.
        masks: The same for the masks.
        annotations: COCO-style JSON below the root, or two, for training and for validation; None: those there are.
        crowd: What annotations with `iscrowd: 1` are: "ignore" (255), "zero" (background) or "class" (objects, as brush
            masks out of CVAT); None: objects of the classes that have no other annotation in the file, else ignored.
        boxes: Whether annotations without a segmentation are their boxes: for supports, not for training.
        num_folds: Number of folds that the classes are dealt out to, as evenly as can be; None or 1: no folds, all
            classes are novel.
        folds: File that names each fold's novel classes, one fold a line, split by commas (a name that holds one in
            quotes); others are always base.
        split_rule: How classes are dealt out.
        train_list: List of training images, one id a line: path of the picture below the pictures' folder.
        val_list: The same for validation and test.
        filter_novel: Whether training leaves out images with novel classes, which makes shared images harmless.
        novel_pixels: What novel pixels are where training keeps these images; None: as `filter_novel` says.
        min_area: Fewest pixels for a class to count in an image.

    Raises:
        FileNotFoundError: The root, or what its layout needs, is missing.
        ValueError: The layout cannot be told, or an argument does not fit what is there; one line.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        name: str = "folder",
        layout: LayoutName | None = None,
        classes: str | Sequence[str] | None = None,
        colours: str | None = None,
        images: str | None = None,
        masks: str | None = None,
        annotations: str | Sequence[str] | None = None,
        crowd: str | None = None,
        boxes: bool = False,
        num_folds: int | None = None,
        folds: str | None = None,
        split_rule: SplitRule = "contiguous",
        train_list: str | None = None,
        val_list: str | None = None,
        filter_novel: bool = True,
        novel_pixels: NovelPixels | None = None,
        min_area: int = 1,
    ) -> None:
        if root is None:
            raise DatasetError("dataset.root is not given, expected the folder of your pictures and masks: set it")
        self.name = name
        self.root = expand_home(root)
        if crowd is not None and crowd not in CROWD_VALUES:
            raise DatasetError(f"dataset.crowd={crowd}: expected {', '.join(CROWD_VALUES)} or null")
        self.crowd = crowd
        images, masks, annotations = (_expanded(one) for one in (images, masks, annotations))
        self.tree = scan(Places(self.root, images, masks, annotations, classes, colours, crowd, boxes), layout)
        self.class_names = self.tree.class_names
        self._class_values = _class_values(self.tree.stored)
        self.split_rule = split_rule
        self.min_area = min_area
        self.filter_novel, self.novel_pixels = filter_novel, novel_pixels
        self.lists: dict[Split, str | None] = {"train": train_list, "val": val_list}
        self.folds = self._read_folds(folds) if folds is not None else self._deal_folds(num_folds)
        self.num_folds = len(self.folds)
        if num_folds not in (None, self.num_folds):
            raise DatasetError(
                f"dataset.num_folds={num_folds}, but {folds} has {self.num_folds}: leave out one of them"
            )

    def _deal_folds(self, num_folds: int | None) -> tuple[tuple[int, ...], ...]:
        """Novel classes of each fold, their numbers differing by one at most."""
        values = np.arange(1, len(self.class_names) + 1)
        if num_folds is None or num_folds == 1:
            return (tuple(values.tolist()),)
        if len(values) == 1:
            raise DatasetError(f"dataset.num_folds={num_folds}: {single_class(self.name, self.class_names[0])}")
        if not 2 <= num_folds <= len(values):
            raise DatasetError(f"dataset.num_folds={num_folds}: expected 1 to {len(values)}, one class a fold at least")
        parts = np.array_split(values, num_folds)
        if self.split_rule == "interleaved":
            parts = [values[fold::num_folds] for fold in range(num_folds)]
        return tuple(tuple(part.tolist()) for part in parts)

    def _read_folds(self, listed: str) -> tuple[tuple[int, ...], ...]:
        path = self._find(listed, "dataset.folds")
        values = {name: value for value, name in enumerate(self.class_names, start=1)}
        folds, seen = [], set[str]()
        for line in read_ids(path, str):
            try:
                (row,) = csv.reader([line], skipinitialspace=True, strict=True)
            except csv.Error as error:
                raise DatasetError(f"{path}: {line!r} cannot be read ({error}): mend its quotes") from None
            names = [name.strip() for name in row if name.strip()]
            for name in names:
                if name not in values or name in seen:
                    found = "is named twice" if name in seen else f"is no class of {self.root}"
                    quotes = ' (put a name with a comma in quotes: "one, two")' if len(names) > 1 else ""
                    raise DatasetError(
                        f"{path}: {name!r} {found}, expected each novel class in one fold's line{quotes}"
                    )
                seen.add(name)
            folds.append(tuple(sorted(values[name] for name in names)))
        return tuple(folds)

    def _find(self, listed: str, what: str) -> Path:
        for path in (self.root / listed, expand_home(listed)):
            if path.is_file():
                return path
        raise MissingFileError(f"{what}={listed} is a file neither in {self.root} nor in {Path.cwd()}: correct it")

    def ids(self, split: Split) -> list[str]:
        """Image ids of "train" or "val", such as "cats/1": in the list's order, else ascending.

        Raises:
            FileNotFoundError: If the list is missing.
            ValueError: If the list is empty or holds an id twice.
        """
        listed = self.lists[split]
        if listed is not None:
            return read_ids(self._find(listed, f"dataset.{split}_list"), self._parse)
        others = set(self.ids("val" if split == "train" else "train")) if any(self.lists.values()) else set()
        return [one for one in self.tree.splits.get(split, tuple(self.tree.pictures)) if one not in others]

    def _parse(self, line: str) -> str:
        if line in self.tree.pictures:
            return line
        path = PurePosixPath(line.replace("\\", "/"))  # a list may come from Windows
        return (path.with_suffix("") if is_picture(Path(path.name)) else path).as_posix()

    def read_image(self, image_id: str) -> UInt8Array:
        """Picture as (H, W, 3) uint8 RGB, upright, at original size."""
        return read_upright(self.tree.pictures[image_id])

    def image_size(self, image_id: str) -> tuple[int, int]:
        """Size (H, W) of the upright picture, from its header; refuses one that is cut short."""
        return upright_size(self.tree.pictures[image_id])

    def read_mask(self, image_id: str) -> UInt8Array:
        """Mask as (H, W) uint8: 0, 1..C, 255; of overlapping classes the smaller region is on top."""
        if self.tree.layout != "index":
            return self.read_label_map(image_id)
        mask = self._read_indices(image_id)
        return mask if self._class_values is None else apply_table(mask, self._class_values)

    def _read_indices(self, image_id: str) -> UInt8Array:
        """Mask file of layout "index" as (H, W) uint8, its values as stored; those of the classes for colours."""
        read = read_mask if self.tree.colours is None else self.tree.colours.read
        return self._upright(image_id, read(self.tree.masks[image_id][0][1]))

    def read_class_mask(self, image_id: str, class_value: int) -> UInt8Array:
        """Mask of one class as (H, W) uint8: 1 all of its pixels, 0 all else, 255 ignore."""
        if self.tree.layout == "index":
            return super().read_class_mask(image_id, class_value)
        regions, mask = self._regions(image_id)
        if class_value in regions:
            mask[regions[class_value]] = 1
        return self._upright(image_id, mask)

    def read_label_map(self, image_id: str, classes: Sequence[int] | None = None) -> UInt8Array:
        """All classes in one map, smaller regions on larger ones; see the base class."""
        if self.tree.layout == "index":
            return super().read_label_map(image_id, classes)
        labels = label_table(len(self.class_names), classes)
        regions, mask = self._regions(image_id)
        for value in sorted(regions, key=lambda value: (-int(regions[value].sum()), value)):
            mask[regions[value]] = labels[value]
        return self._upright(image_id, mask)

    def find_classes(self, image_id: str, classes: Sequence[int]) -> BoolArray:
        """Where any of some classes is, (H, W) bool, below another one too."""
        if self.tree.layout == "index":
            return super().find_classes(image_id, classes)
        regions, mask = self._regions(image_id)
        mask[:] = 0
        for value in regions.keys() & set(classes):
            mask[regions[value]] = 1
        return self._upright(image_id, mask).astype(bool)

    def class_areas(self, image_id: str) -> dict[int, int]:
        """Pixels of each class, those below another one too; see the base class."""
        if self.tree.layout == "index":
            if self.tree.colours is None:  # else the colours themselves say which class a value is
                refuse_other_palette(self.tree.masks[image_id][0][1], self._colours)
            if self._class_values is not None:
                self._check_indices(image_id)
            return super().class_areas(image_id)
        regions, mask = self._regions(image_id)
        self.check_mask(image_id, self._upright(image_id, mask), self.image_size(image_id))
        areas = {value: int(regions[value].sum()) for value in sorted(regions)}
        return {value: area for value, area in areas.items() if area}

    def _check_indices(self, image_id: str) -> None:
        """Refuse a mask that holds values which the folder's list of classes does not name."""
        known = len(self.tree.stored)
        found = np.flatnonzero(np.bincount(self._read_indices(image_id).ravel(), minlength=256)[known:IGNORE])
        if len(found):
            raise DatasetError(
                f"{self.mask_location(image_id)} holds class index {known + found[0]}, expected 0..{known - 1} or "
                f"{IGNORE} (the list of classes in {self.root} names no more): prepare the mask again or mend the list"
            )

    @cached_property
    def _colours(self) -> CommonColours:
        return common_colours([files[0][1] for files in self.tree.masks.values()])

    def _upright(self, image_id: str, mask: UInt8Array) -> UInt8Array:
        picture = self.tree.pictures[image_id]
        turned = orientation(picture)
        return mask if turned == 1 else fit_mask(mask, upright_size(picture), turned)

    def _regions(self, image_id: str) -> tuple[dict[int, BoolArray], UInt8Array]:
        """Where each class is, (H, W) bool as stored, and a mask of 255 where only what is ignored lies, else 0."""
        if self.tree.layout == "coco":
            regions, ignored = self._coco_regions(image_id)
        else:
            files = self.tree.masks[image_id]
            masks = {value: read_object_mask(path, f"mask {path}") for value, path in files}
            shapes = {mask.shape: path for mask, (_, path) in zip(masks.values(), files, strict=True)}
            if len(shapes) > 1:
                sizes = ", ".join(f"{path} {shape[0]}x{shape[1]}" for shape, path in shapes.items())
                raise DatasetError(
                    f"masks of {image_id!r} have unequal sizes (HxW): {sizes}: expected the picture's for all"
                )
            ignored = np.zeros(next(iter(shapes), None) or self.image_size(image_id), dtype=bool)
            for mask in masks.values():
                ignored |= mask == IGNORE
            regions = {value: mask == 1 for value, mask in masks.items()}
        for region in regions.values():
            ignored &= ~region
        return regions, np.where(ignored, np.uint8(IGNORE), np.uint8(0))

    def _coco_regions(self, image_id: str) -> tuple[dict[int, BoolArray], BoolArray]:
        """Where each class is and where a crowd, (H, W) bool each, as a COCO-style JSON says."""
        about = self.tree.regions[image_id]
        regions: dict[int, BoolArray] = {}
        ignored = np.zeros(about.size, dtype=bool)
        for value, segmentation, crowd in about.entries:
            try:
                region = decode_segmentation(segmentation, *about.size)
            except Exception as error:  # pycocotools raises bare Exception, TypeError and more on malformed input
                reason = " ".join(str(error).split())
                raise DatasetError(f"{self.mask_location(image_id)}: an annotation cannot be read: {reason}") from None
            if crowd:
                ignored |= region
            else:
                regions[value] = regions[value] | region if value in regions else region
        return regions, ignored

    def mask_location(self, image_id: str) -> str:
        """Path of the mask, or of the first of several, or the JSON and the image in it."""
        if self.tree.annotations:
            return f"{self.tree.annotations[image_id]}, image {image_id!r}"
        files = self.tree.masks[image_id]
        return str(files[0][1] if files else self.tree.pictures[image_id])

    def fingerprint(self, split: Split) -> str:
        """Hex sha256 over the split's ids, the classes, and names, sizes and times of all its files."""
        ids = self.ids(split)
        paths = [path for image_id in ids for _, path in self.tree.masks.get(image_id, ())]
        paths += [self.tree.pictures[image_id] for image_id in ids if image_id in self.tree.pictures]
        paths += sorted({self.tree.annotations[image_id] for image_id in ids if image_id in self.tree.annotations})
        rows = [_READER, self.tree.layout, str(self.crowd), *self.class_names, *ids, *map(str, self.tree.stored)]
        if self.tree.colours is not None:
            rows += map(str, self.tree.colours.colours.labels)
        for path in paths:
            if path.exists():
                stat = path.stat()
                rows.append(f"{os.path.relpath(path, self.root)}\0{stat.st_size}\0{stat.st_mtime_ns}")
        return hashlib.sha256("\n".join(rows).encode(errors="surrogateescape")).hexdigest()

    def left_out(self) -> list[LeftOut]:
        """Files, links and annotations that are not used, each kind with the reason."""
        tree = self.tree
        jsons = sorted({path.name for path in tree.annotations.values()})
        unlabelled = f"not named by {' or '.join(jsons)}" if jsons else "no mask"
        found = [
            LeftOut("left out", tree.problems, wrong=True),
            LeftOut(f"{unlabelled}, left out", tuple(map(str, tree.unlabelled))),
            LeftOut("no picture by its name, left out", tuple(map(str, tree.others))),
            LeftOut("not followed", tree.links),
            LeftOut("annotation without a segmentation, which marks nothing", tree.bare),
            LeftOut(
                "category without an annotation, no class", tuple(f"{one} ({name!r})" for one, name in tree.unused)
            ),
        ]
        for use, ids in tree.crowds.items():
            what = f"annotation marked as a crowd (iscrowd 1), {_CROWDS[use]}, {len(ids):,} in all"
            if self.crowd is None and use == "class":
                what += ": their classes have no others; dataset.crowd=ignore ignores them"
            elif self.crowd is None:
                what += "; if they are objects, as brush masks out of CVAT are, set dataset.crowd=class"
            found.append(LeftOut(what, ids))
        return [one for one in found if one.names]

    def check(self, *, files: bool = True) -> None:
        """Check that every image of the lists is there, before any training.

        Raises:
            FileNotFoundError: If a list or a picture is missing; one line.
            ValueError: If a list is malformed, or training could see what is tested.
        """
        known = set(self.tree.pictures)
        for split, listed in self.lists.items():
            if listed is not None:
                what = f"picture with a mask in {self.root}"
                require_ids(self.ids(split), known, f"list {listed}", what, "take them off, or label them")
        if self.tree.annotations and self.tree.problems and files:
            more = f" (and {len(self.tree.problems) - 1} more)" if len(self.tree.problems) > 1 else ""
            raise DatasetError(f"{self.tree.problems[0]}{more}: mend it, or set dataset.on_error=skip to do without")
        for file in dict.fromkeys(self.tree.annotations.values()):  # of others the pictures themselves were listed
            named = {one: self.tree.pictures[one] for one, path in self.tree.annotations.items() if path == file}
            there = {image_id for image_id, path in named.items() if path.is_file()}
            folder = next(iter(named.values())).parent
            remedy = "restore them, or set dataset.images to their folder"
            require_ids(list(named), there, str(file), f"picture in {folder}", remedy)
        if (
            not any(self.lists.values())
            and not self.tree.splits
            and (self.novel_pixels is not None or not self.filter_novel)
        ):
            asked = "filter_novel=false" if self.novel_pixels is None else f"novel_pixels={self.novel_pixels}"
            raise DatasetError(
                f"dataset.{asked} would train on the images that are tested: set dataset.val_list, or leave it out"
            )
        if all(self.lists.values()):
            refuse_shared_ids(self.ids("train"), self.ids("val"))


def _class_values(stored: Sequence[int]) -> UInt8Array | None:
    """Class value (256,) of each value that an index mask may hold; 255 of others. None: they are the same."""
    if not stored:
        return None
    table = np.full(256, IGNORE, dtype=np.uint8)
    table[: len(stored)] = stored
    return table
