"""The usual shapes of a folder with pictures and masks: which there are, how to tell them apart, what each holds.

    index   images/**/NAME.jpg, masks/**/NAME.png    values are class indices: 0 background, 1 the first line of
                                                     classes.txt, 2 the second and so on; 255 is ignored. Or colours,
                                                     named by labelmap.txt (hdmnet/data/io/colour_masks.py)
    binary  images/**/NAME.jpg, masks/CLASS/**/NAME.png or masks/**/NAME/CLASS.png    one mask a class and picture
    coco    pictures and a COCO-style JSON: polygons or run lengths of any categories; or two, of which one is for
            training and one for validation, by their own or their folders' names
    fss     CLASS/NAME.jpg beside CLASS/NAME.png    FSS-1000: one class a picture

An image's id is its picture's path below the folder of pictures, without the suffix. So the same picture has the same
id in every layout if it lies in the same subfolder. Where two JSONs have pictures in two folders, it is the path below
the root.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from hdmnet.data.datasets.base import Split
from hdmnet.data.datasets.files import check_unique, read_ids
from hdmnet.data.io.annotations import is_crowd, marks_nothing, plain_id, refuse_doubled
from hdmnet.data.io.arrays import IGNORE, MAX_LABELS
from hdmnet.data.io.colour_masks import BACKGROUND, ColourList, ColourMasks, find_colours
from hdmnet.data.io.listing import Listing, list_files
from hdmnet.runtime.errors import DatasetError, MissingFileError
from hdmnet.runtime.home import expand_home

LayoutName = Literal["index", "binary", "coco", "fss"]

IMAGE_FOLDERS = ("images", "JPEGImages", "imgs", "img")
SPLIT_FOLDERS = ("train", "valid", "val", "test")
MASK_FOLDERS = ("masks", "SegmentationClassPNG", "SegmentationClass", "labels", "annotations", "mask")
_LARGEST_SIDE = 65535  # px: what JPEG can hold
CLASS_FILES = ("classes.txt", "class_names.txt", "labels.txt")
COLOUR_FILES = ("labelmap.txt", "label_colors.txt", "class_dict.csv", *CLASS_FILES)
# What annotation tools write into a list of classes for values that are no class.
_IGNORED = frozenset({"__ignore__", "_ignore_"})
_NO_CLASS = BACKGROUND | _IGNORED
_SHAPES = (
    "index (images/NAME.jpg, masks/NAME.png), binary (masks/CLASS/NAME.png), coco (a JSON with images, annotations and "
    "categories), fss (CLASS/NAME.jpg with CLASS/NAME.png)"
)


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
    """

    root: Path
    images: str | None = None
    masks: str | None = None
    annotations: str | Sequence[str] | None = None
    classes: str | Sequence[str] | None = None
    colours: str | None = None
    crowd: str | None = None
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
        return _single(self.files_in(folder).pictures, folder)

    def mask_folder(self) -> Path:
        """Folder of the masks."""
        folder = self.folder(self.masks, MASK_FOLDERS)
        if folder is None:
            raise MissingFileError(f"{self.root} has no folder of masks (masks/): make it or set dataset.masks")
        return folder

    def class_list(self) -> tuple[str, ...] | None:
        """Names of the classes as given or as in the folder's classes.txt; None if there is neither."""
        lines = self.own_list() if self.classes is None else self.given_list()
        return None if lines is None else tuple(name for name in lines if not _is_no_class(name))

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


def _is_no_class(name: str) -> bool:
    return name.lower() in _NO_CLASS


def scan(places: Places, layout: LayoutName | None = None) -> Tree:
    """Find out what lies in a folder, of a given or recognised layout; no picture and no mask is opened.

    Raises:
        FileNotFoundError: Something that the layout needs is missing.
        ValueError: The layout cannot be told, or the content does not fit it; one line.
    """
    if not places.root.is_dir():
        raise MissingFileError(f"folder {places.root} is missing: set dataset.root to the folder of your pictures")
    if layout is not None and layout not in get_args(LayoutName):
        raise DatasetError(f"dataset.layout={layout!r}: expected one of {', '.join(get_args(LayoutName))}, or null")
    jsons = _find_jsons(places) if layout in (None, "coco") else {}
    if layout is None:
        layout = _recognise(places, bool(jsons))
    if layout == "coco":
        return _scan_coco(places, jsons)
    return {"index": _scan_index, "binary": _scan_binary, "fss": _scan_fss}[layout](places)


