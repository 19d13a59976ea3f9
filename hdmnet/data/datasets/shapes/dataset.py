"""SHAPES-5i: the embedded data set, made on the fly from a seed; no files.

20 classes in 4 folds of 5. A class is a surface pattern together with a silhouette ("striped star", "checkered gear");
colours are free, so the colour of a support object says nothing about the query. Every picture holds 4 objects,
mostly of different classes, before a busy background: finding "the foreground" is not enough, the support is needed.

A picture is a pure function of (version, seed, fold, split, index): `shapes_scene` chooses what it shows from counted
random words, `shapes_render` draws it in integers, so that every machine sees the same bytes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import numpy as np
from numpy.typing import NDArray

from hdmnet.data.class_split import SplitRule, split_classes
from hdmnet.data.datasets.base import LabelMapDataset, Split
from hdmnet.data.datasets.shapes.render import render
from hdmnet.data.datasets.shapes.scene import (
    ATTEMPTS,
    GENERATOR_VERSION,
    MAX_OBJECTS,
    SceneSettings,
    class_names,
    draw_scene,
)
from hdmnet.data.datasets.shapes.tables import MAX_IMAGE_SIDE
from hdmnet.data.io.arrays import IGNORE, MAX_LABELS
from hdmnet.runtime.errors import DatasetError

MIN_VISIBLE = 0.4  # objects less visible than this are labelled 255


@dataclass(frozen=True)
class Sample:
    """One picture with its labels.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) uint8, 0 background, 1..C class, 255 objects of which less than 40 % can be seen.
        instances: (H, W) uint8, 0 background, otherwise 1 + position in `classes`.
        classes: Class value of each object, from back to front.
        visible: Visible share of each object, 0..1.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    instances: NDArray[np.uint8]
    classes: tuple[int, ...]
    visible: tuple[float, ...]


@lru_cache(maxsize=16)  # picture and mask of one id share one render; arrays are copied on the way out
def _draw(settings: SceneSettings, split: Split, index: int) -> Sample:
    """Draw picture `index` of a split, anew if its first object is hidden or too small, the last attempt stands."""
    for attempt in range(ATTEMPTS):
        scene, by_number = draw_scene(settings, split, index, attempt)
        image, instances, areas = render(scene)
        depth = [patch.value for patch in scene.patches if patch.value]
        counts = np.bincount(instances.ravel(), minlength=MAX_OBJECTS + 1).tolist()
        share = {number: counts[number] / area for number, area in zip(depth, areas, strict=True)}
        if share[1] >= MIN_VISIBLE and counts[1] >= settings.min_area:
            break
    lookup = np.zeros(256, dtype=np.uint8)
    rank = np.zeros(256, dtype=np.uint8)
    for position, number in enumerate(depth):
        lookup[number] = by_number[number - 1] if share[number] >= MIN_VISIBLE else IGNORE
        rank[number] = position + 1
    return Sample(
        image=image,
        mask=lookup[instances],
        instances=rank[instances],
        classes=tuple(by_number[number - 1] for number in depth),
        visible=tuple(share[number] for number in depth),
    )


_MOST_PICTURES = 1_000_000  # their ids are kept in memory
_ROOM = 512 * 2**20  # bytes for the pictures that a process keeps, those it drew first
_kept: dict[tuple[SceneSettings, Split, int], Sample] = {}
_kept_bytes = 0


def _sample(settings: SceneSettings, split: Split, index: int) -> Sample:
    """A picture; those that have room are kept: a training comes back to each, and drawing one takes milliseconds."""
    global _kept_bytes
    key = (settings, split, index)
    if key in _kept:
        return _kept[key]
    sample = _draw(*key)
    size = sample.image.nbytes + sample.mask.nbytes + sample.instances.nbytes
    if _kept_bytes + size <= _ROOM:
        _kept[key] = sample
        _kept_bytes += size
    return sample


