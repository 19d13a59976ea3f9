"""The usual shapes of a folder with pictures and masks: which there are, how to tell them apart, what each holds.

    index   images/**/NAME.jpg, masks/**/NAME.png    values are class indices: 0 background, 1 the first line of
                                                     classes.txt, 2 the second and so on; 255 is ignored
    binary  images/**/NAME.jpg, masks/CLASS/**/NAME.png or masks/**/NAME/CLASS.png    one mask a class and picture
    coco    pictures and a COCO-style JSON: polygons or run lengths of any categories
    fss     CLASS/NAME.jpg beside CLASS/NAME.png    FSS-1000: one class a picture

An image's id is its picture's path below the folder of pictures, without the suffix. So the same picture has the same
id in every layout if it lies in the same subfolder.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from hdmnet.data.datasets.files import check_unique, read_ids
from hdmnet.data.io.annotations import refuse_doubled
from hdmnet.data.io.arrays import IGNORE, MAX_LABELS
from hdmnet.data.io.listing import Listing, is_picture, list_files
from hdmnet.runtime.errors import DatasetError, MissingFileError

LayoutName = Literal["index", "binary", "coco", "fss"]

IMAGE_FOLDERS = ("images", "JPEGImages", "imgs", "img")
MASK_FOLDERS = ("masks", "SegmentationClass", "labels", "annotations", "mask")
_LARGEST_SIDE = 65535  # px: what JPEG can hold
CLASS_FILES = ("classes.txt", "class_names.txt", "labels.txt")
# What annotation tools write into a list of classes for values that are no class.
_IGNORED = frozenset({"__ignore__", "_ignore_"})
_NO_CLASS = frozenset({"background", "_background_", "__background__"}) | _IGNORED
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
        annotations: For coco, the JSON.
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
    annotations: Path | None = None
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
        annotations: COCO-style JSON.
        classes: Names of the classes that count, in order, or a file with one a line.
        crowd: What annotations with `iscrowd: 1` are, see `CROWD_VALUES`; None: objects of the classes that have no
            other annotation, else ignored.
    """

    root: Path
    images: str | None = None
    masks: str | None = None
    annotations: str | None = None
    classes: str | Sequence[str] | None = None
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
        """The lines of the folder's classes.txt or the like; None if there is none."""
        file = next((self.root / name for name in CLASS_FILES if (self.root / name).is_file()), None)
        return None if file is None else read_ids(file, str)

    def given_list(self) -> list[str] | None:
        """The names that were given, or the lines of the file; None if there are none."""
        if self.classes is None:
            return None
        if isinstance(self.classes, str):
            path = self.root / self.classes if (self.root / self.classes).is_file() else Path(self.classes)
            if not path.is_file():
                raise MissingFileError(f"list of classes {self.classes!r} is in neither {self.root} nor {Path.cwd()}")
            return read_ids(path, str)
        names = [str(name) for name in self.classes]
        check_unique(names, "dataset.classes")
        return names


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
    lines = given if own is None else own
    if lines is None:
        raise MissingFileError(
            f"{places.root} has index masks and no list of classes: write classes.txt, the name of value 1 in its first"
            " line and so on, or set dataset.classes"
        )
    # What annotation tools write before the first class (__ignore__, _background_) takes no value.
    names = list(itertools.dropwhile(_is_no_class, lines))
    named = {name: value for value, name in enumerate(names, start=1) if not _is_no_class(name)}
    chosen = list(named) if own is None or given is None else [name for name in given if not _is_no_class(name)]
    for name in chosen:
        if name not in named:
            known = ", ".join([*named][:5]) + (" …" if len(named) > 5 else "")
            raise DatasetError(
                f"class {name!r} of dataset.classes is none of those that the list in {places.root} names for the "
                f"masks' values ({known}): choose among these, or take that list away to name the values by "
                "dataset.classes"
            )
    if not chosen or len(names) > MAX_LABELS:
        raise DatasetError(
            f"{places.root} has index masks and {len(names):,} classes, expected 1 to {MAX_LABELS}, as such masks are "
            "of 8 bits: give each class masks of its own (layout binary or fss)"
        )
    values = dict.fromkeys(_IGNORED, IGNORE) | {name: value for value, name in enumerate(chosen, start=1)}
    stored = (0, *(values.get(name if name in named else name.lower(), 0) for name in names))
    pictures, folder = places.pictures(), places.mask_folder()
    masks = _single(places.files_in(folder).pictures, folder)
    files = {image_id: [(0, masks[image_id])] for image_id in pictures if image_id in masks}
    lost = [path for name, path in masks.items() if name not in pictures]
    tree = _tree(places, "index", tuple(chosen), pictures, files, lost)
    return tree if stored == tuple(range(len(stored))) else replace(tree, stored=stored)


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
    names = _choose(places, {class_name for _, _, class_name in entries})
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
    names = _choose(places, {name for name, (pairs, _, _) in found.items() if pairs})
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
    if len(jsons) != 1:
        raise DatasetError(
            f"{places.root} and its annotations/ hold {len(jsons)} JSONs with images, annotations and categories, "
            "expected one: set dataset.annotations"
        )
    path, content = next(iter(jsons.items()))
    try:
        return _read_coco(places, path, content)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DatasetError(f"{path} is no COCO-style annotation file ({reason}): export it again") from None