def _recognise(places: Places, has_json: bool) -> LayoutName:
    fits: list[LayoutName] = ["coco"] if has_json else []
    images = places.folder(places.images, IMAGE_FOLDERS)
    masks = places.folder(places.masks, MASK_FOLDERS)
    if images is not None and masks is not None:
        pictures, files = places.files_in(images).pictures, places.files_in(masks).pictures
        if any(name in pictures for name in files):
            fits.append("index")
        if any(owner in pictures for name in files for owner, _ in _owners(name)):
            fits.append("binary")
    elif images is None and any(pairs for pairs, _, _ in _class_folders(places).values()):
        fits.append("fss")
    if len(fits) != 1:
        found = f"fits {' and '.join(fits)}" if fits else "has none of the known layouts"
        raise DatasetError(f"{places.root} {found}, expected one of {_SHAPES}: set dataset.layout, or arrange it so")
    return fits[0]


def _scan_index(places: Places) -> Tree:
    own, given = places.own_list(), places.given_list()
    listed = places.colour_list()
    if listed is not None:
        names = tuple(_choose(places.class_list(), listed.class_names, str(listed.path)))
        values = None if own is None else ("background", *itertools.dropwhile(_is_no_class, own))
        return replace(_pair_index(places, names), colours=ColourMasks(listed, names, places=values))
    lines = given if own is None else own
    if lines is None:
        raise MissingFileError(
            f"{places.root} has index masks and no list of classes: write classes.txt, the name of value 1 in its first"
            " line and so on, or set dataset.classes; for masks in colours write labelmap.txt, NAME:R,G,B in each line,"
            " or set dataset.colours"
        )
    # What annotation tools write before the first class (__ignore__, _background_) takes no value.
    lines = list(itertools.dropwhile(_is_no_class, lines))
    named = {name: value for value, name in enumerate(lines, start=1) if not _is_no_class(name)}
    chosen = list(named) if own is None or given is None else [name for name in given if not _is_no_class(name)]
    for name in chosen:
        if name not in named:
            known = ", ".join([*named][:5]) + (" …" if len(named) > 5 else "")
            raise DatasetError(
                f"class {name!r} of dataset.classes is none of those that the list in {places.root} names for the "
                f"masks' values ({known}): choose among these, or take that list away to name the values by "
                "dataset.classes"
            )
    if not chosen or len(lines) > MAX_LABELS:
        raise DatasetError(
            f"{places.root} has index masks and {len(lines):,} classes, expected 1 to {MAX_LABELS}, as such masks are "
            "of 8 bits: give each class masks of its own (layout binary or fss)"
        )
    by_name = dict.fromkeys(_IGNORED, IGNORE) | {name: value for value, name in enumerate(chosen, start=1)}
    stored = (0, *(by_name.get(name if name in named else name.lower(), 0) for name in lines))
    tree = _pair_index(places, tuple(chosen))
    return tree if stored == tuple(range(len(stored))) else replace(tree, stored=stored)


def _pair_index(places: Places, names: tuple[str, ...]) -> Tree:
    pictures, folder = places.pictures(), places.mask_folder()
    masks = _single(places.files_in(folder).pictures, folder)
    files = {image_id: [(0, masks[image_id])] for image_id in pictures if image_id in masks}
    lost = [path for name, path in masks.items() if name not in pictures]
    return _tree(places, "index", names, pictures, files, lost)