class ShapesDataset(LabelMapDataset):
    """SHAPES-5i as a data set like any other.

    With a fold, training pictures hold base classes only and validation pictures at least one novel object beside
    others of all classes; ids carry the fold ("train-f0-00012"). Without one, pictures are mixed, for writing out trees
    to which the real filters apply (ids "train-00012").

    Args:
        generator_seed: Seed of the whole data set.
        picture_size: Side or (H, W) of the pictures, 48..512 px.
        num_train: Number of training pictures.
        num_val: Number of validation pictures.
        fold: Fold 0..3 or None.
        num_classes: Number of classes, 4..252, a multiple of 4; 20 is SHAPES-5i.
        split_rule: How classes are dealt out to the folds.
        object_scale: Factor on the objects' size.
        vary_size: Give every picture its own size up to `picture_size`, upright or lying.
        min_area: Fewest pixels for a class to count in an image; None: a hundredth of the picture.

    Raises:
        ValueError: An argument is out of range.
    """

    name = "shapes"

    def __init__(
        self,
        *,
        generator_seed: int = 0,
        picture_size: int | Sequence[int] = 129,
        num_train: int = 3000,
        num_val: int = 600,
        fold: int | None = None,
        num_classes: int = 20,
        split_rule: SplitRule = "contiguous",
        object_scale: float = 1.0,
        vary_size: bool = False,
        min_area: int | None = None,
    ) -> None:
        sides = (picture_size, picture_size) if isinstance(picture_size, int) else tuple(picture_size)
        if len(sides) != 2 or not all(type(side) is int for side in sides):
            raise DatasetError(f"shapes picture_size is {picture_size}, expected a side or [height, width]")
        height, width = sides
        if min(sides) < 48 or max(sides) > MAX_IMAGE_SIDE:
            raise DatasetError(
                f"shapes picture_size is {picture_size}, expected sides of 48..{MAX_IMAGE_SIDE} px: change it "
                "(by default it is dataset.image_size)"
            )
        if not 4 <= num_classes <= MAX_LABELS or num_classes % self.num_folds:
            raise DatasetError(f"shapes num_classes is {num_classes}, expected a multiple of 4 in 4..252: change it")
        if not all(type(number) is int and 1 <= number <= _MOST_PICTURES for number in (num_train, num_val)):
            raise DatasetError(
                f"shapes num_train={num_train} num_val={num_val}, expected 1 to {_MOST_PICTURES:,} of each"
            )
        if not 0.5 <= object_scale <= 1.4:
            raise DatasetError(f"shapes object_scale is {object_scale}, expected 0.5..1.4: change it")
        if fold is not None:
            split_classes(num_classes, self.num_folds, fold, split_rule)  # refuses a fold out of range
        self.class_names = class_names(num_classes)
        self.split_rule = split_rule
        self.min_area = height * width // 100 if min_area is None else min_area
        self._sizes: dict[Split, int] = {"train": num_train, "val": num_val}
        self._settings = SceneSettings(
            seed=generator_seed,
            fold=fold,
            num_classes=num_classes,
            split_rule=split_rule,
            image_size=(height, width),
            object_scale=object_scale,
            vary_size=vary_size,
            min_area=height * width // 100,
        )
        self._prefix = "" if fold is None else f"f{fold}-"

    def ids(self, split: Split) -> list[str]:
        """Image ids of a split, such as "val-f0-00012" (or "val-00012" without a fold)."""
        return [f"{split}-{self._prefix}{index:05d}" for index in range(self._sizes[split])]

    def sample(self, image_id: str) -> Sample:
        """Picture, mask and objects of an id; the arrays are shared with a cache and must not be written to.

        Raises:
            ValueError: There is no such id.
        """
        match = re.fullmatch(rf"(train|val)-{self._prefix}(\d{{5,}})", image_id)
        split = cast("Split", match[1] if match else "train")
        if match is None or int(match[2]) >= self._sizes[split]:
            raise DatasetError(
                f"shapes has no picture {image_id!r}, expected one of {self.ids('train')[0]} … {self.ids('val')[-1]}:"
                " check the fold and the number of pictures"
            )
        return _sample(self._settings, split, int(match[2]))

    def read_image(self, image_id: str) -> NDArray[np.uint8]:
        """Picture as (H, W, 3) uint8 RGB."""
        return self.sample(image_id).image.copy()

    def image_size(self, image_id: str) -> tuple[int, int] | None:
        """Size (H, W) of the pictures where all have the same."""
        return None if self._settings.vary_size else self._settings.image_size

    def read_mask(self, image_id: str) -> NDArray[np.uint8]:
        """Mask as (H, W) uint8: 0 background, 1..C class value, 255 objects of which less than 40 % can be seen."""
        return self.sample(image_id).mask.copy()

    def fingerprint(self, split: Split) -> str:
        """Hex sha256 over the generator's version and every argument that the split's masks depend on."""
        return hashlib.sha256(f"{GENERATOR_VERSION}/{self._settings}/{split}/{self._sizes[split]}".encode()).hexdigest()
