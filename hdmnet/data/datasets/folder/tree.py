"""Finds pictures, masks and lists in a user's folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hdmnet.data.datasets.base import Split
from hdmnet.data.datasets.files import check_unique, read_ids
from hdmnet.data.io.colour_masks import BACKGROUND, ColourList, ColourMasks, find_colours
from hdmnet.data.io.listing import Listing, list_files
from hdmnet.runtime.errors import DatasetError, MissingFileError
from hdmnet.runtime.home import expand_home

LayoutName = Literal["index", "binary", "coco", "fss"]

IMAGE_FOLDERS = ("images", "JPEGImages", "imgs", "img")
MASK_FOLDERS = ("masks", "SegmentationClassPNG", "SegmentationClass", "labels", "annotations", "mask")
CLASS_FILES = ("classes.txt", "class_names.txt", "labels.txt")
COLOUR_FILES = ("labelmap.txt", "label_colors.txt", "class_dict.csv", *CLASS_FILES)
# What annotation tools write into a list of classes for values that are no class.
IGNORED = frozenset({"__ignore__", "_ignore_"})
_NO_CLASS = BACKGROUND | IGNORED


@dataclass(frozen=True)
class Regions:
    """What a COCO-style JSON says of one picture: its size (H, W), and (class value, segmentation, is a crowd)."""

    size: tuple[int, int]
    entries: list[tuple[int, Any, bool]]


@dataclass(frozen=True)
class Tree:
    """What lies in a folder.

    Attributes:
        layout: Its shape.
        class_names: Names of the classes 1..C.
        pictures: Path of every labelled picture, by id, ids ascending.
        masks: Mask files by id, each with its class value; 0: the file holds class values itself (index).
        stored: For index, the class value of each value 0, 1, … that masks may hold beside 255; empty: the same.
        regions: For coco, in place of `masks`.
        annotations: For coco, the JSON of each picture, by id.
        origin: For coco, the folder that the JSON's file names start from.
        splits: Ids of the pictures for training and for validation, where there is a JSON for each; else empty.
        unused: For coco, id and name of each category that no annotation has, and which is no class therefore.
        colours: For index, reads masks in colours; None: their values are the classes.
        problems: A line for each file that belongs to nothing.
        unlabelled: Pictures without any mask, which are left out.
        others: Files in the folders of pictures and masks that are neither by their names.
        links: A line for each link to a folder that is not followed, as it leads to one that is read anyway.
        crowds: Ids of images by what became of their annotations with `iscrowd: 1`, one for each: see `CROWD_VALUES`.
        bare: Ids of images with annotations that have no segmentation, one for each.
    """

    layout: LayoutName
    class_names: tuple[str, ...]
    pictures: dict[str, Path]
    masks: dict[str, list[tuple[int, Path]]] = field(default_factory=dict)
    stored: tuple[int, ...] = ()
    regions: dict[str, Regions] = field(default_factory=dict)
    annotations: dict[str, Path] = field(default_factory=dict)
    origin: Path | None = None
    splits: dict[Split, tuple[str, ...]] = field(default_factory=dict)
    unused: tuple[tuple[int, str], ...] = ()
    colours: ColourMasks | None = None
    problems: tuple[str, ...] = ()
    unlabelled: tuple[Path, ...] = ()
    others: tuple[Path, ...] = ()
    links: tuple[str, ...] = ()
    crowds: dict[str, tuple[str, ...]] = field(default_factory=dict)
    bare: tuple[str, ...] = ()


@dataclass(frozen=True)
class Places:
    """Where in a folder things lie; None: recognised by their usual names.

    Attributes:
        root: The folder.
        images: Folder of the pictures.
        masks: Folder of the masks.
        annotations: COCO-style JSON, or two: for training, for validation.
        classes: Names of the classes that count, in order, or a file with one a line.
        colours: File that names the class of each colour, of masks in colours.
        crowd: What annotations with `iscrowd: 1` are, see `CROWD_VALUES`; None: objects of the classes that have no
            other annotation, else ignored.
        boxes: Whether an annotation without a segmentation marks its box; else nothing.
    """

    root: Path
    images: str | None = None
    masks: str | None = None
    annotations: str | Sequence[str] | None = None
    classes: str | Sequence[str] | None = None
    colours: str | None = None
    crowd: str | None = None
    boxes: bool = False
    _listed: dict[Path, Listing] = field(default_factory=dict, init=False, compare=False)

    def files_in(self, folder: Path) -> Listing:
        """What lies in a folder; listed once."""
        if folder not in self._listed:
            self._listed[folder] = list_files(folder)
        return self._listed[folder]

    @property
    def listings(self) -> tuple[Listing, ...]:
        """What was listed so far."""
        return tuple(self._listed.values())

    def folder(self, given: str | None, usual: Sequence[str]) -> Path | None:
        """The folder that was given, else the first with a usual name; None if there is none."""
        if given is None:
            return next((self.root / name for name in usual if (self.root / name).is_dir()), None)
        if not (self.root / given).is_dir():
            raise MissingFileError(f"folder {self.root / given} is missing: correct dataset.images or dataset.masks")
        return self.root / given

    def pictures(self) -> dict[str, Path]:
        """Pictures by id, of the layouts with a folder of them."""
        folder = self.folder(self.images, IMAGE_FOLDERS)
        if folder is None:
            raise MissingFileError(f"{self.root} has no folder of pictures (images/): make it or set dataset.images")
        return single_files(self.files_in(folder).pictures, folder)

    def mask_folder(self) -> Path:
        """Folder of the masks."""
        folder = self.folder(self.masks, MASK_FOLDERS)
        if folder is None:
            raise MissingFileError(f"{self.root} has no folder of masks (masks/): make it or set dataset.masks")
        return folder

    def class_list(self) -> tuple[str, ...] | None:
        """Names of the classes as given or as in the folder's classes.txt; None if there is neither."""
        lines = self.own_list() if self.classes is None else self.given_list()
        return None if lines is None else tuple(name for name in lines if not is_no_class(name))

    def own_list(self) -> list[str] | None:
        """The lines of the folder's classes.txt or the like; None if there is none, or one of colours."""
        file = self._first(CLASS_FILES)
        return None if file is None or find_colours(file) is not None else read_ids(file, str)

    def given_list(self) -> list[str] | None:
        """The names that were given, or the lines of the file; None if there are none."""
        if self.classes is None:
            return None
        if isinstance(self.classes, str):
            path = self._find(self.classes, "classes")
            colours = find_colours(path)
            return read_ids(path, str) if colours is None else list(colours.class_names)
        names = [str(name) for name in self.classes]
        check_unique(names, "dataset.classes")
        return names

    def colour_list(self) -> ColourList | None:
        """Which class each colour is: as given, by a list of classes that has colours, or as in the folder."""
        if self.colours is not None:
            path = self._find(self.colours, "colours")
            if (colours := find_colours(path)) is None:
                raise DatasetError(f"{path} holds no colour, expected NAME:R,G,B in each line: correct dataset.colours")
            return colours
        if isinstance(self.classes, str) and (colours := find_colours(self._find(self.classes, "classes"))) is not None:
            return colours
        usual = self._first(COLOUR_FILES)
        return None if usual is None else find_colours(usual)

    def _find(self, listed: str, what: str) -> Path:
        path = self.root / listed if (self.root / listed).is_file() else expand_home(listed)
        if not path.is_file():
            raise MissingFileError(f"list of {what} {listed!r} is in neither {self.root} nor {Path.cwd()}")
        return path

    def _first(self, usual: Sequence[str]) -> Path | None:
        return next((self.root / name for name in usual if (self.root / name).is_file()), None)


def is_no_class(name: str) -> bool:
    """Whether a line of a list of classes stands for no class."""
    return name.lower() in _NO_CLASS


def choose_classes(listed: Sequence[str] | None, found: Sequence[str] | set[str], where: str) -> dict[str, int]:
    """Value of each class: in the order of the list of classes, without one as found (a set: by name)."""
    for name in listed or ():
        if name not in found:
            known = ", ".join(sorted(found)[:5])
            raise DatasetError(f"class {name!r} of the list of classes is not in {where}, which has {known} …")
    names = tuple(listed or (sorted(found) if isinstance(found, set) else found))
    if not names:
        raise DatasetError(f"{where} has no classes, expected at least one: check the masks and dataset.classes")
    return {name: value for value, name in enumerate(names, start=1)}


def single_files(files: dict[str, list[Path]], folder: Path) -> dict[str, Path]:
    """The file of each name below a folder; raises ValueError where there are two, as a.jpg and a.png."""
    for name, paths in files.items():
        if len(paths) > 1:
            both = " and ".join(path.name for path in paths[:2])
            raise DatasetError(f"{folder} holds {both} ({name!r} twice), expected one of them: remove the other")
    return {name: paths[0] for name, paths in files.items()}