def _scan_binary(places: Places) -> Tree:
    pictures, folder = places.pictures(), places.mask_folder()
    masks = _single(places.files_in(folder).pictures, folder)
    # Either every mask lies in its class's folder or every one in its picture's.
    by_style = [[(name, *_owners(name)[style]) for name in masks if _owners(name)] for style in (0, 1)]
    fitting = [[entry for entry in entries if entry[1] in pictures] for entries in by_style]
    if all(fitting):
        raise DatasetError(
            f"{folder} fits masks/CLASS/NAME and masks/NAME/CLASS, e.g. {fitting[0][0][0]!r} and {fitting[1][0][0]!r}: "
            "no class may be called as a picture is, rename one of them"
        )
    entries = fitting[0] or fitting[1]
    names = _choose(places.class_list(), {class_name for _, _, class_name in entries}, str(places.root))
    files: dict[str, list[tuple[int, Path]]] = {}
    for name, image_id, class_name in entries:
        if class_name in names:
            files.setdefault(image_id, []).append((names[class_name], masks[name]))
        else:
            files.setdefault(image_id, [])  # labelled, by none of the classes that were chosen
    used = {name for name, _, _ in entries}
    lost = [path for name, path in masks.items() if name not in used]
    return _tree(places, "binary", tuple(names), pictures, files, lost)


def _scan_fss(places: Places) -> Tree:
    found = _class_folders(places)
    names = _choose(places.class_list(), {name for name, (pairs, _, _) in found.items() if pairs}, str(places.root))
    pictures: dict[str, Path] = {}
    files: dict[str, list[tuple[int, Path]]] = {}
    lost: list[Path] = []
    alone: list[Path] = []
    for name, (pairs, pictures_alone, masks_alone) in found.items():
        if not pairs:
            alone += [*pictures_alone, *masks_alone]
        if name not in names:
            continue  # no class, or none that is chosen
        value = names[name]
        pictures |= {f"{name}/{stem}": picture for stem, picture, _ in pairs}
        files |= {f"{name}/{stem}": [(value, mask)] for stem, _, mask in pairs}
        lost += masks_alone
        alone += pictures_alone
    tree = _tree(places, "fss", tuple(names), pictures, files, lost)
    others = tuple(path for path in tree.others if path.parent != places.root)  # those there are lists, say
    for name, beside in places.files_in(places.root).pictures.items():
        alone += beside if "/" not in name else ()
    return replace(tree, unlabelled=tuple(alone), others=others)


def _scan_coco(places: Places, jsons: dict[Path, dict[str, Any]]) -> Tree:
    pair = _pair_up(places, list(jsons))
    if pair is not None:
        whole = replace(places, classes=())  # chosen of both together
        train, val = (_read_coco_file(whole, path, jsons[path]) for path in pair)
        return _note_unnamed(places, _join(places, train, val), [train, val])
    if len(jsons) != 1:
        found = f" ({', '.join(_below(path, places.root) for path in list(jsons)[:5])})" if jsons else ""
        raise DatasetError(
            f"{places.root} holds {len(jsons)} JSONs with images, annotations and categories{found}, expected one, or "
            "one for training and one for validation: set dataset.annotations=FILE or [TRAIN,VAL]"
        )
    tree = _read_coco_file(places, *next(iter(jsons.items())))
    return _note_unnamed(places, tree, [tree])


def _pair_up(places: Places, paths: list[Path]) -> tuple[Path, Path] | None:
    """The JSON for training and that for validation, as given or by what they are called; None where there are none."""
    if len(paths) != 2:
        return None
    if places.annotations is not None:
        return paths[0], paths[1]
    called = {path: _below(path, places.root).lower() for path in paths}
    train = [path for path in paths if "train" in called[path]]
    val = [path for path in paths if "val" in called[path] or "test" in called[path]]
    return (train[0], val[0]) if len(train) == len(val) == 1 and train != val else None


