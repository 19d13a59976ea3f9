"""Writes predictions in the formats of annotation tools and training programs, each to a folder of its own.

    coco/annotations.json                    all pictures; run lengths, or polygons; box, area and score of each object
    labelme/NAME.json                        polygons; objects with holes as masks, which keep them
    yolo/labels/NAME.txt, data.yaml          a class number and a polygon a line, holes cut open to the outline
    voc/SegmentationClass/NAME.png …         CVAT's and VOC's: colours of labelmap.txt; SegmentationObject; ImageSets/

yolo/images and voc/JPEGImages hold links to the pictures, as the formats' readers look for them there. Sizes and
coordinates are those of the picture as a viewer shows it, turned by its EXIF data.

Dimension letters: H0 W0 size of a picture, h w that of the part of it with an object.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from PIL import Image

from hdmnet.apps.found_objects import FoundObject, find_objects
from hdmnet.data.io.annotations import run_lengths
from hdmnet.data.io.arrays import MAX_LABELS, BoolArray
from hdmnet.data.io.masks import voc_palette, write_mask
from hdmnet.data.io.outlines import has_holes
from hdmnet.runtime.atomic import replacing
from hdmnet.runtime.errors import InputError

if TYPE_CHECKING:
    from hdmnet.apps.segmenter import Prediction
    from hdmnet.data.io.arrays import UInt8Array

_LABELME_VERSION = "5.5.0"  # of the format: 5 and 6 write the same


@dataclass(frozen=True)
class LabelledPicture:
    """A picture and what was found in it.

    Attributes:
        path: The picture.
        name: How its files are called.
        mask: (H0, W0) uint8, class values.
        objects: What is in it.
    """

    path: Path
    name: str
    mask: UInt8Array
    objects: list[FoundObject]


class LabelWriter(ABC):
    """Writes labels in one format; what collects several pictures lies there when it is closed, whatever happened.

    Args:
        folder: Where to; made if needed.
        classes: Names of the classes 1..C.
        pictures: The pictures that may come.
        instances: Whether unjoined pixels are several objects.
        polygons: Whether objects are polygons where the format has run lengths too.
    """

    def __init__(
        self,
        folder: Path,
        classes: Sequence[str],
        pictures: Sequence[Path],
        *,
        instances: bool = True,
        polygons: bool = False,
    ) -> None:
        self.folder, self.classes = folder, tuple(classes)
        self.base = Path(os.path.commonpath([path.absolute().parent for path in pictures]))
        self.instances, self.polygons = instances, polygons
        self.names: list[str] = []

    def add(self, picture: LabelledPicture) -> None:
        """Take a picture's labels; raises ValueError where the format has no room for them."""
        self._add(picture)
        self.names.append(picture.name)

    @abstractmethod
    def _add(self, picture: LabelledPicture) -> None: ...

    def close(self) -> None:  # noqa: B027 - LabelMe's format has no file of several pictures
        """Write what several pictures share."""


class CocoWriter(LabelWriter):
    """One COCO-style JSON; file names are paths below the folder that all pictures share, which `info` names."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def _add(self, picture: LabelledPicture) -> None:
        height, width = picture.mask.shape
        number, first = len(self._images) + 1, len(self._annotations) + 1
        name = picture.path.absolute().relative_to(self.base).as_posix()
        annotations = [
            {
                "id": place,
                "image_id": number,
                "category_id": found.index,
                "segmentation": self._segmentation(found, (height, width)),
                "bbox": list(found.box),
                "area": found.area,
                "iscrowd": 0,
                "score": round(found.score, 4),
            }
            for place, found in enumerate(picture.objects, start=first)
        ]
        self._images.append({"id": number, "file_name": name, "height": height, "width": width})
        self._annotations += annotations

    def _segmentation(self, found: FoundObject, size: tuple[int, int]) -> Any:
        if self.polygons:
            return [[value for corner in polygon for value in corner] for polygon in found.outlines]
        return {"size": list(size), "counts": _run_lengths(found, size)}

    def close(self) -> None:
        """Write the JSON."""
        content = {
            "info": {"description": "hdmnet.predict", "image_folder": _relative(self.base, self.folder)},
            "images": self._images,
            "annotations": self._annotations,
            "categories": [{"id": index, "name": name} for index, name in enumerate(self.classes, start=1)],
        }
        _write_text(self.folder / "annotations.json", json.dumps(content, ensure_ascii=False))


def _run_lengths(found: FoundObject, size: tuple[int, int]) -> str:
    """COCO's compressed run lengths, column by column; only its own columns are looked at."""
    from pycocotools import mask as coco_mask

    (height, width), (left, _, columns, _) = size, found.box
    canvas = np.zeros((height, columns), dtype=np.uint8, order="F")
    found.paint(canvas, 1, left)
    lengths = run_lengths(coco_mask.encode(canvas)["counts"])
    lengths[0] += left * height
    after = (width - left - columns) * height
    if len(lengths) % 2:
        lengths[-1] += after
    elif after:
        lengths.append(after)
    code: bytes = coco_mask.frPyObjects({"size": list(size), "counts": lengths}, height, width)["counts"]
    return code.decode("ascii")


