"""More cases for scripts/robustness/bad_inputs.py: damaged trees of PASCAL VOC, and archives."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bad_input_bench import FILES as FILE_WORDS
from bad_input_bench import Bench, cut, first, repaint
from bad_input_cases import FILES, Case, Prepare
from PIL import Image

from hdmnet.data.io.masks import read_mask, voc_palette

Damage = Callable[[Path], object]
DATA_CASES: list[Case] = []


def _add(given: str, names: str, damage: Damage, *words: str) -> None:
    """A case of training on a damaged tree; of several equal words the last counts."""

    def prepare(bench: Bench, place: Path) -> list[str]:
        usual = bench.voc(place, damage)
        return [*usual, *(word.replace("{place}", str(place)) for word in words)]

    DATA_CASES.append(Case(given, "train", FILES, names, prepare))


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def _list(root: Path, split: str) -> Path:
    return root / "ImageSets" / "Segmentation" / f"{split}.txt"


def _append(path: Path, text: bytes) -> None:
    path.write_bytes(path.read_bytes() + text)


def _all_ignored(root: Path) -> None:
    for path in (root / "SegmentationClassAug").glob("*.png"):
        repaint(path, 255)


def _few_of_each_class(root: Path) -> None:
    """Of each class that is novel in fold 0 one validation image is left."""
    for number, name in enumerate(_list(root, "val").read_text().split(), start=1):
        path = first(root, "mask").with_name(f"{name}.png")
        mask = np.array(read_mask(path))
        mask[(mask >= 1) & (mask <= 5)] = 0
        mask[:40, :40] = number if number <= 5 else mask[:40, :40]
        Image.fromarray(mask).save(path)


def _save(mode: str, form: str = "PNG") -> Damage:
    """Save a picture in another mode or format under its name."""

    def change(path: Path) -> None:
        Image.fromarray(read_mask(path)).convert(mode).save(path, format=form)

    return change


def _renumber(path: Path) -> None:
    """What an optimiser of PNGs does: only the colours in use, sorted; a viewer shows the same."""
    values = read_mask(path)
    used = np.unique(values)[::-1]
    table = np.zeros(256, dtype=np.uint8)
    table[used] = np.arange(len(used))
    picture = Image.fromarray(table[values])
    picture.putpalette(np.reshape(voc_palette(), (-1, 3))[used].ravel().tolist())
    picture.save(path)


def _on(what: str, do: Damage, split: str = "train") -> Damage:
    """Damage the first picture or mask of a list."""
    return lambda root: do(first(root, what, split))


def _to_list(text: Callable[[Path], bytes]) -> Damage:
    """Add to the training list."""
    return lambda root: _append(_list(root, "train"), text(root))


def _without(pattern: str) -> Damage:
    """Remove folders of the tree."""

    def remove(root: Path) -> None:
        for folder in root.glob(pattern):
            shutil.rmtree(folder)

    return remove


def _cut_all(root: Path) -> None:
    for path in (root / "JPEGImages").glob("*.jpg"):
        cut(path)


def _make_empty(path: Path) -> None:
    path.write_bytes(b"")


def _make_text(path: Path) -> None:
    path.write_text("no picture\n")


def _make_deep(path: Path) -> None:
    Image.fromarray(read_mask(path).astype(np.uint16)).save(path)


def _make_circle(path: Path) -> None:
    _replace(path, lambda new: new.symlink_to(new.name))


for _what, _half in (("picture", "a truncated JPEG"), ("mask", "a truncated PNG")):
    for _given, _damage in (
        (_half, cut),
        (f"a {_what} of zero bytes", _make_empty),
        (f"a text as {_what}", _make_text),
        (f"a {_what} that is a circle of links", _make_circle),
        (f"a {_what} that is a folder", lambda path: _replace(path, Path.mkdir)),
        (f"a {_what} that is a pipe, which nobody writes to", lambda path: _replace(path, os.mkfifo)),
    ):
        _add(_given, f"{_what} {{place}}/pascal", _on(_what, _damage))

for _split in ("train", "val"):
    _small = _on("mask", lambda path: repaint(path, 1, (30, 20)), _split)
    _add(f"a {_split} mask of another size than its picture", "is 30x20 (HxW) but its picture is ", _small)
_index = _on("mask", lambda path: repaint(path, 21))
_add("a class index above the range", "holds class index 21, expected 0..20 or 255", _index)
_add("a mask in colours", "is a picture of mode RGB, expected class indices", _on("mask", _save("RGB")))
_add("a mask whose palette a program has renumbered", "has changed a palette", _on("mask", _renumber))
_add("a mask of 16 bits", "is a picture of mode I", _on("mask", _make_deep))
_jpeg = _on("mask", _save("L", "JPEG"))
_add("a mask that is a JPEG", "is a JPEG, whose compression changes indices", _jpeg)
_add("masks that are all 255", "no image of pascal fold 0 train holds any of the classes", _all_ignored)
_few = "none of the 5 classes of pascal fold 0 val has the 2 images that shot=1 needs"
_add("one image only of every class that is tested", _few, _few_of_each_class)
_unknown = "1 of 41 ids have no picture in JPEGImages, first '2030_123456'"
_add("an id in a list without a picture", _unknown, _to_list(lambda root: b"2030_123456\n"))
_twice = _to_list(lambda root: f"{first(root, 'mask').stem}\n".encode())
_add("the same id twice in a list", "more than once, expected each once", _twice)
_shared = _to_list(lambda root: f"{first(root, 'mask', 'val').stem}\n".encode())
_add("an id in both lists", "in the train list and in the val list", _shared)
_add("an empty list", "train.txt is empty", lambda root: _list(root, "train").write_text("\n"))
_add("a list that is no text", "is no UTF-8 text", _to_list(lambda root: b"\xff\xfe\n"))
_nowhere = "dataset.train_list=nowhere.txt"
_add("a list that is not there", "'nowhere.txt' is neither a known name", lambda root: None, _nowhere)
_add("a tree without JPEGImages", "JPEGImages is missing", _without("JPEGImages"))
_add("a tree without masks", "has neither SegmentationClassAug nor SegmentationClass", _without("SegmentationClass*"))
_skip = "dataset.on_error=skip"
_add(f"over half of the pictures unreadable, with `{_skip}`", "too many to skip", _cut_all, _skip)


def _missing(dataset: str) -> Prepare:
    return lambda bench, place: [f"dataset={dataset}", *FILE_WORDS, f"paths.data_dir={place}/nowhere"]


for _dataset in ("pascal", "coco"):
    _names = f"{_dataset.upper()} folder {{place}}/nowhere/{_dataset} is missing"
    DATA_CASES.append(Case(f"no {_dataset} data", "train", FILES, _names, _missing(_dataset)))


# ------------------------------------------------------------------------------------------------------------- archives


def _tar(path: Path, name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.size = kind, link, 1 if kind == tarfile.REGTYPE else 0
        archive.addfile(member, io.BytesIO(b"x") if member.size else None)


def _zip(path: Path, name: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, "x")


def _pascal(write: Callable[[Path], object]) -> Prepare:
    def prepare(bench: Bench, place: Path) -> list[str]:
        write(place / "voc.tar")
        return ["--root", f"{place}/tree", "--voc-tar", f"{place}/voc.tar", "--workers", "1"]

    return prepare


def _coco(write: Callable[[Path], object]) -> Prepare:
    def prepare(bench: Bench, place: Path) -> list[str]:
        write(place / "val2014.zip")
        return ["--root", f"{place}/tree", "--zips", f"{place}/val2014.zip", "--workers", "1"]

    return prepare


def _half_tar(path: Path) -> None:
    _tar(path, _VOC)
    path.write_bytes(path.read_bytes()[:700])


_VOC = "VOCdevkit/VOC2012/JPEGImages/2007_000032.jpg"
for _given, _command, _names, _prepare in (
    (
        "a tar whose member leads outside",
        "prepare_pascal",
        "voc.tar is refused",
        _pascal(lambda path: _tar(path, f"../../{_VOC}")),
    ),
    (
        "a tar whose member links outside",
        "prepare_pascal",
        "voc.tar is refused",
        _pascal(lambda path: _tar(path, _VOC, tarfile.SYMTYPE, "/etc/passwd")),
    ),
    (
        "a tar with a device",
        "prepare_pascal",
        "voc.tar is refused",
        _pascal(lambda path: _tar(path, _VOC, tarfile.CHRTYPE)),
    ),
    (
        "half a tar",
        "prepare_pascal",
        "voc.tar is damaged or cut short",
        _pascal(_half_tar),
    ),
    (
        "a tar of something else",
        "prepare_pascal",
        "holds none of the files expected",
        _pascal(lambda path: _tar(path, "a.txt")),
    ),
    ("a tar that is not there", "prepare_pascal", "voc.tar is missing", _pascal(lambda path: None)),
    (
        "a zip whose member leads outside",
        "prepare_coco",
        "leads outside",
        _coco(lambda path: _zip(path, "../val2014/a.jpg")),
    ),
    ("a zip with an absolute name", "prepare_coco", "leads outside", _coco(lambda path: _zip(path, "/val2014/a.jpg"))),
    ("a text as zip", "prepare_coco", "val2014.zip", _coco(lambda path: path.write_text("no zip"))),
):
    DATA_CASES.append(Case(_given, _command, FILES, _names, _prepare))
