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
from dataclasses import replace
from pathlib import Path
from typing import get_args

from hdmnet.data.datasets.folder.coco_json import find_jsons, scan_coco
from hdmnet.data.datasets.folder.tree import (
    IGNORED,
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    LayoutName,
    Places,
    Tree,
    choose_classes,
    is_no_class,
    single_files,
)
from hdmnet.data.io.arrays import IGNORE, MAX_LABELS
from hdmnet.data.io.colour_masks import ColourMasks
from hdmnet.runtime.errors import DatasetError, MissingFileError

_SHAPES = (
    "index (images/NAME.jpg, masks/NAME.png), binary (masks/CLASS/NAME.png), coco (a JSON with images, annotations and "
    "categories), fss (CLASS/NAME.jpg with CLASS/NAME.png)"
)


def scan(places: Places, layout: LayoutName | None = None) -> Tree:
    """Find out what lies in a folder, of a given or recognised layout; no picture and no mask is opened.

    Raises:
        FileNotFoundError: Something that the layout needs is missing.
        ValueError: The layout cannot be told, or the content does not fit it; one line.
    """
    if not places.root.is_dir():
        raise MissingFileError(
            f"folder {places.root} is missing: set dataset.root to the folder of your pictures (deepglobe, isic and "
            "chest_xray: scripts/data/prepare_cross_domain.py makes it)"
        )
    if layout is not None and layout not in get_args(LayoutName):
        raise DatasetError(f"dataset.layout={layout!r}: expected one of {', '.join(get_args(LayoutName))}, or null")
    jsons = find_jsons(places) if layout in (None, "coco") else {}
    if layout is None:
        layout = _recognise(places, bool(jsons))
    if layout == "coco":
        return scan_coco(places, jsons)
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
        names = tuple(choose_classes(places.class_list(), listed.class_names, str(listed.path)))
        values = None if own is None else ("background", *itertools.dropwhile(is_no_class, own))
        return replace(_pair_index(places, names), colours=ColourMasks(listed, names, places=values))
    lines = given if own is None else own
    if lines is None:
        raise MissingFileError(
            f"{places.root} has index masks and no list of classes: write classes.txt, the name of value 1 in its first"
            " line and so on, or set dataset.classes; for masks in colours write labelmap.txt, NAME:R,G,B in each line,"
            " or set dataset.colours"
        )
    # What annotation tools write before the first class (__ignore__, _background_) takes no value.
    lines = list(itertools.dropwhile(is_no_class, lines))
    named = {name: value for value, name in enumerate(lines, start=1) if not is_no_class(name)}
    chosen = list(named) if own is None or given is None else [name for name in given if not is_no_class(name)]
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
    by_name = dict.fromkeys(IGNORED, IGNORE) | {name: value for value, name in enumerate(chosen, start=1)}
    stored = (0, *(by_name.get(name if name in named else name.lower(), 0) for name in lines))
    tree = _pair_index(places, tuple(chosen))
    return tree if stored == tuple(range(len(stored))) else replace(tree, stored=stored)


def _pair_index(places: Places, names: tuple[str, ...]) -> Tree:
    pictures, folder = places.pictures(), places.mask_folder()
    masks = single_files(places.files_in(folder).pictures, folder)
    files = {image_id: [(0, masks[image_id])] for image_id in pictures if image_id in masks}
    lost = [path for name, path in masks.items() if name not in pictures]
    return _tree(places, "index", names, pictures, files, lost)


def _scan_binary(places: Places) -> Tree:
    pictures, folder = places.pictures(), places.mask_folder()
    masks = single_files(places.files_in(folder).pictures, folder)
    # Either every mask lies in its class's folder or every one in its picture's.
    by_style = [[(name, *_owners(name)[style]) for name in masks if _owners(name)] for style in (0, 1)]
    fitting = [[entry for entry in entries if entry[1] in pictures] for entries in by_style]
    if all(fitting):
        raise DatasetError(
            f"{folder} fits masks/CLASS/NAME and masks/NAME/CLASS, e.g. {fitting[0][0][0]!r} and {fitting[1][0][0]!r}: "
            "no class may be called as a picture is, rename one of them"
        )
    entries = fitting[0] or fitting[1]
    names = choose_classes(places.class_list(), {class_name for _, _, class_name in entries}, str(places.root))
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
    names = choose_classes(
        places.class_list(), {name for name, (pairs, _, _) in found.items() if pairs}, str(places.root)
    )
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