def _below(path: Path, root: Path) -> str:
    """A path as it is written below the root; one that lies elsewhere in full."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _read_coco_file(places: Places, path: Path, content: dict[str, Any]) -> Tree:
    try:
        return _read_coco(places, path, content)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DatasetError(f"{path} is no COCO-style annotation file ({reason}): export it again") from None


def _join(places: Places, train: Tree, val: Tree) -> Tree:
    """One tree of two JSONs; classes of one name are one class, and those of the first come first."""
    names = _choose(places.class_list(), list(dict.fromkeys(train.class_names + val.class_names)), str(places.root))
    in_both = set(train.unused) & set(val.unused)
    unused = {one for one in train.unused + val.unused if one in in_both or one[1] not in names}
    apart = train.origin != val.origin
    pictures: dict[str, Path] = {}
    regions: dict[str, Regions] = {}
    annotations: dict[str, Path] = {}
    splits: dict[Split, tuple[str, ...]] = {}
    crowds: dict[str, tuple[str, ...]] = {}
    bare: list[str] = []
    parts: tuple[tuple[Split, Tree], ...] = (("train", train), ("val", val))
    for split, tree in parts:
        assert tree.origin is not None
        folder = _below(tree.origin, places.root) if apart else "."
        ids = {one: one if folder == "." else f"{folder}/{one}" for one in tree.pictures}
        shared = next((ids[one] for one in ids if ids[one] in pictures), None)
        if shared is not None:
            both = " and ".join(str(path) for path in dict.fromkeys((annotations[shared], *tree.annotations.values())))
            raise DatasetError(f"{both} both name picture {shared!r}, expected each in one of them: remove it from one")
        values = {value: names.get(name, 0) for value, name in enumerate(tree.class_names, start=1)}
        for one, image_id in ids.items():
            pictures[image_id], annotations[image_id] = tree.pictures[one], tree.annotations[one]
            about = tree.regions[one]
            entries = [(values[value], *rest) for value, *rest in about.entries if values[value]]
            regions[image_id] = Regions(about.size, entries)
        splits[split] = tuple(sorted(ids.values()))
        bare += [ids[one] for one in tree.bare]
        for use, several in tree.crowds.items():
            crowds[use] = (*crowds.get(use, ()), *(ids[one] for one in several))
    return Tree(
        layout="coco",
        class_names=tuple(names),
        pictures={image_id: pictures[image_id] for image_id in sorted(pictures)},
        regions=regions,
        annotations=annotations,
        splits=splits,
        unused=() if places.class_list() else tuple(sorted(unused)),
        problems=train.problems + val.problems,
        crowds=crowds,
        bare=tuple(bare),
    )


def _read_coco(places: Places, path: Path, content: dict[str, Any]) -> Tree:
    categories = [one | {"id": _integer(one["id"], "category id", path)} for one in content["categories"]]
    refuse_doubled(categories, f"categories of {path}", "name")
    refuse_doubled(content["images"], f"images of {path}", "file_name")
    images = [one | {"id": plain_id(one["id"])} for one in content["images"]]
    annotations = [
        one | {"image_id": plain_id(one["image_id"]), "category_id": plain_id(one["category_id"])}
        for one in content["annotations"]
    ]
    named = {category["id"]: str(category["name"]) for category in categories}
    # Roboflow's category 0 is the project itself: no annotation has it, and a class may bear its name.
    used = named.keys() & {annotation["category_id"] for annotation in annotations} or named.keys()
    check_unique([named[category] for category in used], f"categories of {path}")
    listed = places.class_list()
    in_order = dict.fromkeys(named[category] for category in sorted(named) if listed or category in used)
    names = _choose(listed, list(in_order), str(path))
    values = {category: names.get(name, 0) for category, name in named.items()}  # 0: not chosen
    folder, num_parts = _coco_pictures(places, path, images)
    entries: dict[Any, list[tuple[int, Any, bool]]] = {image["id"]: [] for image in images}
    marking = [one for one in annotations if not marks_nothing(one.get("segmentation"))]
    with_objects = {one["category_id"] for one in marking if not is_crowd(one)}
    crowds: dict[str, list[Any]] = {}
    bare, problems = [], []
    for annotation in annotations:
        image, category = annotation["image_id"], annotation["category_id"]
        if image not in entries or category not in values:
            problems.append(f"annotation {annotation.get('id', '?')} of {path}: no such image or category in the file")
        elif not values[category]:
            continue
        elif marks_nothing(annotation.get("segmentation")):
            bare.append(image)
        else:
            use = "class"
            if is_crowd(annotation):
                use = places.crowd or ("ignore" if category in with_objects else "class")
                crowds.setdefault(use, []).append(image)
            if use != "zero":
                entries[image].append((values[category], annotation["segmentation"], use == "ignore"))
    pictures, regions, ids = {}, {}, {}
    for image in sorted(images, key=lambda image: str(_file_name(image, num_parts))):
        name = _file_name(image, num_parts)
        if name.is_absolute() or re.match("[A-Za-z]:/", str(name)) or ".." in name.parts or not name.name:
            shown = str(image.get("file_name", name))
            raise DatasetError(
                f"{path}: file_name {shown!r} leads outside, expected a path below {folder}: write it as the picture "
                "lies there"
            )
        image_id = name.with_suffix("").as_posix()
        if image_id in pictures:
            raise DatasetError(f"{path} names picture {image_id!r} twice, expected each once: rename or remove one")
        pictures[image_id], ids[image["id"]] = _locate(folder, image, name), image_id
        height, width = (_integer(image[side], f"{side} of {image_id!r}", path) for side in ("height", "width"))
        if not (0 < height <= _LARGEST_SIDE and 0 < width <= _LARGEST_SIDE):
            raise DatasetError(
                f"{path}: {image_id!r} is {height}x{width} (HxW), expected sides of 1 to {_LARGEST_SIDE}: mend it"
            )
        regions[image_id] = Regions((height, width), entries[image["id"]])
    order = sorted(pictures)  # as in the other layouts: by id, not by file name
    return Tree(
        layout="coco",
        class_names=tuple(names),
        pictures={image_id: pictures[image_id] for image_id in order},
        regions=regions,
        annotations=dict.fromkeys(order, path),
        origin=folder,
        unused=() if listed else tuple((category, named[category]) for category in sorted(named.keys() - used)),
        problems=tuple(problems),
        crowds={use: tuple(ids[image] for image in several) for use, several in crowds.items()},
        bare=tuple(ids[image] for image in bare),
    )


def _note_unnamed(places: Places, tree: Tree, parts: Sequence[Tree]) -> Tree:
    """The tree with the pictures in the folders of its parts' file names, or below, that no JSON names."""
    used = set(tree.pictures.values())
    folders = dict.fromkeys(part.origin for part in parts if part.origin is not None and part.origin.is_dir())
    listings = [places.files_in(folder) for folder in folders]
    beside = {path for listing in listings for paths in listing.pictures.values() for path in paths} - used
    if beside and any(listing.links for listing in listings):  # a name may lead through a link that was not followed
        real = {path.resolve() for path in used}
        beside = {path for path in beside if path.resolve() not in real}
    return replace(tree, unlabelled=tuple(sorted(beside)))


