"""More cases for scripts/robustness/bad_inputs.py: a user's own pictures, and own data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bad_input_bench import Bench, repaint, write_coco_folder
from bad_input_cases import FILES, Case, Prepare, write_text
from PIL import Image

OWN_CASES: list[Case] = []


# ------------------------------------------------------------------------------------------------------ one's own files


def _predict(*words: str, picture: Callable[[Path], object] | None = None) -> Prepare:
    """Words of predict on a whole picture and mask; `{place}` in them is the case's folder."""

    def prepare(bench: Bench, place: Path) -> list[str]:
        Image.new("RGB", (32, 24)).save(place / "a.png")
        mask = np.zeros((24, 32), dtype=np.uint8)
        mask[4:12, 4:20] = 1
        Image.fromarray(mask).save(place / "m.png")
        if picture is not None:
            picture(place)
        given = {
            "support": "support=[{place}/a.png:{place}/m.png]",
            "query": "query=[{place}/a.png]",
            "device": "device=cpu",
        }
        given |= {word.partition("=")[0]: word for word in words}
        return [f"ckpt={bench.run_files['run']}", *(word.replace("{place}", str(place)) for word in given.values())]

    return prepare


def _save_palette(path: Path, colours: list[int]) -> None:
    """A mask of the values 0, 1 and 2 in a palette."""
    picture = Image.fromarray(np.repeat(np.arange(3, dtype=np.uint8), 8 * 32).reshape(24, 32))
    picture.putpalette(colours)
    picture.save(path)


def _two_pages(path: Path) -> None:
    pages = [Image.new("L", (32, 24), 255 * number) for number in (0, 1)]
    pages[0].save(path, format="TIFF", save_all=True, append_images=pages[1:])


def _speck(place: Path) -> None:
    Image.new("RGB", (900, 700)).save(place / "a.png")
    mask = Image.new("L", (900, 700))
    mask.putpixel((331, 333), 255)
    mask.save(place / "m.png")


