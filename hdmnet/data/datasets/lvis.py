"""LVIS-92i: LVIS v1 on the pictures of COCO 2017, ten folds of 92 classes (Liu et al., "Matcher", ICLR 2024, 4.2)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from hdmnet.data.datasets.base import SegmentationDataset, Split
from hdmnet.data.datasets.files import fingerprint_files, refuse_shared_ids, require_ids
from hdmnet.data.io.annotations import decode_segmentation
from hdmnet.data.io.arrays import BoolArray, UInt8Array
from hdmnet.data.io.instances import Instances, open_instances
from hdmnet.data.io.pictures import read_image, read_size
from hdmnet.runtime.errors import DatasetError, MissingFileError
from hdmnet.runtime.home import expand_home

_PLACES = (".", "annotations", "lvis", "../lvis", "../lvis/annotations")  # of the JSONs, as people have them


class LvisDataset(SegmentationDataset):
    """Pictures `train2017/ val2017/` and LVIS's `lvis_v1_train.json`, `lvis_v1_val.json`, read as they are.

    The classes are all of LVIS, in ascending category id. Those that more than one validation picture shows are dealt
    out to the folds in turn, as in Matcher's release, until all folds have as many: 920 by the paper. All others are
    base classes in every fold. A class's mask is the union of its annotations; masks of several classes may overlap.
    Pictures are not annotated for all classes: what is not marked may be there all the same, as background.

    Ids are such as "val2017/000000397133"; both splits have pictures of train2017.

    Args:
        root: Folder of `train2017/` and `val2017/`.
        annotations: Folder of the JSONs; None: the root, its annotations/ or lvis/, or lvis/ beside it.
        num_classes: How many classes all folds together must have; None: not checked, of a part of LVIS.
        min_area: Fewest pixels for a class to count in an image.
        cache_dir: Folder for what is known of the JSONs, see `open_instances`.
    """

    name = "lvis"
    num_folds = 10

    def __init__(
        self,
        root: str | Path,
        *,
        annotations: str | None = None,
        num_classes: int | None = 920,
        min_area: int = 1,
        cache_dir: str | Path | None = None,
    ) -> None:
        self.root = expand_home(root)
        self.annotations = None if annotations is None else expand_home(annotations)
        self.num_classes = num_classes
        self.min_area = min_area
        self.cache_dir = cache_dir

    def _instances(self, split: Split) -> Instances:
        usual = [Path(os.path.normpath(self.root / place)) for place in _PLACES]
        places = usual if self.annotations is None else [self.annotations]
        paths = [place / f"lvis_v1_{split}.json" for place in places]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise MissingFileError(
                f"{paths[0]} is missing: unpack lvis_v1_{split}.json.zip of the LVIS site there or into {self.root}/"
                "annotations, or set dataset.annotations to its folder"
            )
        return open_instances(path, self.cache_dir)

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]  # read when first asked for
        """Names of all categories of LVIS, in ascending category id."""
        return tuple(name.decode() for name in self._instances("val").category_names.tolist())

    @cached_property
    def folds(self) -> tuple[tuple[int, ...], ...]:  # type: ignore[override]
        """Novel class values of each fold."""
        several = np.flatnonzero(self._instances("val").images_per_category() > 1) + 1
        size = len(several) // self.num_folds
        if self.num_classes not in (None, size * self.num_folds):
            raise DatasetError(
                f"{len(several):,} classes of {self._instances('val').path} are on more than one picture, which makes "
                f"{self.num_folds} folds of {size}, expected {self.num_classes:,} classes in all: is it LVIS v1? Of a "
                "part of it set dataset.num_classes=null"
            )
        return tuple(tuple(several[fold :: self.num_folds][:size].tolist()) for fold in range(self.num_folds))

    def ids(self, split: Split) -> list[str]:
        """Image ids of "train" or "val", ascending."""
        return [name.removesuffix(".jpg") for name in self._instances(split).image_names()]

    def read_image(self, image_id: str) -> UInt8Array:
        """Picture as (H, W, 3) uint8 RGB at original size."""
        return read_image(self._picture(image_id))

    def image_size(self, image_id: str) -> tuple[int, int]:
        """Size (H, W) of the picture, from its header; refuses one that is cut short."""
        return read_size(self._picture(image_id))

    def read_class_mask(self, image_id: str, class_value: int) -> UInt8Array:
        """Mask of one class as (H, W) uint8: 1 the class, 0 all else."""
        return self.find_classes(image_id, [class_value]).astype(np.uint8)

    def find_classes(self, image_id: str, classes: Sequence[int]) -> BoolArray:
        """Where any of some classes is, (H, W) bool."""
        size, regions = self._regions(image_id, frozenset(classes))
        found = np.zeros(size, dtype=bool)
        for region in regions.values():
            found |= region
        return found

    def class_areas(self, image_id: str) -> dict[int, int]:
        """Pixels of each class, those below another one too."""
        size, regions = self._regions(image_id)
        self.check_mask(image_id, np.zeros(size, dtype=np.uint8), self.image_size(image_id))
        areas = {value: int(regions[value].sum()) for value in sorted(regions)}
        return {value: area for value, area in areas.items() if area}

    def _picture(self, image_id: str) -> Path:
        return self.root / f"{image_id}.jpg"

    def _split_of(self, image_id: str) -> Split:
        return "val" if self._instances("val").has(f"{image_id}.jpg") else "train"

    def _regions(
        self, image_id: str, classes: frozenset[int] | None = None
    ) -> tuple[tuple[int, int], dict[int, BoolArray]]:
        """Size (H, W) of a picture, and where each class, or each of some, is as (H, W) bool."""
        instances = self._instances(self._split_of(image_id))
        size, annotations = instances.read(f"{image_id}.jpg")
        regions: dict[int, BoolArray] = {}
        for one in annotations:
            value = int(np.searchsorted(instances.categories, one["category_id"])) + 1
            if classes is not None and value not in classes:
                continue
            try:
                region = decode_segmentation(one["segmentation"], *size)
            except Exception as error:  # pycocotools raises bare Exception, TypeError and more on malformed input
                reason = " ".join(str(error).split())
                raise DatasetError(f"{self.mask_location(image_id)}: an annotation cannot be read: {reason}") from None
            regions[value] = regions[value] | region if value in regions else region
        return size, regions

    def mask_location(self, image_id: str) -> str:
        """The JSON and the image in it."""
        return f"{self._instances(self._split_of(image_id)).path}, image {image_id!r}"

    def fingerprint(self, split: Split) -> str:
        """Hex sha256 over the split's ids, and names, sizes and times of its JSON and its pictures."""
        ids, path = self.ids(split), self._instances(split).path
        parts = [*ids, fingerprint_files(path.parent, names=[path.name])]
        for folder in sorted({image_id.split("/")[0] for image_id in ids}):
            names = {f"{image_id.split('/')[1]}.jpg" for image_id in ids if image_id.startswith(f"{folder}/")}
            if (self.root / folder).is_dir():
                parts.append(fingerprint_files(self.root / folder, names=names, extra=[folder]))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def check(self, *, files: bool = True) -> None:
        """Check that JSONs, folds and pictures are there, before any training; without `files` not each picture.

        Raises:
            FileNotFoundError: A JSON or a picture is missing; one line.
            ValueError: The JSONs have other classes than LVIS v1.
        """
        lists = {split: self.ids(split) for split in self.splits}
        if self._instances("train").category_names.tolist() != self._instances("val").category_names.tolist():
            raise DatasetError(f"the LVIS JSONs of {self._instances('val').path.parent} have two lists of categories")
        assert self.folds
        for split, ids in lists.items() if files else ():
            there = {
                f"{folder}/{path.stem}"
                for folder in {image_id.split("/")[0] for image_id in ids}
                for path in (self.root / folder).glob("[!.]*.jpg")
            }
            origin = str(self._instances(split).path)
            require_ids(ids, there, origin, f"picture in {self.root}", "unpack the COCO 2017 images zips there")
        refuse_shared_ids(**lists)