def _integer(value: Any, what: str, path: Path) -> int:
    try:
        if not isinstance(value, float) or value.is_integer():
            return int(value)
    except ValueError:
        pass
    raise DatasetError(f"{path}: {what} is {str(value)[:80]!r}, expected an integer: export it again")


def _coco_pictures(places: Places, path: Path, images: list[dict[str, Any]]) -> tuple[Path, int]:
    """The folder that the JSON's file names start from, and how many parts of a URL count: where most of some are."""
    if not images:
        raise DatasetError(f"{path} names no image, expected at least one")
    given = places.folder(places.images, IMAGE_FOLDERS)
    folders = [folder for folder in (given, places.root, path.parent) if folder is not None]
    parents = dict.fromkeys((given or places.root, places.root))
    below = (path for parent in parents for path in sorted(parent.iterdir()))  # as COCO has one for each JSON
    folders += [path for path in below if path.is_dir() and not path.name.startswith(".")]

    def found(where: tuple[Path, int]) -> int:
        folder, num_parts = where
        return sum(_locate(folder, image, _file_name(image, num_parts)).is_file() for image in images[:100])

    return max(itertools.product(folders, (1, 2)), key=found)


def _file_name(image: Mapping[str, Any], num_parts: int) -> PurePosixPath:
    """Path of a picture, Windows's too; without `file_name`, as in LVIS, the last parts of its URL."""
    if not image.get("file_name") and "coco_url" in image:
        return PurePosixPath(*urlsplit(str(image["coco_url"])).path.split("/")[-num_parts:])
    return PurePosixPath(str(image["file_name"]).replace("\\", "/"))


def _locate(folder: Path, image: Mapping[str, Any], name: PurePosixPath) -> Path:
    r"""A picture's file; some programs unpack Windows's `images\1.jpg` to a file of that very name."""
    raw = str(image.get("file_name"))
    return folder / raw if "\\" in raw and not (folder / name).is_file() and (folder / raw).is_file() else folder / name


