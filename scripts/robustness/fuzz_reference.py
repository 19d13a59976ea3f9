"""An independent reading of what fuzz.py's readers take: Pillow, NumPy and pycocotools, and none of the package's code.

A reader that accepts an input has to find what this finds; another mask or picture counts as a crash.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

IGNORE, SMALL = 255, 64

Array = NDArray[Any]


class WrongError(Exception):
    """A reader has accepted an input and found something else in it."""


def same(found: Array, expected: Array | None, what: str) -> None:
    """Raise `WrongError` unless two arrays are equal; None: Pillow cannot read the file, so nothing can be said."""
    if expected is None:
        return
    if found.shape != expected.shape or not np.array_equal(found, expected):
        off = int((found != expected).sum()) if found.shape == expected.shape else "all"
        raise WrongError(f"{what}: {off} of {expected.size} values differ from the independent reading")


def _if_readable(read: Callable[..., Array]) -> Callable[..., Array | None]:
    """Give None where Pillow fails, e.g. on damaged notes beside the pixels, which OpenCV passes over."""

    @functools.wraps(read)
    def reader(*arguments: Any, **options: Any) -> Array | None:
        try:
            return read(*arguments, **options)
        except Exception:  # whatever Pillow raises on damaged files
            return None

    return reader


@_if_readable
def picture(path: Path, *, upright: bool) -> Array:
    """A picture (H, W, 3) uint8 RGB; upright as a viewer shows it, else as stored."""
    with Image.open(path) as opened:
        noted = "exif" in opened.info  # what stands behind the pixels of a PNG most viewers do not see either
        opened.load()
        image = ImageOps.exif_transpose(opened) if upright and noted else opened
        if image.mode.startswith("I"):
            return np.repeat((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        return np.asarray(
            image.convert("RGBA").convert("RGB") if "transparency" in image.info else image.convert("RGB")
        )


@_if_readable
def index_mask(path: Path) -> Array:
    """A mask's stored values (H, W)."""
    with Image.open(path) as opened:
        return np.array(opened, dtype=np.uint8)


@_if_readable
def object_mask(path: Path) -> Array:
    """A mask of one object (H, W) uint8, 0, 1 and 255, by what a viewer shows of it.

    Grey values may be numbers of a class, as may those of a palette: a small one beside 255, which is ignored then.
    """
    with Image.open(path) as opened:
        opened.load()
        mask = _object_mask(opened)
        turned = Image.fromarray(mask)
        if opened.getexif().get(0x0112, 1) != 1 and opened.format != "TIFF":
            turned.getexif()[0x0112] = opened.getexif()[0x0112]
            turned = ImageOps.exif_transpose(turned)
        return np.asarray(turned)


def _object_mask(opened: Image.Image) -> Array:
    if opened.mode == "P":
        return _palette_mask(opened)
    keyed = opened.mode in ("1", "L", "RGB") and bool(np.any(opened.info.get("transparency", 0)))
    if not keyed and (opened.mode in ("1", "L", "F") or opened.mode.startswith("I")):
        return _grey_mask(np.asarray(opened).astype(np.float64))
    transparent = keyed or opened.mode in ("LA", "RGBA", "PA")
    shown = np.asarray(opened.convert("RGBA" if transparent else "RGB"))
    if opened.mode in ("1", "L") and (shown[..., 3] == shown[0, 0, 3]).all():
        return _grey_mask(shown[..., 0].astype(np.float64))
    return _colour_mask(shown)


def _palette_mask(opened: Image.Image) -> Array:
    values, shown = np.asarray(opened), np.asarray(opened.convert("RGBA"))
    visible = (shown[..., :3].max(axis=2) > 0) & (shown[..., 3] > 0)
    used = np.unique(values[values > 0])
    if (visible == (values > 0)).all() and len(used) == 2 and used[0] < SMALL and used[1] == IGNORE:
        one, other = (shown[values == value][0, :3].astype(np.float64) for value in used)
        if np.abs(one / one.max() - other / other.max()).max() > 0.3:
            return np.where(values == used[0], 1, np.where(values == IGNORE, IGNORE, 0)).astype(np.uint8)
    grey = (shown[..., :3] == shown[..., :1]).all() and (shown[..., 3] == shown[0, 0, 3]).all()
    if grey and (shown[..., 0] == values).all():
        return _grey_mask(values.astype(np.float64))
    return _colour_mask(shown)


def _grey_mask(values: Array) -> Array:
    used = np.unique(values[values > 0])
    if len(used) <= 1:
        return (values > 0).astype(np.uint8)
    if len(used) == 2 and used[0] < SMALL and used[1] == IGNORE:
        if 1000 * (values == used[0]).sum() <= (values == IGNORE).sum():
            return np.asarray(values == IGNORE, dtype=np.uint8)  # stray pixels
        return np.where(values == used[0], 1, np.where(values == IGNORE, IGNORE, 0)).astype(np.uint8)
    full = 255 if used[-1] > 1 or (used == np.rint(used)).all() else 1
    return (values >= 128 / 255 * full * (256 if used[-1] > IGNORE else 1)).astype(np.uint8)


