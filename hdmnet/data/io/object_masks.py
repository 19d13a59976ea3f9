"""Masks of one object or class, in whatever way people save them, as 0 background, 1 object, 255 ignore.

The one reader of such masks: of `hdmnet.predict`, of `Segmenter.fit`, and of data sets with a mask per class. Masks
whose values name several classes are read by `masks.read_mask`.

Which value is the object is told from those that there are:

    0 and one other, or one alone                    the other: 0/1, 0/255, 0/5; all of it; nothing of it
    one small number (under 64), 255, perhaps 0      the number; 255 is ignored, as in VOC
    the same, the number on a stray pixel or two     255
    more, in colours of a palette                    refused: several classes
    more, small numbers more often than bright ones  refused: several classes, unless there are too many for that
    more                                             soft: from half of full brightness on

Alpha that varies tells alone (a cut-out). Of RGB one colour on black is taken, from half of its brightness on; stray
pixels that are nearly black, such as (0, 1, 1) in masks of FSS-1000, are black.

Dimension letters: h w size of a mask, C channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hdmnet.data.io.arrays import IGNORE
from hdmnet.data.io.pictures import decode
from hdmnet.data.io.upright import exif_orientation, turn
from hdmnet.runtime.errors import DatasetError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from PIL import Image

    from hdmnet.data.io.arrays import UInt8Array

_HALF, _SMALL = 128, 64  # of 255, or of 65535 in their upper byte
_MOST_CLASSES = 32  # more values than this in one mask are shades, not classes
_NEARLY_BLACK = 16  # likewise
_STRAY = 1000  # a number on so many times fewer pixels than 255 is a slip
_SPREAD = 0.3  # how far two pixels of one colour may differ in a channel's share: a JPEG scatters a little


def read_object_mask(path: Path, name: str) -> UInt8Array:
    """Read a mask file, turned by its own EXIF data if it has any; `name` names it in messages.

    Returns:
        (h, w) uint8: 0, 1 and 255; maybe without any 1.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read, or marks several classes; one line that begins with the name.
    """
    return pil_object_mask(decode(path, "mask"), name)


def pil_object_mask(picture: Image.Image, name: str) -> UInt8Array:
    """The same of a PIL image of any mode: (h, w) uint8, 0, 1 and 255; raises ValueError likewise."""
    picture.load()  # turns a TIFF, which then has no orientation any more
    turned = exif_orientation(picture)
    indices = picture.mode == "P"
    if indices and _is_grey(picture.getpalette("RGB")):
        picture, indices = picture.convert("L"), False  # shades kept as a palette: what it shows
    elif picture.mode not in ("1", "L", "P", "LA", "RGB", "RGBA", "F") and not picture.mode.startswith("I"):
        picture = picture.convert("RGB")  # CMYK and the like
    return turn(object_mask(np.asarray(picture), name, indices=indices), turned)


def _is_grey(palette: list[int] | None) -> bool:
    colours = np.array(palette or [0, 0, 0]).reshape(-1, 3)
    return bool((colours == colours[:, :1]).all())


def object_mask(array: NDArray[Any], name: str, *, indices: bool = False) -> UInt8Array:
    """Make a mask of stored values.

    Args:
        array: (h, w) or (h, w, C) with 1 to 4 channels: bool, integers, or floats in [0, 1].
        name: What to call it in messages.
        indices: Values are indices of a palette in colours, hence never soft.

    Returns:
        (h, w) uint8: 0, 1 and 255.

    Raises:
        ValueError: Other channels or values than these, or several classes.
    """
    shares = array.dtype.kind == "f" and not (array == np.rint(array)).all()  # floats may be whole numbers, too
    low, high, most = array.min(), array.max(), 1 if shares else np.iinfo(np.uint16).max
    if not (low >= 0 and high <= most):  # also NaN
        raise DatasetError(
            f"{name} holds {'floats' if shares else 'values'} from {low:g} to {high:g}: expected 8 or 16 bits, or "
            "shares in [0, 1]"
        )
    array = np.rint(array * 255).astype(np.uint8) if shares else array.astype(np.uint16)
    if array.ndim == 3:
        array = _one_channel(array, name)
    elif shares:
        return (array >= _HALF).astype(np.uint8)
    return _one_class(array, name, indices=indices)


def _one_channel(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Of a mask with channels (h, w, C) the one that tells: alpha where it varies, grey, or where the colour is."""
    channels = array.shape[2]
    if channels > 4:
        raise DatasetError(f"{name} has {channels} channels: expected one, or RGB or RGBA")
    if channels in (2, 4) and array[..., -1].min() != array[..., -1].max():
        full = IGNORE if int(array[..., -1].max()) <= IGNORE else np.iinfo(np.uint16).max
        return np.asarray(array[..., -1] > full // 2, dtype=np.uint8)
    colours = array[..., : 3 if channels >= 3 else 1]
    brightness, grey = colours.max(axis=2), (colours == colours[..., :1]).all(axis=2)
    dark = ~grey & (brightness < _NEARLY_BLACK * _unit(brightness))
    if dark.any() and not brightness[~dark].any():
        return np.asarray(brightness)  # small numbers in a channel or two
    if dark.any():
        colours, brightness, grey = np.where(dark[..., None], 0, colours), np.where(dark, 0, brightness), grey | dark
    if grey.all():
        return np.asarray(colours[..., 0])
    coloured = brightness >= brightness.max() / 2
    # By shares of the brightest channel: what lies between black and the one colour, in a soft edge, has its hue.
    shares = np.unique(colours[coloured].reshape(-1, 3), axis=0).astype(np.float64)
    shares /= shares.max(axis=1, keepdims=True)
    if float((shares.max(axis=0) - shares.min(axis=0)).max()) > _SPREAD:
        raise DatasetError(f"{name} holds several colours: expected one on black, for one class")
    return np.asarray(coloured, dtype=np.uint8)


def _one_class(values: NDArray[Any], name: str, *, indices: bool) -> UInt8Array:
    """Integers (h, w) to 0/1/255, by the rules in this file's head."""
    found, counts = np.unique(values, return_counts=True)
    others = found[found > 0]
    if len(others) <= 1:
        return (values > 0).astype(np.uint8)
    if len(others) == 2 and int(others[0]) < _SMALL and int(others[1]) == IGNORE:
        stray = _STRAY * int(counts[-2]) <= int(counts[-1])
        mask: UInt8Array = (values == others[int(stray)]).astype(np.uint8)
        if stray:
            return mask
        mask[values == IGNORE] = IGNORE
        return mask
    unit = _unit(found)
    bright = int(counts[found >= _HALF * unit].sum())
    small = int(counts[(found > 0) & (found < _SMALL * unit)].sum())
    if indices or not bright or (bright <= small and len(found) <= _MOST_CLASSES):
        shown = ", ".join(str(int(value)) for value in others[:5]) + (" …" if len(others) > 5 else "")
        raise DatasetError(f"{name} holds {len(others)} classes ({shown}): expected one, give each class its own mask")
    return (values >= _HALF * unit).astype(np.uint8)


def _unit(values: NDArray[Any]) -> int:
    """What a step of 8 bits is in integers of 8 or 16."""
    return 1 if int(values.max()) <= IGNORE else 256
