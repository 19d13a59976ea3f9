"""Labelled photographs of several folders under one list of classes, and views of them for the trunk.

Dimension letters: S side of the network's input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from hdmnet.data.datasets import coco, pascal
from hdmnet.data.datasets.folder.dataset import FolderDataset
from hdmnet.data.io.arrays import IGNORE, UInt8Array
from hdmnet.data.transforms import resize_pair

# VOC's names of classes that COCO calls otherwise.
COCO_NAMES = {
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "diningtable": "dining table",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "tvmonitor": "tv",
}
CLASSES = coco.CLASS_NAMES
CROP_SIDES = (0.5, 0.8)  # of the picture's sides

Sample = tuple[UInt8Array, UInt8Array]  # picture (H, W, 3) RGB and labels (H, W): 0, class number from 1, 255


@dataclass(frozen=True)
class Photo:
    """One photograph of a folder.

    Attributes:
        name: Folder and id.
        folder: The folder's name.
        dataset: What reads it.
        image_id: Its id there.
    """

    name: str
    folder: str
    dataset: FolderDataset
    image_id: str

    def read(self) -> Sample:
        """The picture and its labels by `CLASSES`, at original size; of overlapping objects the smaller is on top."""
        table = np.full(256, IGNORE, dtype=np.uint8)
        table[0] = 0
        table[1 : len(self.dataset.class_names) + 1] = [number_of(name) for name in self.dataset.class_names]
        return self.dataset.read_image(self.image_id), table[self.dataset.read_mask(self.image_id)]


@dataclass(frozen=True)
class View:
    """What the trunk sees: a photograph, a part of it, or four of them.

    Attributes:
        name: Tells it from all others.
        photos: Names of the photographs in it.
        read: Picture (S, S, 3) uint8 RGB and labels (S, S).
    """

    name: str
    photos: frozenset[str]
    read: Callable[[], Sample]


def number_of(name: str) -> int:
    """Number, from 1, of a class that VOC or COCO names."""
    return CLASSES.index(COCO_NAMES.get(name, name)) + 1


def read_folder(root: Path) -> list[Photo]:
    """The photographs of a VOC tree, or of whatever else `dataset=folder` takes, with VOC's or COCO's class names."""
    voc = (root / "SegmentationClass").is_dir()
    names = {"layout": "index", "classes": pascal.CLASS_NAMES, "images": "JPEGImages", "masks": "SegmentationClass"}
    dataset = FolderDataset(root, **(names if voc else {}))  # type: ignore[arg-type]
    return [Photo(f"{root.name}/{one}", root.name, dataset, one) for one in dataset.ids("train")]


def whole_views(photos: Sequence[Photo], side: int) -> list[View]:
    """Each photograph, resized straight to the square as `Segmenter` does."""
    return [View(f"{one.name}-{side}", frozenset([one.name]), partial(_whole, one, side)) for one in photos]


def crop_views(photos: Sequence[Photo], side: int, seed: int) -> list[View]:
    """A part of each photograph, in which objects are larger."""
    return [
        View(f"{one.name}-{side}-crop", frozenset([one.name]), partial(_crop, one, side, [seed, index]))
        for index, one in enumerate(photos)
    ]


def mosaic_views(photos: Sequence[Photo], side: int, seed: int) -> list[View]:
    """Four photographs each, side by side, in which objects are smaller; all of one folder, as others miss classes."""
    views = []
    for folder in sorted({one.folder for one in photos}):
        own = [one for one in photos if one.folder == folder]
        order = np.random.default_rng(seed).permutation(len(own))
        for start in range(0, len(own) - 3, 4):
            four = [own[index] for index in order[start : start + 4]]
            name = f"{folder}/mosaic-{start // 4}-{side}"
            views.append(View(name, frozenset(one.name for one in four), partial(_mosaic, four, side)))
    return views


def _whole(photo: Photo, side: int) -> Sample:
    return resize_pair(*photo.read(), (side, side))


def _crop(photo: Photo, side: int, seed: Sequence[int]) -> Sample:
    """A random part; of eight the one whose labels are foreground most nearly in the share that one half would be."""
    rng = np.random.default_rng(seed)
    image, labels = photo.read()
    best: tuple[float, Sample] | None = None
    for _ in range(8):
        height, width = (round(length * rng.uniform(*CROP_SIDES)) for length in labels.shape)
        top, left = (
            int(rng.integers(all_ - part + 1)) for all_, part in zip(labels.shape, (height, width), strict=True)
        )
        part = slice(top, top + height), slice(left, left + width)
        share = float(np.mean((labels[part] > 0) & (labels[part] != IGNORE)))
        if best is None or abs(share - 0.4) < best[0]:
            best = abs(share - 0.4), (image[part], labels[part])
    assert best is not None
    return resize_pair(*best[1], (side, side))


def _mosaic(photos: Sequence[Photo], side: int) -> Sample:
    half = (side + 1) // 2
    parts = [resize_pair(*one.read(), (half, half)) for one in photos]
    images, labels = ([part[kind] for part in parts] for kind in (0, 1))
    image = np.vstack([np.hstack(images[:2]), np.hstack(images[2:])])[:side, :side]
    label = np.vstack([np.hstack(labels[:2]), np.hstack(labels[2:])])[:side, :side]
    return image, label
