"""Folders of one's own for fuzz.py: written by a description, mutated as exports and disks are, read and compared.

A description is JSON: a layout, pictures and masks with the way each is saved, links, stray files, the list of classes
and its encoding. What `dataset=folder` makes of the folder is held against an independent reading: each mask, and that
every file is either used or told.
"""

from __future__ import annotations

import copy
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fuzz_reference as reference
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from hdmnet.data.catalog import class_areas
from hdmnet.data.datasets.folder.dataset import FolderDataset
from hdmnet.data.io.masks import voc_palette

SIZE = (18, 26)
CLASSES = ("cat", "dog", "bird", "fisch ü")
_SUFFIXES = {
    **{suffix: "JPEG" for suffix in (".jpg", ".JPG", ".jfif", ".jpe", ".Jpeg")},
    **{".png": "PNG", ".gif": "GIF", ".bmp": "BMP", ".ppm": "PPM", ".tif": "TIFF", ".webp": "WEBP", ".mpo": "MPO"},
    **{
        ".avif": "AVIF",
        ".jp2": "JPEG2000",
        ".heic": "JPEG",
        ".nef": "TIFF",
        ".txt": "PNG",
        "": "PNG",
        ".png.bak": "PNG",
    },
}
_ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252", "utf-8 crlf", "utf-8 blank lines")

Image.init()
_SUFFIXES = {suffix: form for suffix, form in _SUFFIXES.items() if form in Image.SAVE}

Array = NDArray[Any]


