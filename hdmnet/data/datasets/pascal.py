"""PASCAL-5i: VOC 2012 with the extra masks of SBD, four folds of five consecutive classes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import ClassVar

from hdmnet.data.datasets.base import Split
from hdmnet.data.datasets.files import find_list, fingerprint_files, read_ids, refuse_shared_ids, require_ids
from hdmnet.data.datasets.tree import TreeDataset
from hdmnet.runtime.errors import MissingFileError

#: Ids that are shipped: VOC 2012 train (1,464) and val (1,449), SBD's `train_noval` (5,623).
LISTS = Path(__file__).parent / "lists"

CLASS_NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle"),
    *("bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person"),
    *("pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_TRAINAUG_NAMES = ("Segmentation/trainaug.txt", "SegmentationAug/trainaug.txt", "SegmentationAug/train_aug.txt")
_AUG, _VOC = "SegmentationClassAug", "SegmentationClass"


class PascalDataset(TreeDataset):
    """A VOC tree: `JPEGImages/ SegmentationClassAug/ SegmentationClass/ ImageSets/Segmentation/`, as users have it.

    The mask of an id is `SegmentationClassAug/ID.png` (VOC and SBD), and where that is missing
    `SegmentationClass/ID.png` (VOC alone, so the tree may lack the Aug folder). Masks are palette or grey PNGs: 0, the
    class 1..20, 255.

    Lists of training ids:
        "5953": VOC 2012 train and SBD train_noval together, 5,953 ids ascending; shipped; what BAM and HDMNet use.
        "trainaug": VOC train and all of SBD but VOC val, 10,582 ids (HSNet): the tree's own trainaug list, else every
            id with a mask that is not in VOC 2012 val, ascending.
        "voc": the tree's own ImageSets/Segmentation/train.txt; without one the shipped VOC 2012 train, 1,464 ids.
    Of validation ids:
        "val": the tree's own ImageSets/Segmentation/val.txt; without one the shipped VOC 2012 val, 1,449 ids.
    Anything else is the path of a list: relative to the tree's ImageSets/Segmentation, then to the working directory,
    or absolute. Its lines hold an id, or a picture's path with the mask's after it, as in other codebases' lists.
    Both at once by `lists`: "pfenet", "bam", "hdmnet" (5953), "hsnet" and "panet" (trainaug), each with val; or the
    folder of HSNet's own lists, which leave out small objects too.
    """

    name = "pascal"
    class_names = CLASS_NAMES
    default_lists: ClassVar[dict[Split, str | None]] = {"train": "5953", "val": "val"}
    named_lists: ClassVar[dict[str, dict[Split, str | None]]] = {
        "pfenet": default_lists,
        "bam": default_lists,
        "hdmnet": default_lists,
        "hsnet": {"train": "trainaug", "val": "val"},
        "panet": {"train": "trainaug", "val": "val"},
    }

    def ids(self, split: Split) -> list[str]:
        """Image ids of "train" or "val", such as "2007_000032", in the list's order.

        Raises:
            FileNotFoundError: If the list is no known name and no file.
            ValueError: If the list is empty or holds an id twice.
        """
        if self.pair_lists is not None:
            return list(self.pair_lists.ids[split])
        listed = str(self.lists[split])  # a command line's `train_list=5953` arrives as an integer
        sets = self.root / "ImageSets" / "Segmentation"
        if split == "train" and listed == "5953":
            return sorted({*read_ids(LISTS / "voc2012_train.txt"), *read_ids(LISTS / "sbd_train_noval.txt")})
        if split == "train" and listed == "trainaug":
            return self._trainaug_ids()
        if listed == ("voc" if split == "train" else "val"):
            own = sets / f"{split}.txt"
            return read_ids(own if own.is_file() else LISTS / f"voc2012_{split}.txt")
        return read_ids(find_list(listed, sets, names="5953, trainaug, voc" if split == "train" else "val"))

    def _trainaug_ids(self) -> list[str]:
        for name in _TRAINAUG_NAMES:
            if (self.root / "ImageSets" / name).is_file():
                return read_ids(self.root / "ImageSets" / name)
        # Both vals: neither a reduced list of the tree nor a list of another name may let a validation image in.
        return sorted(self._mask_ids() - {*read_ids(LISTS / "voc2012_val.txt"), *self.ids("val")})

    def _mask_ids(self) -> set[str]:
        return {path.stem for folder in (_AUG, _VOC) for path in (self.root / folder).glob("[!.]*.png")}

    def image_path(self, image_id: str) -> Path:
        """Path of a picture; need not exist."""
        return self.root / "JPEGImages" / f"{image_id}.jpg"

    def mask_path(self, image_id: str) -> Path:
        """Path of a mask: in SegmentationClassAug if it is there, else in SegmentationClass (it need not exist)."""
        path = self.root / _AUG / f"{image_id}.png"
        return path if os.path.lexists(path) else self.root / _VOC / f"{image_id}.png"

    def fingerprint(self, split: Split) -> str:
        """Hex sha256 over the split's ids, in order, and its masks' and pictures' names, sizes and times.

        The pictures too, as scanning the masks also looks at these: one that was damaged since is found.
        """
        ids = self.ids(split)
        names = [f"{image_id}.png" for image_id in ids]
        folders = [self.root / folder for folder in (_AUG, _VOC) if (self.root / folder).is_dir()]
        parts = [fingerprint_files(folder, names=names, extra=[folder.name, *ids]) for folder in folders]
        if (self.root / "JPEGImages").is_dir():
            parts.append(fingerprint_files(self.root / "JPEGImages", names=[f"{image_id}.jpg" for image_id in ids]))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def check(self, *, files: bool = True) -> None:
        """Check that the tree is whole, before any training; without `files` not each image's own.

        Raises:
            FileNotFoundError: If a folder, a list, a picture or a mask is missing; one line.
            ValueError: If a list is malformed, or the two lists share images.
        """
        if not self.root.is_dir():
            raise MissingFileError(
                f"PASCAL folder {self.root} is missing: make it with scripts/data/prepare_pascal.py, or set "
                "paths.data_dir (HDMNET_DATA) to the folder that holds pascal/"
            )
        if not (self.root / "JPEGImages").is_dir():
            raise MissingFileError(
                f"{self.root / 'JPEGImages'} is missing: unpack the PASCAL VOC 2012 train/val tar there"
            )
        if not any((self.root / folder).is_dir() for folder in (_AUG, _VOC)):
            raise MissingFileError(
                f"{self.root} has neither {_AUG} nor {_VOC}: make them with scripts/data/prepare_pascal.py"
            )
        pictures = {path.stem for path in (self.root / "JPEGImages").glob("[!.]*.jpg")}
        masks = self._mask_ids()
        lists = {split: self.ids(split) for split in self.splits}
        for split, ids in lists.items() if files else ():
            origin = f"{split} list {self.lists[split]!r} of {self.root}"
            remedy = "run scripts/data/prepare_pascal.py"
            if split == "train":
                remedy += ", or for a reduced tree set dataset.train_list=voc or the path of a list"
            require_ids(
                ids,
                pictures,
                origin,
                "picture in JPEGImages",
                "unpack the VOC 2012 tar again" if split == "val" else remedy,
            )
            require_ids(ids, masks, origin, f"mask in {_AUG} or {_VOC}", remedy)
        refuse_shared_ids(lists.get("train", []), lists["val"])