for _given, _code, _names, _prepare in (
    ("neither checkpoint nor support", 1, "support is not given", lambda bench, place: ["query=[a.png]"]),
    ("a support without a mask", 1, "expected IMG:MASK", _predict("support=[{place}/a.png]")),
    ("a box of three numbers", 1, "expected four numbers for a box", _predict("support=['{place}/a.png:1,2,3']")),
    (
        "a box outside of the picture",
        1,
        "holds no pixel of a picture of 24x32",
        _predict("support=['{place}/a.png:90,90,99,99']"),
    ),
    ("a support that is not there", 1, "{place}/b.png", _predict("support=[{place}/b.png:{place}/m.png]")),
    ("a support's mask without any object", 1, "m.png", _predict(picture=lambda p: repaint(p / "m.png", 0))),
    (
        "a support's mask of another shape",
        1,
        "is 30x30 (HxW) but its picture 24x32",
        _predict(picture=lambda p: repaint(p / "m.png", 1, (30, 30))),
    ),
    (
        "an empty folder as query",
        1,
        "holds no picture",
        _predict("query=[{place}/q]", picture=lambda p: (p / "q").mkdir()),
    ),
    ("no query", 1, "query is not given", _predict("query=null")),
    (
        "a support's mask whose palette shows several colours",
        1,
        "m.png holds several colours",
        _predict(picture=lambda p: _save_palette(p / "m.png", [0, 0, 0, 200, 0, 0, 0, 200, 0])),
    ),
    (
        "a support's mask whose palette shows one colour only",
        1,
        "a palette that shows them in one colour",
        _predict(picture=lambda p: _save_palette(p / "m.png", [0] * 9)),
    ),
    (
        "a support's mask of two pages",
        1,
        "m.png cannot be read (it holds 2 pictures, expected one)",
        _predict(picture=lambda p: _two_pages(p / "m.png")),
    ),
    (
        "a support's object that vanishes at the network's size",
        1,
        "vanish at the network's 65x65",
        _predict(picture=lambda p: _speck(p)),
    ),
    (
        "a HEIC picture as support",
        1,
        "q.heic cannot be read",
        _predict(
            "support=[{place}/q.heic:{place}/m.png]",
            picture=lambda p: (p / "q.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99)),
        ),
    ),
    ("a text as support", 1, "a.png cannot be read", _predict(picture=lambda p: write_text(p / "a.png", "text"))),
    ("a device that is not there", 1, "cuda:77", _predict("device=cuda:77")),
    ("an image size of 0", 1, "image_size=0", _predict("image_size=0")),
):
    OWN_CASES.append(Case(_given, "predict", _code, _names, _prepare))


# ---------------------------------------------------------------------------------------------------------- one's tree


def _folder(*words: str, change: Callable[[dict[str, Any]], object] | None = None, file: str | None = None) -> Prepare:
    """Words of train on a COCO-style folder; `file` is the text of a file extra.txt beside it."""

    def prepare(bench: Bench, place: Path) -> list[str]:
        root = write_coco_folder(place / "own", change)
        write_text(place / "extra.txt", file or "")
        return [
            "dataset=folder",
            f"dataset.root={root}",
            "dataset.num_folds=3",
            "trainer=cpu",
            "backbone.weights=null",
            *(word.replace("{place}", str(place)) for word in words),
        ]

    return prepare


def _segmentation(value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["annotations"][0].update(segmentation=value)


for _given, _names, _prepare in (
    ("no root", "dataset.root is not given", lambda bench, place: ["dataset=folder", "trainer=cpu"]),
    ("a root that is not there", "nowhere", lambda b, place: ["dataset=folder", f"dataset.root={place}/nowhere"]),
    ("an empty root", "{place}", lambda bench, place: ["dataset=folder", f"dataset.root={place}"]),
    (
        "a class list with an unknown class",
        "class 'cat' of the list of classes is not in",
        _folder("dataset.classes={place}/extra.txt", file="cat\n"),
    ),
    (
        "folds with an unknown class",
        "'cat' is no class",
        _folder("dataset.folds={place}/extra.txt", "dataset.num_folds=null", file="cat\n"),
    ),
    (
        "a list of one's own data that is no text",
        "no UTF-8 text",
        lambda bench, place: (
            _folder(f"dataset.val_list={place}/bytes")(bench, place)
            if (place / "bytes").write_bytes(b"\xff\xfe\xfa")
            else []
        ),
    ),
    (
        "an unknown id in a list of one's own data",
        "no picture with a mask",
        _folder("dataset.val_list={place}/extra.txt", file="p1\np99\n"),
    ),
    (
        "the same id twice in a list of one's own data",
        "'p1' more than once",
        _folder("dataset.val_list={place}/extra.txt", file="p1\np1\n"),
    ),
    (
        "an annotation with a category that is not there",
        "category",
        _folder(change=lambda c: c["annotations"][0].update(category_id=9)),
    ),
    (
        "two images of one id",
        "'p1.jpg' and 'p2.jpg' have the same id 1, expected one each",
        _folder(change=lambda c: c["images"][1].update(id=1)),
    ),
    (
        "two categories of one id",
        "'class 1' and 'class 2' have the same id 1, expected one each",
        _folder(change=lambda c: c["categories"][1].update(id=1)),
    ),
    ("an unknown rule for crowds", "dataset.crowd=maybe: expected ignore, zero, class", _folder("dataset.crowd=maybe")),
    (
        "a run-length code of another size",
        "its run lengths add up to 5",
        _folder(change=_segmentation({"size": [24, 32], "counts": [5]})),
    ),
    (
        "a polygon with a coordinate of 1e30",
        "a coordinate that is no number of pixels",
        _folder(change=_segmentation([[1e30] * 6])),
    ),
    (
        "a compressed code of nonsense",
        "run-length code",
        _folder(change=_segmentation({"size": [24, 32], "counts": "ééé"})),
    ),
    (
        "a file name that leads outside",
        "'../a.jpg' leads outside",
        _folder(change=lambda c: c["images"][0].update(file_name="../a.jpg")),
    ),
    ("a height that is a word", "height of", _folder(change=lambda c: c["images"][0].update(height="tall"))),
):
    OWN_CASES.append(Case(_given, "train", FILES, _names, _prepare))