def _colour_mask(shown: Array) -> Array:
    """One colour on black; or a cut-out, where some of it is not seen, or all of it is of one colour, more or less."""
    alpha = (shown[..., 3] if shown.shape[2] == 4 else np.zeros(shown.shape[:2])).astype(np.float64)
    brightness = shown[..., :3].max(axis=2).astype(np.float64)
    if (alpha != alpha[0, 0]).any():
        seen = alpha > alpha.max() / 16
        colours = np.unique(shown[seen][:, :3].astype(np.float64), axis=0)
        most = colours.max(axis=1)
        shades = colours - most[:, None] / max(most.max(), 1) * colours[most.argmax()]
        on_black = most.min() < 16 <= most.max() / 2 and len(colours) <= 32
        on_black &= bool((np.abs(shades) <= np.maximum(0.3 * most, 32)[:, None]).all())
        if not on_black and (not seen.all() or len(np.unique(shown[..., :3].reshape(-1, 3), axis=0)) == 1):
            return np.asarray(alpha >= alpha.max() / 2, dtype=np.uint8)
        brightness = np.where(seen, brightness, 0)
    return np.asarray(brightness >= max(brightness.max() / 2, 1), dtype=np.uint8)


# ---------------------------------------------------------------------------------------------------------------- COCO


def coco_index(content: dict[str, Any]) -> Any:
    """Pycocotools' own index of an annotation file."""
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = dict(content)
    for key in ("images", "categories", "annotations"):
        coco.dataset[key] = [
            one | {name: _as_number(value) for name, value in one.items() if name in ("id", "image_id", "category_id")}
            for one in content[key]
        ]
    for number, one in enumerate(coco.dataset["annotations"]):
        one["id"] = number
    for one in coco.dataset["categories"]:
        one["id"] = int(one["id"])
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _as_number(value: Any) -> Any:
    """An id as a number where it is one, also in quotes; "01" is another than 1."""
    whole = isinstance(value, float) and value == value // 1
    return int(value) if whole or re.fullmatch("0|[1-9][0-9]*", value if isinstance(value, str) else "") else value


def _marks(annotation: dict[str, Any]) -> bool:
    """Whether an annotation has a polygon of three points, or run lengths."""
    regions = annotation.get("segmentation")
    if isinstance(regions, list):
        return any(len(part) > 4 for part in regions)
    return bool(regions and regions.get("counts"))


def _crowd(annotation: dict[str, Any]) -> bool:
    return annotation.get("iscrowd") in (1, "1", "1.0", "true")


def _region(coco: Any, annotation: dict[str, Any]) -> Array:
    """Where an annotation is, (H, W) 0/1."""
    with warnings.catch_warnings():  # pycocotools' own, with NumPy 2
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        regions = annotation["segmentation"]
        if isinstance(regions, list):  # of parts of two points pycocotools makes boxes
            regions = [part for part in regions if len(part) > 4]
        region: Array = coco.annToMask(annotation | {"segmentation": regions})
    return region


def coco_masks(coco: Any, image_id: Any, *, crowd: str | None) -> tuple[dict[Any, Array], Array]:
    """Where each category is in an image and where it is ignored, (H, W) bool each, by pycocotools.

    Args:
        coco: From `coco_index`.
        image_id: Which image.
        crowd: What annotations with `iscrowd: 1` are; None: objects of categories that have no others, else ignored.
    """
    image = coco.imgs[image_id]
    size = (int(image["height"]), int(image["width"]))
    annotations = coco.dataset["annotations"]
    with_objects = {one["category_id"] for one in annotations if _marks(one) and not _crowd(one)}
    regions: dict[Any, Array] = {}
    ignored = np.zeros(size, dtype=bool)
    for annotation in coco.imgToAnns[image_id]:
        category = annotation["category_id"]
        region = _region(coco, annotation).astype(bool) if _marks(annotation) else np.zeros(size, dtype=bool)
        use = crowd or ("ignore" if category in with_objects else "class")
        if _crowd(annotation) and use != "class":
            ignored |= region & (use == "ignore")
        else:
            regions[category] = regions.get(category, np.zeros(size, dtype=bool)) | region
    return regions, ignored


def painted(coco: Any, image_id: Any) -> Array:
    """All of an image's annotations in one mask (H, W), later over earlier ones, crowds 255; by pycocotools."""
    image = coco.imgs[image_id]
    values = {category: value for value, category in enumerate(sorted(coco.cats), start=1)}
    mask = np.zeros((int(image["height"]), int(image["width"])), dtype=np.uint8)
    for annotation in coco.imgToAnns[image_id]:
        if _marks(annotation):
            region = _region(coco, annotation) == 1
            mask[region] = IGNORE if _crowd(annotation) else values[annotation["category_id"]]
    return mask


# ------------------------------------------------------------------------------------------------------------- folders


def files_below(root: Path) -> dict[str, Path]:
    """Every file below a folder by its own (real) path, links followed but those upwards; hidden ones are left out."""
    found: dict[str, Path] = {}
    seen = {str(above) for above in root.resolve().parents}
    for parent, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if name[0] != ".")
        for name in files:
            if name[0] != ".":
                found.setdefault(os.path.realpath(os.path.join(parent, name)), Path(parent, name))
    return found
