"""Masks of one object or class, however they were saved, as 0 background, 1 object, 255 ignore.

The one reader of such masks: of `hdmnet.predict`, of `Segmenter.fit`, and of data sets with a mask per class. Masks
whose values name several classes are read by `masks.read_mask`.

Which value is the object is told from those that there are:

    0 and one other, or one alone                    the other: 0/1, 0/255, 0/5; all of it; nothing of it
    one small number (under 64), 255 and 0           the number; 255 is ignored, as in VOC; 1 and 255 without 0 likewise
    the same, the number on a stray pixel or two     255
    more, small numbers more often than bright ones  refused: several classes, unless there are too many for that
    more                                             soft: from half of full brightness on; refused where all are bright
                                                     and not equally so, as nothing is background then

Of RGB one colour on black is taken, from half of its brightness on; stray pixels that are nearly black, such as
(0, 1, 1) in masks of FSS-1000, are black. So is alpha that varies, from half of the largest on (a cut-out), unless
what is seen has one colour on black, too (an overlay, or a mask that was turned on nothing).

Of a palette the colours tell, as a viewer shows them, and not the order of its entries, which programs change: it is
read as grey, RGB or RGBA. Only where VOC's colours say that the values are classes, or a value and 255 have two
colours on black, it is the values.

Dimension letters: h w size of a mask, C channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hdmnet.data.io.arrays import IGNORE
from hdmnet.data.io.masks import voc_palette
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
_FAINT = 16  # alpha of less than this part of the largest is a lossy compression's nothing
_LEVEL = 0.875  # of the brightest: what is darker has another brightness, and not that of a JPEG's noise
_DIM = 32  # of 255: in a palette, how far an entry may be off the shades of one colour: fewer entries are rounder ones


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
    if picture.mode in ("P", "PA"):
        return turn(_palette_mask(picture, name), turned)
    if picture.mode in ("1", "L", "RGB") and np.any(picture.info.get("transparency", 0)):
        picture = picture.convert("RGBA" if picture.mode == "RGB" else "LA")  # a colour is transparent, and not black
    elif picture.mode not in ("1", "L", "LA", "RGB", "RGBA", "F") and not picture.mode.startswith("I"):
        picture = picture.convert("RGB")  # CMYK and the like
    return turn(object_mask(np.asarray(picture), name), turned)


def _palette_mask(picture: Image.Image, name: str) -> UInt8Array:
    """The mask (h, w) of a picture with a palette, by the colours that a viewer shows."""
    shown = np.asarray(picture.convert("RGBA"))
    if picture.mode == "PA":
        return object_mask(shown, name)
    values = np.asarray(picture)
    used = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
    table = np.zeros((256, 4), dtype=np.int16)
    table[values.ravel()] = shown.reshape(-1, 4)
    colours = table[used]
    if len(used) > 1 and (colours == colours[0]).all():
        raise DatasetError(
            f"{name} holds {len(used)} values and a palette that shows them in one colour: save it as grey, 0 and 255"
        )
    if _are_classes(used, colours):
        return object_mask(values, name, indices=True)
    solid = colours[colours[:, 3] >= colours[:, 3].max() / 2, :3]
    if len(solid) <= _MOST_CLASSES and not _are_shades(solid):  # more: a photograph, cut out
        raise DatasetError(f"{name} holds several colours: expected one on black, for one class")
    if (colours[:, 3] != colours[0, 3]).any():
        return object_mask(shown, name)
    if (colours[:, :3] == colours[:, :1]).all() and (colours[:, 0] != used).any():  # shades, not numbers of classes
        return _bright(shown[..., 0], colours[:, 0].max() / 2, name)
    return object_mask(shown[..., :3], name)


def _are_classes(used: NDArray[Any], colours: NDArray[Any]) -> bool:
    """Whether the values of a palette's picture name classes, and 255 what is ignored.

    Args:
        used: (n,) the values, ascending.
        colours: (n, 4) int16 RGBA of each.
    """
    visible = (colours[:, :3] > 0).any(axis=1) & (colours[:, 3] > 0)
    if (visible != (used > 0)).any():
        return False
    others, their_colours = used[visible], colours[visible, :3]
    if (their_colours == np.reshape(voc_palette(), (-1, 3))[others]).all():
        return True
    return _is_number_and_ignored(others) and not _are_shades(their_colours)


def _are_shades(colours: NDArray[Any]) -> bool:
    """Whether colours (n, 3) int16 lie between black and the brightest of them."""
    brightness = colours.max(axis=1, keepdims=True, initial=0)
    most = int(brightness.max(initial=0))
    line = brightness / max(most, 1) * colours[brightness[:, 0].argmax()] if len(colours) else colours
    return bool((np.abs(colours - line) <= np.maximum(_SPREAD * brightness, _DIM)).all())


def object_mask(array: NDArray[Any], name: str, *, indices: bool = False) -> UInt8Array:
    """Make a mask of stored values.

    Args:
        array: (h, w) or (h, w, C) with 1 to 4 channels: bool, integers, or floats in [0, 1].
        name: What to call it in messages.
        indices: Values are class indices, hence never soft.

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
    colours = array[..., : 3 if channels >= 3 else 1]
    if channels in (2, 4) and array[..., -1].min() != array[..., -1].max():
        alpha = array[..., -1]
        seen = alpha > alpha.max() / _FAINT
        # Where some of it is not seen at all it is a cut-out, or drawn on nothing; else an overlay, whose colours tell.
        if not _show_one_on_black(colours[seen]) and (not seen.all() or (colours == colours[0, 0]).all()):
            return _bright(alpha, alpha.max() / 2, name)
        colours = np.where(seen[..., None], colours, 0)
    brightness, grey = colours.max(axis=2), (colours == colours[..., :1]).all(axis=2)
    dark = ~grey & (brightness < _NEARLY_BLACK * _unit(brightness))
    if dark.any() and not brightness[~dark].any():
        return np.asarray(brightness)  # small numbers in a channel or two
    if dark.any():
        colours, brightness, grey = np.where(dark[..., None], 0, colours), np.where(dark, 0, brightness), grey | dark
    if grey.all():
        return np.asarray(colours[..., 0])
    coloured = _bright(brightness, brightness.max() / 2, name).astype(bool)
    # By shares of the brightest channel: what lies between black and the one colour, in a soft edge, has its hue.
    shares = np.unique(colours[coloured].reshape(-1, 3), axis=0).astype(np.float64)
    shares /= shares.max(axis=1, keepdims=True)
    if float((shares.max(axis=0) - shares.min(axis=0)).max()) > _SPREAD:
        raise DatasetError(f"{name} holds several colours: expected one on black, for one class")
    return np.asarray(coloured, dtype=np.uint8)


