"""The embedded shapes as folders of each layout that `dataset=folder` takes; used by `write_shapes.py`.

The same pictures under the same ids, and the same masks: what is read from the folders is equal in every layout. Of the
ways to save a mask that a layout allows, each is used by turns.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from hdmnet.data.datasets.base import Split
from hdmnet.data.datasets.shapes.dataset import ShapesDataset
from hdmnet.data.io.arrays import IGNORE
from hdmnet.data.io.masks import write_mask

UInt8Array = NDArray[np.uint8]


@dataclass(frozen=True)
class Entry:
    """A labelled picture.

    Attributes:
        name: Its id.
        split: Which list it stands in.
        jpeg: The picture's file.
        mask: (H, W) uint8: 0 background, 1..C the class.
    """

    name: str
    split: Split
    jpeg: bytes
    mask: UInt8Array


def encode_jpeg(image: UInt8Array) -> bytes:
    """Encode a picture (H, W, 3) uint8 RGB as JPEG."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="JPEG", quality=92)
    return stream.getvalue()


def encode_counts(mask: NDArray[np.bool_]) -> list[int]:
    """Uncompressed RLE of a mask (H, W) bool: run lengths down the columns, beginning with a run of zeros."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    runs: list[int] = np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()
    return runs if runs[-1] else runs[:-1]


def read_entries(dataset: ShapesDataset, split: Split, *, one_class: bool) -> Iterator[Entry]:
    """The pictures of a split; classes are numbered in the order of their names, as in layouts without a list.

    Args:
        dataset: The pictures.
        split: Which.
        one_class: Mark objects of one class a picture only, and name it CLASS/NAME, as FSS-1000 does.

    Yields:
        One entry a picture. Objects that can hardly be seen (255) are background, as not every layout can ignore.
    """
    names = sorted(dataset.class_names)
    lookup = np.zeros(IGNORE + 1, dtype=np.uint8)
    for value, name in enumerate(dataset.class_names, start=1):
        lookup[value] = names.index(name) + 1
    for number, image_id in enumerate(dataset.ids(split)):
        sample = dataset.sample(image_id)
        mask, name = lookup[sample.mask], image_id
        if one_class:
            values = [value for value in np.unique(mask).tolist() if value]
            value = values[number % len(values)]  # every picture has an object that can be seen
            mask, name = np.where(mask == value, mask, np.uint8(0)), f"{names[value - 1]}/{image_id}"
        yield Entry(name, split, encode_jpeg(sample.image), mask)


def write_index(root: Path, entries: Iterable[Entry], names: Sequence[str]) -> None:
    """images/NAME.jpg, masks/NAME.png of class indices, palette PNGs and grey ones by turns; classes.txt.

    Args:
        root: The folder, as for the other writers.
        entries: The pictures.
        names: Of the classes 1..C, ascending.
    """
    for number, entry in enumerate(entries):
        _write_picture(root / "images", entry)
        path = root / "masks" / f"{entry.name}.png"
        write_mask(path, entry.mask) if number % 2 else _save(path, entry.mask)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in ("_background_", *names)), encoding="utf-8")


def write_binary(root: Path, entries: Iterable[Entry], names: Sequence[str]) -> None:
    """images/NAME.jpg, masks/CLASS/NAME.png, 0/255 and 0/1 by turns; see `write_index`."""
    for entry in entries:
        _write_picture(root / "images", entry)
        for value in np.unique(entry.mask[entry.mask > 0]).tolist():
            path = root / "masks" / names[value - 1] / f"{entry.name}.png"
            _save(path, (entry.mask == value) * np.uint8(255 if value % 2 else 1))


def write_coco(root: Path, entries: Iterable[Entry], names: Sequence[str]) -> None:
    """images/NAME.jpg, annotations.json with run lengths, compressed and plain by turns; see `write_index`.

    Category ids have gaps, and nothing in the file is in order.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, entry in enumerate(entries, start=7):
        _write_picture(root / "images", entry)
        height, width = entry.mask.shape
        images.append({"id": number, "file_name": f"{entry.name}.jpg", "height": height, "width": width})
        for value in np.unique(entry.mask[entry.mask > 0]).tolist():
            region = entry.mask == value
            counts: str | list[int] = encode_counts(region)
            if len(annotations) % 2:
                counts = coco_mask.encode(np.asfortranarray(region, dtype=np.uint8))["counts"].decode()
            about = {"id": len(annotations) + 1, "image_id": number, "category_id": 10 * value, "iscrowd": 0}
            area = float(np.count_nonzero(region))
            annotations.append(about | {"area": area, "segmentation": {"size": [height, width], "counts": counts}})
    categories = [{"id": 10 * value, "name": name} for value, name in enumerate(names, start=1)]
    content = {"images": images[::-1], "annotations": annotations[::-1], "categories": categories[::-1]}
    (root / "annotations.json").write_text(json.dumps(content), encoding="utf-8")


def write_fss(root: Path, entries: Iterable[Entry], names: Sequence[str]) -> None:
    """CLASS/NAME.jpg beside CLASS/NAME.png: grey 0/255, RGB, soft (127 and 255) or 0/1 by turns; see `write_index`.

    The entries have one class each, named CLASS/NAME.
    """
    for number, entry in enumerate(entries):
        _write_picture(root, entry)
        binary = (entry.mask > 0).astype(np.uint8)
        full = binary * np.uint8(255)
        kinds = (full, np.dstack([full] * 3), binary * np.uint8(128) + np.uint8(127), binary)
        _save(root / f"{entry.name}.png", kinds[number % 4])


WRITERS: dict[str, Callable[[Path, Iterable[Entry], Sequence[str]], None]] = {
    "index": write_index,
    "binary": write_binary,
    "coco": write_coco,
    "fss": write_fss,
}


def write_folder(
    layout: str,
    dataset: ShapesDataset,
    root: Path,
    *,
    one_class: bool,
    watch: Callable[[Iterator[Entry]], Iterator[Entry]],
) -> None:
    """Write the pictures of both splits as a folder, with the splits' lists: train.txt and val.txt.

    Args:
        layout: A key of `WRITERS`.
        dataset: The pictures.
        root: An empty folder.
        one_class: See `read_entries`; always so for "fss".
        watch: Passes the entries on, with a progress bar.
    """
    lists: dict[Split, list[str]] = {"train": [], "val": []}

    def both() -> Iterator[Entry]:
        for split, listed in lists.items():
            for entry in read_entries(dataset, split, one_class=one_class or layout == "fss"):
                listed.append(entry.name)
                yield entry

    WRITERS[layout](root, watch(both()), sorted(dataset.class_names))
    for split, listed in lists.items():
        (root / f"{split}.txt").write_text("".join(f"{name}\n" for name in listed), encoding="utf-8")


def _write_picture(folder: Path, entry: Entry) -> None:
    path = folder / f"{entry.name}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(entry.jpeg)


def _save(path: Path, array: UInt8Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
