"""COCO-20i: COCO 2014, four folds of twenty classes; the pictures of 2017 in the same way."""

from __future__ import annotations

import hashlib
import os
from functools import partial
from pathlib import Path, PurePosixPath

from hdmnet.data.class_split import SplitRule
from hdmnet.data.datasets.base import LabelMapDataset, LeftOut, Split
from hdmnet.data.datasets.files import (
    find_list,
    fingerprint_files,
    read_ids,
    refuse_shared_ids,
    require_ids,
    strip_path,
)
from hdmnet.data.datasets.tree import TreeDataset
from hdmnet.data.io.annotations import paint_annotations
from hdmnet.data.io.arrays import UInt8Array
from hdmnet.data.io.instances import Instances, open_instances
from hdmnet.runtime.errors import DatasetError, MissingFileError

YEARS = (2014, 2017)
_FOLDERS = [f"{split}{year}" for year in YEARS for split in ("train", "val")]

#: COCO's 80 categories in ascending category id.
CLASS_NAMES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone"),
    *("microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear"),
    *("hair drier", "toothbrush"),
)


class CocoDataset(TreeDataset):
    """A COCO tree as it is downloaded: `train2014/ val2014/ annotations/instances_{train,val}2014.json`.

    With year 2017 `train2017/ val2017/` likewise, whose lists are others (118,287 and 5,000 pictures): figures on them
    are not those of COCO-20i.

    Where there are masks `masks/{train2014,val2014}/*.png` these are taken, and the JSON is not read: 8-bit PNGs
    (palette or grey), 0, class = position 1..80 in ascending category id, 255, by scripts/data/prepare_coco.py or
    another codebase. A split's images are all that have a mask. Without them the same masks are painted whenever one is
    read, of all images that the JSON names. Ids are such as "train2014/COCO_train2014_000000000009".

    Fold i holds out the classes i+1, i+5, ... ("interleaved", as in all recent papers).

    A list restricts the images of its split; its path is relative to the root or the working directory, or absolute.
    Its lines hold an id with or without the folder, or a picture's path with the mask's after it.

    Args:
        root: The folder.
        train_list: List of training images.
        val_list: List of validation images.
        year: 2014 or 2017, of the folders' names.
        num_folds: As of `TreeDataset`, like the other two.
        split_rule: How classes are dealt out to folds.
        min_area: Fewest pixels for a class to count in an image.
        cache_dir: Folder for what is known of the JSONs, see `open_instances`.
        lists: Folder of HSNet's lists, see `TreeDataset`.

    Raises:
        ValueError: Another year.
    """

    name = "coco"
    class_names = CLASS_NAMES
    split_rule = "interleaved"

    def __init__(
        self,
        root: str | Path,
        train_list: str | None = None,
        val_list: str | None = None,
        *,
        year: int = YEARS[0],
        num_folds: int = 4,
        split_rule: SplitRule | None = None,
        min_area: int = 2 * 32 * 32,
        cache_dir: str | Path | None = None,
        lists: str | None = None,
    ) -> None:
        if year not in YEARS:
            raise DatasetError(f"dataset.year={year}: expected {' or '.join(map(str, YEARS))}")
        super().__init__(
            root, train_list, val_list, num_folds=num_folds, split_rule=split_rule, min_area=min_area, lists=lists
        )
        self.year = year
        self.cache_dir = cache_dir

    def folder(self, split: Split) -> str:
        """Name of the folder of a split's pictures, and of their masks below masks/."""
        return f"{split}{self.year}"

    def ids(self, split: Split) -> list[str]:
        """Image ids of "train" or "val", as "val2014/COCO_val2014_000000000042": in the list's order, else ascending.

        Raises:
            FileNotFoundError: If the folder of masks or the list is missing.
            ValueError: If the list is empty or holds an id twice.
        """
        if self.pair_lists is not None:
            return list(self.pair_lists.ids[split])
        listed = self.lists[split]
        if listed is None:
            return sorted(self._labelled(self.folder(split)))
        return read_ids(find_list(listed, self.root, names="null"), partial(parse_line, folder=self.folder(split)))

    def _instances(self, folder: str) -> Instances | None:
        """The JSON of a folder's pictures, where it is read in place of masks."""
        path = self.root / "annotations" / f"instances_{folder}.json"
        if (self.root / "masks" / folder).is_dir() or not path.is_file():
            return None
        instances = open_instances(path, self.cache_dir)
        if len(instances.categories) != len(CLASS_NAMES):
            raise DatasetError(
                f"{path} has {len(instances.categories)} categories, expected COCO's {len(CLASS_NAMES)}: read it by"
                " dataset=folder"
            )
        return instances

    def _labelled(self, folder: str) -> set[str]:
        """Ids of a folder's pictures that have a mask, or are in its JSON."""
        instances = self._instances(folder)
        if instances is None:
            return self._list_folder(self.root / "masks", folder, ".png")
        return {f"{folder}/{name.removesuffix('.jpg')}" for name in instances.image_names()}

    def _parse_listed(self, text: str) -> str:
        """Id of a picture's path in HSNet's lists, which name its folder."""
        return parse_line(text, self.folder("train"))

    def _list_folder(self, parent: Path, folder: str, suffix: str) -> set[str]:
        """Ids of a folder's files; one listing without a stat a file, as there are 82,783."""
        try:
            names = os.listdir(parent / folder)
        except (FileNotFoundError, NotADirectoryError):
            remedy = f"unpack the COCO {self.year} images zip there"
            if parent != self.root:
                year = "" if self.year == YEARS[0] else f" --year {self.year}"
                remedy = (
                    f"unpack the COCO {self.year} annotations zip, of which annotations/instances_{folder}.json is read"
                    f" in their place, or make the masks with scripts/data/prepare_coco.py --root {self.root}{year}"
                )
            other = next(year for year in YEARS if year != self.year)
            if (self.root / f"val{other}").is_dir() and not (self.root / self.folder("val")).is_dir():
                remedy = f"this is a tree of COCO {other}: set dataset.year={other} (prepare_coco.py: --year {other})"
            raise MissingFileError(f"COCO folder {parent / folder} is missing: {remedy}") from None
        return {f"{folder}/{name.removesuffix(suffix)}" for name in names if name.endswith(suffix) and name[0] != "."}

    def image_path(self, image_id: str) -> Path:
        """Path of a picture; need not exist."""
        return self.root / f"{image_id}.jpg"

    def mask_path(self, image_id: str) -> Path:
        """Path of a mask; need not exist."""
        return self.root / "masks" / f"{image_id}.png"

    def read_mask(self, image_id: str) -> UInt8Array:
        """Mask as (H, W) uint8 at original size: from its file, or painted as scripts/data/prepare_coco.py does."""
        folder, stem = image_id.split("/")
        instances = self._instances(folder)
        if instances is None:
            return super().read_mask(image_id)
        size, annotations = instances.read(f"{stem}.jpg")
        values = {category: value for value, category in enumerate(instances.categories.tolist(), start=1)}
        try:
            return paint_annotations(annotations, size, values)
        except DatasetError as error:
            raise DatasetError(f"{self.mask_location(image_id)}: {error}") from None

    def class_areas(self, image_id: str) -> dict[int, int]:
        """Pixels of each class; refuses what is no mask, and one whose palette is not that of the others."""
        painted = self._instances(image_id.split("/")[0]) is not None
        return LabelMapDataset.class_areas(self, image_id) if painted else super().class_areas(image_id)

    def mask_location(self, image_id: str) -> str:
        """Path of the mask, or the JSON and the image in it."""
        instances = self._instances(image_id.split("/")[0])
        return super().mask_location(image_id) if instances is None else f"{instances.path}, image {image_id!r}"

    def fingerprint(self, split: Split) -> str:
        """Hex sha256 over the split's ids, in order, and its masks' and pictures' names, sizes and times.

        The pictures too, as scanning the masks also looks at these: one that was damaged since is found.
        """
        ids = self.ids(split)
        parts = []
        for folder in sorted({image_id.split("/")[0] for image_id in ids}):
            stems = [image_id.split("/")[1] for image_id in ids if image_id.startswith(f"{folder}/")]
            instances = self._instances(folder)
            parent = self.root / "masks" / folder if instances is None else instances.path.parent
            names = [f"{stem}.png" for stem in stems] if instances is None else [instances.path.name]
            parts.append(fingerprint_files(parent, names=names, extra=[folder]))
            if (self.root / folder).is_dir():
                parts.append(fingerprint_files(self.root / folder, names=[f"{stem}.jpg" for stem in stems]))
        return hashlib.sha256("\n".join([*parts, *ids]).encode(errors="surrogateescape")).hexdigest()

    def left_out(self) -> list[LeftOut]:
        """Pictures of the splits without a list that have no mask."""
        without: list[str] = []
        splits: tuple[Split, ...] = ("train", "val")
        for split in splits:
            if self.lists[split] is None and self.pair_lists is None:
                pictures = self._list_folder(self.root, self.folder(split), ".jpg")
                without += sorted(pictures.difference(self.ids(split)))
        what = "no mask, left out: scripts/data/prepare_coco.py makes it"
        if self._instances(self.folder("train")) is not None:
            what = "not named by its JSON, left out"
        return [LeftOut(what, tuple(without))] if without else []

    def check(self, *, files: bool = True) -> None:
        """Check that the tree is whole, before any training; without `files` not each image's own.

        Raises:
            FileNotFoundError: If a folder, a list, a picture or a mask is missing; one line.
            ValueError: If a list is malformed, or the two lists share images.
        """
        if not self.root.is_dir():
            raise MissingFileError(
                f"COCO folder {self.root} is missing: put train{self.year}/, val{self.year}/, annotations/ of the COCO "
                "site there, or set paths.data_dir (HDMNET_DATA) to the folder that holds coco/"
            )
        lists: dict[Split, list[str]] = {"train": self.ids("train"), "val": self.ids("val")}
        for split, ids in lists.items():
            origin = f"{split} images of {self.root}" + (f" by list {self.lists[split]!r}" if self.lists[split] else "")
            if not ids:
                raise MissingFileError(
                    f"{origin}: there is no mask in masks/{self.folder(split)}: run scripts/data/prepare_coco.py"
                )
            if not files:
                continue
            folders = sorted({image_id.split("/")[0] for image_id in ids})
            masks = set().union(*(self._labelled(folder) for folder in folders))
            pictures = set().union(*(self._list_folder(self.root, folder, ".jpg") for folder in folders))
            require_ids(ids, masks, origin, "mask", "run scripts/data/prepare_coco.py, or take them off the list")
            require_ids(ids, pictures, origin, "picture", f"unpack the COCO {self.year} images zips again")
        refuse_shared_ids(**lists)


def parse_line(line: str, folder: str) -> str:
    """Make an id, "FOLDER/STEM", of a list's line: an id or a picture's path, maybe with the mask's after it.

    `folder` is that of a line that names none.
    """
    named = [part for part in PurePosixPath(line.split()[0].replace("\\", "/")).parts[:-1] if part in _FOLDERS]
    return f"{named[-1] if named else folder}/{strip_path(line)}"