def describe(layout: str) -> dict[str, Any]:
    """A whole folder: two pictures of each class in two subfolders."""
    entries = [
        {"name": f"site{number}/{value}{number}", "class": value, "seed": 10 * value + number}
        for value in range(1, len(CLASSES) + 1)
        for number in (1, 2)
    ]
    return {"layout": layout, "entries": entries, "links": [], "stray": [], "encoding": "utf-8"}


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Change some things of a description, each as it is met in practice."""
    spec = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        entry = rng.choice(spec["entries"])
        kind = rng.randrange(8)
        if kind == 0:
            entry["suffix"] = rng.choice(list(_SUFFIXES))
        elif kind in (1, 2):
            entry["save"] = rng.choice([*_SAVE, *_RENUMBER])
        elif kind == 3:
            folder = rng.choice(("images", "masks", "images/site1", "masks/site2", "1", "2", "images/site2"))
            target = rng.choice(("away", "away", "away", ".", "..", "images", "masks", "nowhere", "images/site1"))
            spec["links"].append([folder, target])
        elif kind == 4:
            spec["stray"].append(
                rng.choice(("images/notes.txt", "masks/lost.png", "images/x/new.png", "masks/x.json", "a.jpg"))
            )
        elif kind == 5:
            entry["lost"] = rng.choice(("picture", "mask"))
        elif kind == 6:
            spec["encoding"] = rng.choice(_ENCODINGS)
        else:
            other = rng.choice(spec["entries"])
            spec["entries"].append(copy.deepcopy(other) | {"suffix": rng.choice(list(_SUFFIXES))})  # the name twice
    return json.dumps(spec).encode()


# -------------------------------------------------------------------------------------------------- ways to save a mask


def _palette(values: Array, colours: Sequence[int], **info: Any) -> Image.Image:
    picture = Image.fromarray(values.astype(np.uint8))
    picture.putpalette(colours)
    picture.info.update(info)
    return picture


def _red(one: Array) -> Image.Image:
    return Image.fromarray(np.dstack([one * 220, one * 0, one * 0]).astype(np.uint8))


_ADAPTIVE = Image.Palette.ADAPTIVE
# Of a mask (H, W) of 0 and 1, from a class's own file; a viewer shows one colour, or a cut-out, in each.
_SAVE: dict[str, Callable[[Array, random.Random], Image.Image]] = {
    "0/255": lambda one, rng: Image.fromarray(one * np.uint8(255)),
    "0/1": lambda one, rng: Image.fromarray(one),
    "16 bits": lambda one, rng: Image.fromarray(one.astype(np.uint16) * 65535),
    "1 bit": lambda one, rng: Image.fromarray(one > 0),
    "rgb": lambda one, rng: _red(one),
    "quantized": lambda one, rng: _red(one).quantize(rng.choice((2, 5, 16, 256))),
    "adaptive": lambda one, rng: _red(one).convert("P", palette=_ADAPTIVE, colors=rng.choice((2, 8, 200))),
    "web": lambda one, rng: Image.fromarray(one * np.uint8(255)).convert("RGB").convert("P"),
    "permuted": lambda one, rng: _permuted(_palette(one, [0, 0, 0, 10, 200, 30]), rng),
    "permuted grey": lambda one, rng: _permuted(_palette(one, [0, 0, 0, 255, 255, 255]), rng),
    "transparent": lambda one, rng: _permuted(_palette(one, [9, 9, 9, 200, 30, 3], transparency=0), rng),
    "faint": lambda one, rng: _permuted(
        _palette(one, [0, 0, 0, 220, 0, 0], transparency=bytes((rng.choice((0, 255)), 90))), rng
    ),
    "faint rgb": lambda one, rng: _with_alpha(_red(one), np.where(one > 0, 90, rng.choice((0, 255)))),
    "turned": lambda one, rng: _with_alpha(Image.fromarray(one * np.uint8(255)), np.where(_edge(one), 0, 255)),
    "turned palette": lambda one, rng: _permuted(
        _palette(np.where(_edge(one), 2, one), [0, 0, 0, 255, 255, 255, 0, 0, 0], transparency=2), rng
    ),
    "keyed": lambda one, rng: _keyed(Image.fromarray(one * np.uint8(255)), 0),
    "keyed 1 bit": lambda one, rng: _keyed(Image.fromarray(one > 0), 0),
    "two bright": lambda one, rng: Image.fromarray(np.where(one > 0, 255, rng.randrange(130, 220)).astype(np.uint8)),
    "soft": lambda one, rng: _permuted(_soft(one).convert("P", palette=_ADAPTIVE, colors=12), rng),
    "soft web": lambda one, rng: _soft(one).convert("P"),
    "cut-out": lambda one, rng: Image.fromarray(
        np.dstack([one * 0 + 90, one * 3, one * 50, one * 255]).astype(np.uint8)
    ),
}
# Of an index mask in VOC's colours: what programs do to its palette, which shows the same in a viewer.
_RENUMBER: dict[str, Callable[[Image.Image, random.Random], Image.Image]] = {
    "as it is": lambda mask, rng: mask,
    "grey": lambda mask, rng: Image.fromarray(np.asarray(mask)),
    "shortened": lambda mask, rng: _palette(np.asarray(mask), voc_palette()[: 3 * (int(np.asarray(mask).max()) + 1)]),
    "renumbered": lambda mask, rng: _permuted(mask, rng),
    "sorted": lambda mask, rng: _sorted(mask),
    "sorted greys": lambda mask, rng: _sorted(
        _palette(np.asarray(mask), [part for v in range(256) for part in (v,) * 3])
    ),
}


def _with_alpha(mask: Image.Image, alpha: Array) -> Image.Image:
    mask = mask.convert("LA" if mask.mode == "L" else "RGBA")
    mask.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    return mask


def _keyed(mask: Image.Image, transparent: int) -> Image.Image:
    mask.info["transparency"] = transparent
    return mask


def _edge(one: Array) -> Array:
    """The first two columns, (H, W) bool, where no object is."""
    return np.broadcast_to(np.arange(one.shape[1]) < 2, one.shape)


def _soft(one: Array) -> Image.Image:
    return _red(one).filter(ImageFilter.GaussianBlur(1))


def _permuted(mask: Image.Image, rng: random.Random) -> Image.Image:
    """The same with the entries of the palette in another order."""
    colours = np.zeros((256, 3), dtype=np.uint8)
    own = np.array(mask.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    order = np.array(
        rng.sample(range(256), 256)
        if rng.random() < 0.5
        else [*rng.sample(range(len(own)), len(own)), *range(len(own), 256)]
    )
    colours[order[: len(own)]] = own
    given = mask.info.get("transparency")
    info: dict[str, Any] = {"transparency": int(order[given])} if isinstance(given, int) else {}
    if isinstance(given, bytes):  # of the first entries; others are opaque
        alpha = np.full(256, 255, dtype=np.uint8)
        alpha[order[: len(given)]] = list(given)
        info = {"transparency": alpha.tobytes()}
    return _palette(order[np.asarray(mask)], colours.ravel().tolist(), **info)


def _sorted(mask: Image.Image) -> Image.Image:
    """The same with the colours in use only, the most frequent one first, as optimisers write it."""
    values = np.asarray(mask)
    counts = np.bincount(values.ravel(), minlength=256)
    used = np.argsort(-counts, kind="stable")[: int((counts > 0).sum())]
    table = np.zeros(256, dtype=np.uint8)
    table[used] = np.arange(len(used))
    return _palette(table[values], np.array(mask.getpalette("RGB")).reshape(-1, 3)[used].ravel().tolist())


# ---------------------------------------------------------------------------------------------------------- the folder


def _write(spec: dict[str, Any], root: Path, away: Path, rng: random.Random) -> dict[int, tuple[str, Array]]:
    """Write the folder; gives of each mask, by its file's inode, how it is saved and what it shows, (H, W) 0/1."""
    layout, shown = spec["layout"], {}
    for number, entry in enumerate(spec["entries"]):
        noise = np.random.default_rng(entry["seed"])
        suffix, name = entry.get("suffix", ".png" if layout != "fss" else ".jpg"), Path(entry["name"])
        if layout == "fss":
            picture, mask = (
                root / str(entry["class"]) / f"{name.name}{suffix}",
                root / str(entry["class"]) / f"{name.name}.png",
            )
        else:
            picture = root / "images" / f"{name}{suffix}"
            mask = root / "masks" / (str(entry["class"]) if layout == "binary" else "") / f"{name}.png"
        colours = Image.fromarray(noise.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
        one = np.zeros(SIZE, dtype=np.uint8)
        one[3 : 9 + number % 5, 4 : 15 + number % 3] = 1
        if entry.get("lost") != "picture":
            picture.parent.mkdir(parents=True, exist_ok=True)
            colours.save(picture, format=_SUFFIXES[suffix])
        if entry.get("lost") != "mask" and (mask != picture or layout != "fss"):
            mask.parent.mkdir(parents=True, exist_ok=True)
            _mask(spec, entry, one, rng).save(mask, format="PNG")
            shown[mask] = entry.get("save", ""), one
    for name in spec["stray"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", SIZE[::-1]).save(root / name, format="PNG")
    inodes = {path.stat().st_ino: about for path, about in shown.items() if path.is_file()}
    for name, target in spec["links"]:
        _link(root, away, name, target)
    if layout == "index":
        encoding, _, how = spec["encoding"].partition(" ")
        text = ("\r\n" if how == "crlf" else "\n\n" if how else "\n").join(("_background_", *CLASSES))
        (root / "classes.txt").write_bytes(text.encode(encoding))
    return inodes


def _mask(spec: dict[str, Any], entry: dict[str, Any], one: Array, rng: random.Random) -> Image.Image:
    if spec["layout"] == "index":
        mask = _palette(one * entry["class"], voc_palette())
        return (
            _RENUMBER[entry.get("save", "as it is")](mask, rng) if entry.get("save", "as it is") in _RENUMBER else mask
        )
    way = entry.get("save", "0/255")
    return _SAVE[way if way in _SAVE else "0/255"](one, rng)


def _link(root: Path, away: Path, name: str, target: str) -> None:
    """Put a link in a folder's place and the folder elsewhere, or a link beside it that leads back, or nowhere."""
    folder = root / name
    if target == "away" and folder.is_dir() and not folder.is_symlink():
        shutil.move(folder, away / f"{len(list(away.iterdir()))}")
        folder.symlink_to(away / f"{len(list(away.iterdir())) - 1}")
    elif folder.is_dir():
        link = folder / f"link{len(list(folder.iterdir()))}"
        link.symlink_to(root / target)


def _clear(folder: Path) -> None:
    """Remove a folder; by hand, as the fuzzer takes `shutil.rmtree` for harm."""
    for parent, folders, files in os.walk(folder, topdown=False):
        for name in (*files, *folders):
            path = Path(parent, name)
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def read(path: Path) -> None:
    """Write the folder that a description tells, read it, and compare."""
    spec = json.loads(path.read_bytes())
    base = path.parent / "folder"
    _clear(base)
    for name in ("root", "away"):
        (base / name).mkdir(parents=True)
    rng = random.Random(path.read_bytes())
    shown = _write(spec, base / "root", base / "away", rng)
    dataset = FolderDataset(base / "root")
    dataset.check()
    for image_id in dataset.ids("val"):
        class_areas(dataset, image_id)
    _compare_masks(dataset, shown)
    _compare_pictures(dataset)
    if dataset.tree.layout == "index":
        if dataset.class_names != CLASSES:
            raise reference.WrongError(f"classes {dataset.class_names}, expected {CLASSES}")
        _compare_colours(dataset)
    _account_for_files(dataset)


def _compare_masks(dataset: FolderDataset, shown: dict[int, tuple[str, Array]]) -> None:
    """By another reading of the file, and by what was drawn: of a soft edge most is the same."""
    for image_id, files in dataset.tree.masks.items():
        for value, file in files:
            way, drawn = shown.get(file.stat().st_ino, ("lost", np.zeros(SIZE, dtype=np.uint8)))
            if dataset.tree.layout == "index":
                reference.same(dataset.read_mask(image_id), reference.index_mask(file), str(file))
                continue
            mask = dataset.read_class_mask(image_id, value)
            reference.same(mask, reference.object_mask(file), str(file))
            if way != "lost" and (mask != drawn).sum() > (0.3 * drawn.sum() if way.startswith("soft") else 0):
                raise reference.WrongError(f"{file} ({way}) is not read as it was drawn")


def _compare_pictures(dataset: FolderDataset) -> None:
    for image_id, file in dataset.tree.pictures.items():
        reference.same(dataset.read_image(image_id), reference.picture(file, upright=True), str(file))


def _compare_colours(dataset: FolderDataset) -> None:
    """What shows in one colour is one class, all over the data set; a grey file shows each value as that grey."""
    values: dict[tuple[int, ...], set[int]] = {}
    for image_id in dataset.ids("val"):
        file = dataset.tree.masks[image_id][0][1]
        with Image.open(file) as opened:
            shown = np.asarray(opened.convert("RGB"))
        mask = dataset.read_mask(image_id)
        for value in np.unique(mask).tolist():
            colour = tuple(shown[mask == value][0].tolist())
            values.setdefault(colour, set()).add(value)
    wrong = {colour: several for colour, several in values.items() if len(several) > 1}
    if wrong:
        raise reference.WrongError(f"one colour is read as several classes: {wrong}")


def _account_for_files(dataset: FolderDataset) -> None:
    """Every file below the folders of pictures and masks is used or told."""
    root, tree = dataset.root, dataset.tree
    known = {*tree.pictures.values(), *(path for files in tree.masks.values() for _, path in files)}
    names = [name for one in dataset.left_out() for name in one.names]
    told = {re.sub("^(mask|link) | has no picture$| leads nowhere$", "", name) for name in names}
    real = {str(path.resolve()) for path in (*known, *map(Path, told))}
    for folder in [root] if tree.layout == "fss" else [root / "images", root / "masks"]:
        for name, path in reference.files_below(folder).items():
            if name not in real and not (path.parent == root and path.suffix == ".txt"):  # lists
                raise reference.WrongError(f"{path} is neither used nor told of: {sorted(told)[:5]}")