def _show_one_on_black(colours: NDArray[Any]) -> bool:
    """Whether colours (n, C) are black and shades of one other, few enough for no photograph."""
    codes = colours.astype(np.int64) @ (1 << np.arange(0, 16 * colours.shape[1], 16))  # far faster than rows
    few = colours[np.unique(codes, return_index=True)[1]].astype(np.int64) // _unit(colours)
    brightness = few.max(axis=1)
    both = brightness.min() < _NEARLY_BLACK <= brightness.max() / 2
    return bool(both) and len(few) <= _MOST_CLASSES and _are_shades(few)


def _bright(brightness: NDArray[Any], half: float, name: str) -> UInt8Array:
    """What is as bright (h, w) as half of the brightest, 0/1; refused where all is, and not equally."""
    mask = np.asarray(brightness >= max(half, 1), dtype=np.uint8)
    least, most = int(brightness.min()), int(brightness.max())
    if mask.all() and least < _LEVEL * most:
        raise DatasetError(
            f"{name} has no background: its values go from {least} to {most}, all of them bright: save it as 0 and 255"
        )
    return mask


def _is_number_and_ignored(others: NDArray[Any]) -> bool:
    """Whether the values but 0, ascending, are a small number and 255."""
    return len(others) == 2 and int(others[0]) < _SMALL and int(others[1]) == IGNORE


def _one_class(values: NDArray[Any], name: str, *, indices: bool) -> UInt8Array:
    """Integers (h, w) to 0/1/255, by the rules in this file's head."""
    found, counts = np.unique(values, return_counts=True)
    others = found[found > 0]
    if len(others) <= 1:
        return (values > 0).astype(np.uint8)
    if _is_number_and_ignored(others):
        if found[0] > 1:
            raise DatasetError(
                f"{name} holds {found[0]} and {IGNORE} and no 0, so which of them is the object cannot be told: save "
                "it as 0 and 255, or as 0, 1 and 255 for what is ignored"
            )
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
    return _bright(values, _HALF * unit, name)


def _unit(values: NDArray[Any]) -> int:
    """What a step of 8 bits is in integers of 8 or 16."""
    return 1 if int(values.max()) <= IGNORE else 256
