"""COCO-style JSONs in a user's folder: one, or one for training and one for validation."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from hdmnet.data.datasets.base import Split
from hdmnet.data.datasets.files import check_unique
from hdmnet.data.datasets.folder.tree import IMAGE_FOLDERS, Places, Regions, Tree, choose_classes
from hdmnet.data.io.annotations import is_crowd, marks_nothing, plain_id, refuse_doubled
from hdmnet.runtime.errors import DatasetError, MissingFileError

SPLIT_FOLDERS = ("train", "valid", "val", "test")
_LARGEST_SIDE = 65535  # px: what JPEG can hold


def find_jsons(places: Places) -> dict[Path, dict[str, Any]]:
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


def scan_coco(places: Places, jsons: dict[Path, dict[str, Any]]) -> Tree:
    """What COCO-style JSONs, from `find_jsons`, say of the pictures in a folder.

    Raises:
        ValueError: There is not one, nor a pair, or something in it does not fit; one line.
    """
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
    names = choose_classes(
        places.class_list(), list(dict.fromkeys(train.class_names + val.class_names)), str(places.root)
    )
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


@dataclass
class _Annotations:
    """Those of a JSON, sorted out.

    Attributes:
        entries: Class value, segmentation and whether it is ignored, of those that mark something, by image.
        crowds: Images by what became of their annotations with `iscrowd: 1`, one for each.
        bare: Images with annotations that mark nothing, one for each.
        problems: A line for each without an image or a category.
    """

    entries: dict[Any, list[tuple[int, Any, bool]]]
    crowds: dict[str, list[Any]] = field(default_factory=dict)
    bare: list[Any] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def sort_out(
        self, annotations: Sequence[Mapping[str, Any]], values: Mapping[Any, int], crowd: str | None, path: Path
    ) -> None:
        """Put each where it belongs; `values` are those of the categories, 0 of one that does not count."""
        of = f" of {path}"
        marking = (one for one in annotations if not marks_nothing(one.get("segmentation")))
        with_objects = {one["category_id"] for one in marking if not is_crowd(one, of)}
        for one in annotations:
            image, category, segmentation = one["image_id"], one["category_id"], one.get("segmentation")
            if image not in self.entries or category not in values:
                number = one.get("id", "?")
                self.problems.append(f"annotation {number}{of}: no such image or category in the file")
            elif values[category] and marks_nothing(segmentation):
                self.bare.append(image)
            elif values[category]:
                use = "class"
                if is_crowd(one, of):
                    use = crowd or ("ignore" if category in with_objects else "class")
                    self.crowds.setdefault(use, []).append(image)
                if use != "zero":
                    self.entries[image].append((values[category], segmentation, use == "ignore"))


def _read_coco(places: Places, path: Path, content: dict[str, Any]) -> Tree:
    categories = [one | {"id": _integer(one["id"], "category id", path)} for one in content["categories"]]
    refuse_doubled(categories, f"categories of {path}", "name")
    refuse_doubled(content["images"], f"images of {path}", "file_name")
    images = [one | {"id": plain_id(one["id"])} for one in content["images"]]
    annotations = [
        one | {"image_id": plain_id(one["image_id"]), "category_id": plain_id(one["category_id"])}
        for one in content["annotations"]
    ]
    if places.boxes:
        annotations = [_with_region(one) for one in annotations]
    named = {category["id"]: str(category["name"]) for category in categories}
    # Roboflow's category 0 is the project itself: no annotation has it, and a class may bear its name.
    used = named.keys() & {annotation["category_id"] for annotation in annotations} or named.keys()
    check_unique([named[category] for category in used], f"categories of {path}")
    listed = places.class_list()
    in_order = dict.fromkeys(named[category] for category in sorted(named) if listed or category in used)
    names = choose_classes(listed, list(in_order), str(path))
    values = {category: names.get(name, 0) for category, name in named.items()}  # 0: not chosen
    folder, num_parts = _coco_pictures(places, path, images)
    found = _Annotations({image["id"]: [] for image in images})
    found.sort_out(annotations, values, places.crowd, path)
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
        regions[image_id] = Regions((height, width), found.entries[image["id"]])
    order = sorted(pictures)  # as in the other layouts: by id, not by file name
    return Tree(
        layout="coco",
        class_names=tuple(names),
        pictures={image_id: pictures[image_id] for image_id in order},
        regions=regions,
        annotations=dict.fromkeys(order, path),
        origin=folder,
        unused=() if listed else tuple((category, named[category]) for category in sorted(named.keys() - used)),
        problems=tuple(found.problems),
        crowds={use: tuple(ids[image] for image in several) for use, several in found.crowds.items()},
        bare=tuple(ids[image] for image in found.bare),
    )


def _with_region(annotation: dict[str, Any]) -> dict[str, Any]:
    """An annotation whose region is its box, where it has no other."""
    box = annotation.get("bbox")
    if not marks_nothing(annotation.get("segmentation")) or not isinstance(box, list) or len(box) != 4:
        return annotation
    x0, y0 = box[:2]
    x1, y1 = x0 + box[2], y0 + box[3]
    return annotation | {"segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]]}


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