def _find_jsons(places: Places) -> dict[Path, dict[str, Any]]:
    """The COCO-style JSONs of a folder with their content; of others none."""
    if places.annotations is not None:
        given = [places.annotations] if isinstance(places.annotations, str) else list(places.annotations)
        if not 1 <= len(given) <= 2:
            raise DatasetError(f"dataset.annotations has {len(given)} files, expected one, or two: [TRAIN,VAL]")
        paths = [places.root / name for name in given]
    else:
        paths = [path for folder in (places.root, places.root / "annotations") for path in folder.glob("[!.]*.json")]
        if not paths:  # Roboflow: a folder for each split, with its pictures and its JSON
            paths = [path for name in SPLIT_FOLDERS for path in (places.root / name).glob("[!.]*.json")]
        if len(paths) > 2:  # COCO's own, beside key points and captions of the same pictures
            paths = [path for path in paths if path.name.startswith("instances_")] or paths
        paths = sorted(paths)
    found = {}
    for path in paths:
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
        except FileNotFoundError:
            raise MissingFileError(f"annotations {path} are missing: correct dataset.annotations") from None
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{path} is no JSON ({error}): export it again, or set dataset.annotations") from None
        if isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys():
            found[path] = content
        elif places.annotations is not None:
            raise DatasetError(f"{path} lacks images, annotations or categories, expected a COCO-style JSON")
    return found


def _tree(
    places: Places,
    layout: LayoutName,
    names: tuple[str, ...],
    pictures: dict[str, Path],
    masks: dict[str, list[tuple[int, Path]]],
    lost: list[Path],
) -> Tree:
    """A tree of mask files; pictures without one are left out, masks without a picture are problems."""
    return Tree(
        layout=layout,
        class_names=names,
        pictures={image_id: pictures[image_id] for image_id in sorted(masks)},
        masks=masks,
        problems=(
            *(f"mask {path} has no picture" for path in lost),
            *(f"link {path} leads nowhere" for listing in places.listings for path in listing.broken),
        ),
        unlabelled=tuple(path for image_id, path in pictures.items() if image_id not in masks),
        others=tuple(path for listing in places.listings for path in listing.others),
        links=tuple(line for listing in places.listings for line in listing.links),
    )


def _choose(listed: Sequence[str] | None, found: Sequence[str] | set[str], where: str) -> dict[str, int]:
    """Value of each class: in the order of the list of classes, without one as found (a set: by name)."""
    for name in listed or ():
        if name not in found:
            known = ", ".join(sorted(found)[:5])
            raise DatasetError(f"class {name!r} of the list of classes is not in {where}, which has {known} …")
    names = tuple(listed or (sorted(found) if isinstance(found, set) else found))
    if not names:
        raise DatasetError(f"{where} has no classes, expected at least one: check the masks and dataset.classes")
    return {name: value for value, name in enumerate(names, start=1)}


def _owners(name: str) -> list[tuple[str, str]]:
    """The picture and the class that a binary mask's name may stand for: CLASS/NAME and NAME/CLASS."""
    first, _, rest = name.partition("/")
    start, _, last = name.rpartition("/")
    return [(rest, first), (start, last)] if rest else []


def _class_folders(places: Places) -> dict[str, tuple[list[tuple[str, Path, Path]], list[Path], list[Path]]]:
    """FSS-1000's folders by class: (stem, picture, mask), pictures without a mask, masks without a picture."""
    found: dict[str, tuple[list[tuple[str, Path, Path]], list[Path], list[Path]]] = {}
    for name, paths in places.files_in(places.root).pictures.items():
        class_name, _, stem = name.partition("/")
        if not stem:
            continue  # it lies beside the folders
        pairs, pictures, masks = found.setdefault(class_name, ([], [], []))
        mask = [path for path in paths if path.suffix.lower() == ".png"]
        picture = [path for path in paths if path.suffix.lower() != ".png"]
        if len(mask) == len(picture) == 1:
            pairs.append((stem, picture[0], mask[0]))
        else:
            masks += mask
            pictures += picture
    return found


def _single(files: dict[str, list[Path]], folder: Path) -> dict[str, Path]:
    for name, paths in files.items():
        if len(paths) > 1:
            both = " and ".join(path.name for path in paths[:2])
            raise DatasetError(f"{folder} holds {both} ({name!r} twice), expected one of them: remove the other")
    return {name: paths[0] for name, paths in files.items()}