class LabelmeWriter(LabelWriter):
    """A JSON a picture; parts of one object share a `group_id`."""

    def _add(self, picture: LabelledPicture) -> None:
        shapes: list[dict[str, Any]] = []
        for number, found in enumerate(picture.objects, start=1):
            group = number if len(found.parts) > 1 else None
            for part, polygon in zip(found.parts, found.outlines, strict=True):
                kind = _labelme_mask(*part) if has_holes(part[2]) else {"shape_type": "polygon", "points": polygon}
                text = f"score {found.score:.4f}"
                shapes.append({"label": found.label, "group_id": group, "description": text, "flags": {}} | kind)
        height, width = picture.mask.shape
        content = {
            "version": _LABELME_VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": _relative(picture.path.absolute(), self.folder),
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        _write_text(self.folder / f"{picture.name}.json", json.dumps(content, ensure_ascii=False, indent=1))


def _labelme_mask(x: int, y: int, part: BoolArray) -> dict[str, Any]:
    """A part as a shape of kind "mask": its first and last pixel, and a PNG of what lies between."""
    stored = io.BytesIO()
    Image.fromarray(part.astype(np.uint8) * np.uint8(255)).save(stored, format="PNG")
    corners = [[x, y], [x + part.shape[1] - 1, y + part.shape[0] - 1]]
    return {"shape_type": "mask", "points": corners, "mask": base64.b64encode(stored.getvalue()).decode("ascii")}


class YoloWriter(LabelWriter):
    """A text a picture, each part of an object a line: the format has no object of several."""

    def _add(self, picture: LabelledPicture) -> None:
        height, width = picture.mask.shape
        lines = []
        for found in picture.objects:
            for polygon in found.outlines:
                shares = (f"{x / width:.8g} {y / height:.8g}" for x, y in polygon)
                lines.append(f"{found.index - 1} {' '.join(shares)}\n")
        _link(picture, self.folder / "images")
        _write_text(self.folder / "labels" / f"{picture.name}.txt", "".join(lines))

    def close(self) -> None:
        """Write the names of the classes."""
        names = "".join(f"  {index}: {json.dumps(name)}\n" for index, name in enumerate(self.classes))
        _write_text(self.folder / "data.yaml", f"train: images\nval: images\nnames:\n{names}")


class VocWriter(LabelWriter):
    """Masks in VOC's colours, whose indices are the classes; SegmentationObject numbers the objects."""

    def _add(self, picture: LabelledPicture) -> None:
        if self.instances:
            if len(picture.objects) > MAX_LABELS:
                raise InputError(
                    f"{picture.path} has {len(picture.objects)} objects, and VOC's SegmentationObject numbers "
                    f"{MAX_LABELS}: take voc off formats, or set instances=false"
                )
            numbers = np.zeros(picture.mask.shape, dtype=np.uint8)
            for number, found in enumerate(picture.objects, start=1):
                found.paint(numbers, number)
            write_mask(self.folder / "SegmentationObject" / f"{picture.name}.png", numbers)
        _link(picture, self.folder / "JPEGImages")
        write_mask(self.folder / "SegmentationClass" / f"{picture.name}.png", picture.mask)

    def close(self) -> None:
        """Write the colours of the classes and the list of pictures."""
        colours = np.array(voc_palette()).reshape(-1, 3)
        lines = [
            f"{name}:{','.join(map(str, colours[index]))}::\n"
            for index, name in enumerate(("background", *self.classes))
        ]
        _write_text(self.folder / "labelmap.txt", "# label:color_rgb:parts:actions\n" + "".join(lines))
        names = "".join(f"{name}\n" for name in self.names)
        _write_text(self.folder / "ImageSets" / "Segmentation" / "default.txt", names)


#: Of `formats`: the mask, probability and overlay of each picture, which `predict` itself writes.
PICTURES = "png"
WRITERS: Mapping[str, type[LabelWriter]] = {
    "coco": CocoWriter,
    "labelme": LabelmeWriter,
    "yolo": YoloWriter,
    "voc": VocWriter,
}


class LabelWriters:
    """Writes labels in several formats at once, see `LabelWriter`; each in a folder of its own, as it is called.

    Attributes:
        pictures: Whether pictures are asked for too.
    """

    def __init__(
        self,
        output: Path,
        formats: Sequence[str],
        classes: Sequence[str],
        pictures: Sequence[Path],
        *,
        instances: bool = True,
        polygons: bool = False,
        tolerance: float = 1.0,
    ) -> None:
        self.pictures = PICTURES in formats
        self.instances, self.tolerance = instances, tolerance
        self.writers = {
            name: WRITERS[name](output / name, classes, pictures, instances=instances, polygons=polygons)
            for name in formats
            if name in WRITERS
        }

    def add(self, path: Path, name: str, prediction: Prediction) -> None:
        """Write what was found in a picture; raises ValueError where a format has no room for it, the others done."""
        if not self.writers:
            return
        objects = find_objects(prediction, instances=self.instances, tolerance=self.tolerance)
        refusals = []
        for writer in self.writers.values():
            try:
                writer.add(LabelledPicture(path, name, prediction.mask, objects))
            except InputError as error:
                refusals.append(error)
        if refusals:
            raise refusals[0]

    def close(self) -> list[str]:
        """Write what several pictures share; returns a line for each format that says what there is."""
        lines = []
        for name, writer in self.writers.items():
            if writer.names:
                writer.close()
                lines.append(f"{name}: labels of {len(writer.names)} pictures: {writer.folder}")
        return lines


def refuse_label_folders(output: Path, formats: Sequence[str], inputs: Sequence[Path]) -> None:
    """Refuse an output folder whose folder of a format holds an input, which might be replaced.

    Raises:
        ValueError: It does.
    """
    for folder in ((output / name).resolve() for name in formats if name in WRITERS):
        for path in inputs:
            if (path.parent.resolve() / path.name).is_relative_to(folder):
                raise InputError(
                    f"output={output} holds {path.relative_to(path.parent.parent)}, which is read and might be "
                    "replaced: choose another folder"
                )


class _Closes(Protocol):
    def close(self) -> list[str]: ...


_Writer = TypeVar("_Writer", bound=_Closes)


@contextmanager
def closing(writer: _Writer) -> Iterator[_Writer]:
    """Close a writer at the end, also where the work was cut off, and say what there is."""
    try:
        yield writer
    finally:
        for line in writer.close():
            print(line, flush=True)


def _relative(path: Path, folder: Path) -> str:
    """A path as written from a folder, which need not be there; in full where there is no way (another drive)."""
    try:
        return Path(os.path.relpath(path, folder.resolve())).as_posix()
    except ValueError:
        return path.as_posix()


def _link(picture: LabelledPicture, folder: Path) -> None:
    """Put a link to a picture into a folder."""
    link(picture.path, folder / f"{picture.name}{picture.path.suffix}")


def link(path: Path, place: Path) -> None:
    """Make a link to a file, a copy where the file system has no links."""
    with replacing(place) as temporary:
        try:
            temporary.symlink_to(_relative(path.resolve(), place.parent))
        except OSError:
            shutil.copyfile(path, temporary)


def _write_text(path: Path, text: str) -> None:
    """Write a text whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
