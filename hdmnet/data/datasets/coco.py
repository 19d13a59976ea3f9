"""COCO-20i: COCO 2014, four folds of twenty classes; the pictures of 2017 in the same way."""

from __future__ import annotations

import hashlib
import os
from functools import partial
from pathlib import Path, PurePosixPath

from hdmnet.data.class_split import SplitRule
from hdmnet.data.datasets.base import LeftOut, Split
from hdmnet.data.datasets.files import (
    find_list,
    fingerprint_files,
    read_ids,
    refuse_shared_ids,
    require_ids,
    strip_path,
)
from hdmnet.data.datasets.tree import TreeDataset
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
    """A COCO tree: `train2014/ val2014/`, and masks `masks/{train2014,val2014}/*.png` by scripts/data/prepare_coco.py.

    With year 2017 `train2017/ val2017/` likewise, whose lists are others (118,287 and 5,000 pictures): figures on them
    are not those of COCO-20i.

    Masks are 8-bit PNGs (palette or grey): 0, class = position 1..80 in ascending category id, 255. Those of other
    codebases are taken as they are. A split's images are all that have a mask, so the annotations' JSON is not read.
    Ids are such as "train2014/COCO_train2014_000000000009".

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
        lists: str | None = None,
    ) -> None:
        if year not in YEARS:
            raise DatasetError(f"dataset.year={year}: expected {' or '.join(map(str, YEARS))}")
        super().__init__(
            root, train_list, val_list, num_folds=num_folds, split_rule=split_rule, min_area=min_area, lists=lists
        )
        self.year = year

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
            return sorted(self._list_folder(self.root / "masks", self.folder(split), ".png"))
        return read_ids(find_list(listed, self.root, names="null"), partial(parse_line, folder=self.folder(split)))

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
                remedy = f"make the masks once with scripts/data/prepare_coco.py --root {self.root}{year}"
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

    def fingerprint(self, split: Split) -> str:
        """Hex sha256 over the split's ids, in order, and its masks' and pictures' names, sizes and times.

        The pictures too, as scanning the masks also looks at these: one that was damaged since is found.
        """
        ids = self.ids(split)
        parts = []
        for folder in sorted({image_id.split("/")[0] for image_id in ids}):
            stems = [image_id.split("/")[1] for image_id in ids if image_id.startswith(f"{folder}/")]
            names = [f"{stem}.png" for stem in stems]
            parts.append(fingerprint_files(self.root / "masks" / folder, names=names, extra=[folder]))
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
        what = "no mask, left out: scripts/data/prepare_coco.py paints it"
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
                "site there, run scripts/data/prepare_coco.py, or set paths.data_dir (HDMNET_DATA) to the folder that "
                "holds coco/"
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
            masks = set().union(*(self._list_folder(self.root / "masks", folder, ".png") for folder in folders))
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