def _read_coco(places: Places, path: Path, content: dict[str, Any]) -> Tree:
    categories = [one | {"id": _integer(one["id"], "category id", path)} for one in content["categories"]]
    refuse_doubled(categories, f"categories of {path}", "name")
    refuse_doubled(content["images"], f"images of {path}", "file_name")
    named = {category["id"]: str(category["name"]) for category in categories}
    check_unique(list(named.values()), f"categories of {path}")
    in_order = [named[category] for category in sorted(named)]
    names = _choose(places, in_order)
    values = {category: names.get(name, 0) for category, name in named.items()}  # 0: not chosen
    folder = _coco_pictures(places, path, [str(image["file_name"]) for image in content["images"]])
    entries: dict[Any, list[tuple[int, Any, bool]]] = {image["id"]: [] for image in content["images"]}
    with_objects = {one["category_id"] for one in content["annotations"] if not one.get("iscrowd")}
    crowds: dict[str, list[Any]] = {}
    bare, problems = [], []
    for annotation in content["annotations"]:
        image, category = annotation["image_id"], annotation["category_id"]
        if image not in entries or category not in values:
            problems.append(f"annotation {annotation.get('id', '?')} of {path}: no such image or category in the file")
        elif values[category]:
            use, segmentation = "class", annotation.get("segmentation")
            if annotation.get("iscrowd"):
                use = places.crowd or ("ignore" if category in with_objects else "class")
                crowds.setdefault(use, []).append(image)
            if segmentation == []:
                bare.append(image)
            if use != "zero":
                entries[image].append((values[category], segmentation, use == "ignore"))
    pictures, regions, ids = {}, {}, {}
    for image in sorted(content["images"], key=lambda image: str(image["file_name"])):
        name = PurePosixPath(str(image["file_name"]))
        if name.is_absolute() or ".." in name.parts or not name.name:
            raise DatasetError(f"{path}: file_name {str(name)!r} leads outside, expected a path below {folder}")
        image_id = name.with_suffix("").as_posix()
        if image_id in pictures:
            raise DatasetError(f"{path} names picture {image_id!r} twice, expected each once: rename or remove one")
        pictures[image_id], ids[image["id"]] = folder / name, image_id
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
        annotations=path,
        problems=tuple(problems),
        unlabelled=_not_named(set(pictures.values())),
        crowds={use: tuple(ids[image] for image in several) for use, several in crowds.items()},
        bare=tuple(ids[image] for image in bare),
    )


def _not_named(named: set[Path]) -> tuple[Path, ...]:
    """Pictures that lie beside those that a JSON names."""
    folders = sorted({path.parent for path in named})
    beside = (path for folder in folders if folder.is_dir() for path in folder.iterdir())
    return tuple(sorted(path for path in beside if is_picture(path) and path not in named and path.name[0] != "."))


def _integer(value: Any, what: str, path: Path) -> int:
    try:
        if not isinstance(value, float) or value.is_integer():
            return int(value)
    except ValueError:
        pass
    raise DatasetError(f"{path}: {what} is {str(value)[:80]!r}, expected an integer: export it again")


def _coco_pictures(places: Places, path: Path, names: list[str]) -> Path:
    """The folder that the JSON's file names start from: that in which the most of some names are."""
    if not names:
        raise DatasetError(f"{path} names no image, expected at least one")
    given = places.folder(places.images, IMAGE_FOLDERS)
    folders = [folder for folder in (given, places.root, path.parent) if folder is not None]
    return max(folders, key=lambda folder: sum((folder / name).is_file() for name in names[:100]))


def _find_jsons(places: Places) -> dict[Path, dict[str, Any]]:
    """The COCO-style JSONs of a folder with their content; of others none."""
    if places.annotations is not None:
        paths = [places.root / places.annotations]
    else:
        paths = sorted([*places.root.glob("[!.]*.json"), *(places.root / "annotations").glob("[!.]*.json")])
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


def _choose(places: Places, found: Sequence[str] | set[str]) -> dict[str, int]:
    """Value of each class: in the order of the list of classes, without one as found (a set: by name)."""
    listed = places.class_list()
    for name in listed or ():
        if name not in found:
            known = ", ".join(sorted(found)[:5])
            raise DatasetError(f"class {name!r} of the list of classes is not in {places.root}, which has {known} …")
    names = tuple(listed or (sorted(found) if isinstance(found, set) else found))
    if not names:
        raise DatasetError(f"{places.root} has no classes, expected at least one: check the masks and dataset.classes")
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
