"""PASCAL-5i: VOC 2012 with the extra masks of SBD, four folds of five consecutive classes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from hdmnet.data.masks import read_image, read_mask, read_size
from hdmnet.data.source import Source, Split, SplitRule, UInt8Array, check_unique, fingerprint_files, read_id_list

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


class PascalSource(Source):
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

    Args:
        root: The tree.
        train_list: Which images to train on.
        val_list: Which images to validate and test on.
        split_rule: How classes are dealt out to folds; "contiguous" is PASCAL-5i.
        min_area: Fewest pixels, at original size, for a class to count in an image.
    """

    def __init__(
        self,
        root: str | Path,
        train_list: str = "5953",
        val_list: str = "val",
        *,
        split_rule: SplitRule = "contiguous",
        min_area: int = 2 * 32 * 32,
    ) -> None:
        self.name = "pascal"
        self.class_names = CLASS_NAMES
        self.split_rule = split_rule
        self.min_area = min_area
        self.root = Path(root)
        # str(): a command line's `train_list=5953` arrives as an integer.
        self.lists: dict[str, str] = {"train": str(train_list), "val": str(val_list)}

    def ids(self, split: Split) -> list[str]:
        """Image ids of a split, in the list's order.

        Args:
            split: "train" or "val".

        Returns:
            Ids such as "2007_000032", each once.

        Raises:
            FileNotFoundError: If the list is no known name and no file.
            ValueError: If the list is empty or holds an id twice.
        """
        listed = self.lists[split]
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
        return path if path.is_file() else self.root / _VOC / f"{image_id}.png"

    def read_image(self, image_id: str) -> UInt8Array:
        """Picture as (H, W, 3) uint8 RGB at original size."""
        return read_image(self.image_path(image_id))

    def read_mask(self, image_id: str) -> UInt8Array:
        """Mask as (H, W) uint8 at original size: 0 background, 1..20 class, 255 ignore."""
        return read_mask(self.mask_path(image_id))

    def image_size(self, image_id: str) -> tuple[int, int]:
        """Size (H, W) of the picture, from its header; refuses one that is cut short."""
        return read_size(self.image_path(image_id))

    def mask_location(self, image_id: str) -> str:
        """Path of the mask, for error messages."""
        return str(self.mask_path(image_id))

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

    def check(self) -> None:
        """Checks that the tree is whole, before any training.

        Raises:
            FileNotFoundError: If a folder, a list, a picture or a mask is missing; one line.
            ValueError: If a list is malformed, or the two lists share images.
        """
        if not self.root.is_dir():
            raise FileNotFoundError(
                f"PASCAL folder {self.root} is missing: make it with scripts/prepare_pascal.py, or set paths.data_dir "
                "(HDMNET_DATA) to the folder that holds pascal/"
            )
        if not (self.root / "JPEGImages").is_dir():
            raise FileNotFoundError(
                f"{self.root / 'JPEGImages'} is missing: unpack the PASCAL VOC 2012 train/val tar there"
            )
        if not any((self.root / folder).is_dir() for folder in (_AUG, _VOC)):
            raise FileNotFoundError(
                f"{self.root} has neither {_AUG} nor {_VOC}: make them with scripts/prepare_pascal.py"
            )
        pictures = {path.stem for path in (self.root / "JPEGImages").glob("[!.]*.jpg")}
        masks = self._mask_ids()
        train, val = self.ids("train"), self.ids("val")
        for split, ids in (("train", train), ("val", val)):
            origin = f"{split} list {self.lists[split]!r} of {self.root}"
            remedy = "run scripts/prepare_pascal.py"
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
        refuse_shared_ids(train, val)


def require_ids(ids: list[str], present: set[str], origin: str, what: str, remedy: str) -> None:
    """Checks that every id of a list has its file.

    Args:
        ids: The list.
        present: Ids whose file is there.
        origin: Which list, for the error.
        what: What is looked for, and where.
        remedy: What to do.

    Raises:
        FileNotFoundError: If any lacks; names the first and how many.
    """
    missing = [image_id for image_id in ids if image_id not in present]
    if missing:
        raise FileNotFoundError(
            f"{origin}: {len(missing):,} of {len(ids):,} ids have no {what}, first {missing[0]!r}: {remedy}"
        )


def refuse_shared_ids(train: list[str], val: list[str]) -> None:
    """Refuses lists that would train on validation images.

    Args:
        train: Training ids.
        val: Validation ids.

    Raises:
        ValueError: If an id is in both.
    """
    shared = sorted(set(train) & set(val))
    if shared:
        raise ValueError(
            f"{len(shared):,} ids are in the train list and in the val list, first {shared[0]!r}: "
            "take them off one of them"
        )


def find_list(listed: str, folder: Path, *, names: str) -> Path:
    """Finds a list of ids by its path.

    Args:
        listed: Path relative to `folder` or to the working directory, or absolute.
        folder: The tree's folder of lists.
        names: Names that would have been taken for a list too, for the error.

    Returns:
        Path of the file.

    Raises:
        FileNotFoundError: If there is none.
    """
    for candidate in (folder / listed, folder / f"{listed}.txt", Path(listed)):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(
        f"list of ids {listed!r} is neither a known name ({names}) nor a file in {folder} or in {Path.cwd()}: "
        "correct the path"
    )


def strip_path(line: str) -> str:
    """Id of a line of a list: "ID", or "/JPEGImages/ID.jpg /SegmentationClassAug/ID.png"."""
    path = Path(line.split()[0])
    return path.stem if path.suffix.lower() in (".jpg", ".jpeg", ".png") else path.name


def read_ids(path: Path, parse: Callable[[str], str] = strip_path) -> list[str]:
    """Reads a list of ids.

    Args:
        path: Text file, one image a line.
        parse: Makes an id of a line that is not empty.

    Returns:
        The ids in order.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is empty or holds an id twice.
    """
    ids = [parse(line) for line in read_id_list(path)]
    check_unique(ids, str(path))
    return ids
