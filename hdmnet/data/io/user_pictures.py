"""A user's pictures and masks, of any kind, as the network takes them: RGB as a viewer shows it, and 0/1/255.

Unlike those of the benchmarks (`hdmnet/data/io/masks.py`, stored pixels), pictures are turned as their EXIF orientation
says, and 16-bit ones become 8-bit ones by their high byte. All errors are one line that names the picture.

Dimension letters: H0, W0 size of a picture as a viewer shows it, h w size of a mask.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from hdmnet.data.io.arrays import UInt8Array
from hdmnet.data.io.object_masks import object_mask, pil_object_mask, read_object_mask
from hdmnet.data.io.upright import SIDEWAYS, exif_orientation, fit_mask, orientation, read_upright, same_shape, turn
from hdmnet.runtime.errors import DatasetError, MissingFileError
from hdmnet.runtime.home import expand_home

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LabelledMask:
    """A mask that needs no reading any more.

    Attributes:
        values: (H0, W0) uint8: 1 the object, 0 all else, 255 ignore.
        file: Where it is from.
    """

    values: UInt8Array
    file: Path


def read_user_picture(image: Any) -> tuple[UInt8Array, int]:
    """Read a picture of any kind.

    Args:
        image: A path; a PIL image; an array (H0, W0), (H0, W0, 1), (H0, W0, 3) or (H0, W0, 4); or a tensor (H0, W0) or
            (C, H0, W0) with those channels. Arrays and tensors are uint8, uint16 or float in [0, 1]; alpha is dropped.

    Returns:
        (H0, W0, 3) uint8 RGB as a viewer shows it, and the EXIF orientation (1..8) that was applied; 1: none.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read or is no picture.
    """
    if isinstance(image, str | Path):
        path = _existing(image, "picture")
        return read_upright(path), orientation(path)
    if isinstance(image, Image.Image):
        image.load()  # turns a TIFF, which then has no orientation any more
        turned = exif_orientation(image)
        return turn(_to_rgb(_pil_array(image), "picture"), turned), turned
    return _to_rgb(_plain_array(image, "picture"), "picture"), 1


def read_user_mask(mask: Any, picture: UInt8Array, turned: int = 1, *, name: str = "mask") -> UInt8Array:
    """Read where the object is in a support picture.

    Files and arrays may be of any of the kinds that `hdmnet/data/io/object_masks.py` lists: 0/1, 0/255, soft, a
    palette's index, one colour on black, a cut-out; arrays (h, w) or (h, w, C).

    Args:
        mask: A path, PIL image, array, tensor; or a box x0, y0, x1, y1 in the pixels of the picture as shown, the
            second corner not included; or a `LabelledMask`.
        picture: (H0, W0, 3), from `read_user_picture`.
        turned: Its EXIF orientation, from there too: a mask whose shape tells that it was drawn on the stored pixels is
            turned likewise. Where both fit it is taken as drawn on the picture as shown, and a log line says so.
        name: What to call the mask in messages.

    Returns:
        (h, w) uint8: 0, 1 and 255 (ignore), as shown; the picture's size or that size scaled.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read, holds no or several objects, or has another shape than the picture.
    """
    size = picture.shape[:2]
    if _is_box(mask):
        return _box_mask(mask, size, name)
    if isinstance(mask, LabelledMask):
        values = mask.values
    elif isinstance(mask, str | Path):
        values = read_object_mask(_existing(mask, "mask"), name)
    elif isinstance(mask, Image.Image):
        values = pil_object_mask(mask, name)
    else:
        values = object_mask(_plain_array(mask, name), name)
    if not (values == 1).any():
        raise DatasetError(f"{name} is empty: expected the object marked in it")
    return _fit(values, size, turned, name)


def _existing(path: str | Path, what: str) -> Path:
    """The path, `~` expanded, of a file that is there."""
    found = expand_home(path)
    if not found.is_file():
        raise MissingFileError(f"{what} {path} not found; expected the path of a picture file")
    return found


# ----------------------------------------------------------------------------------------------------------- pictures


def _pil_array(picture: Image.Image) -> NDArray[Any]:
    """Stored colours of a PIL image."""
    if picture.mode == "P":
        picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    elif picture.mode not in ("1", "L", "LA", "RGB", "RGBA", "F") and not picture.mode.startswith("I"):
        picture = picture.convert("RGB")  # CMYK and the like
    return np.asarray(picture)


def _plain_array(values: Any, name: str) -> NDArray[Any]:
    """An array, or a tensor with its channels moved last."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
        array = np.asarray(values.movedim(0, -1) if values.ndim == 3 else values)
    elif isinstance(values, np.ndarray):
        array = values
    else:
        raise DatasetError(f"{name} is a {type(values).__name__}: expected a path, a PIL image, an array or a tensor")
    if array.ndim not in (2, 3) or 0 in array.shape or array.dtype.kind not in "buif":
        raise DatasetError(
            f"{name} has shape {array.shape} and type {array.dtype}: expected numbers, (H, W) or colours"
        )
    return array


def _to_rgb(array: NDArray[Any], name: str) -> UInt8Array:
    """(H, W), or (H, W, C) with 1 to 4 channels, to (H, W, 3) uint8."""
    channels = array[..., None] if array.ndim == 2 else array
    if channels.shape[2] not in (1, 2, 3, 4):
        raise DatasetError(f"{name} has shape {array.shape}: expected 1, 3 or 4 channels, last (tensors: first)")
    channels = channels[..., : 1 if channels.shape[2] < 3 else 3]  # without alpha
    return np.ascontiguousarray(np.broadcast_to(_to_uint8(channels, name), (*channels.shape[:2], 3)))


def _to_uint8(values: NDArray[Any], name: str) -> UInt8Array:
    """Values of any type to 8 bits; of 16 the high byte, as Pillow does with 16-bit RGB."""
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind == "f":
        if not (low >= 0 and high <= 1):  # also NaN
            raise DatasetError(f"{name} holds floats from {low:g} to {high:g}: expected [0, 1], or uint8")
        return np.asarray(np.rint(values * 255), dtype=np.uint8)
    if values.dtype.kind == "b":
        return np.asarray(values, dtype=np.uint8) * np.uint8(255)
    if low < 0 or high > 65535:
        raise DatasetError(f"{name} holds values from {low:g} to {high:g}: expected 8 or 16 bits")
    wide = values.dtype.itemsize > 1 and (values.dtype == np.uint16 or high > 255)
    return np.asarray(values >> 8 if wide else values, dtype=np.uint8)


# -------------------------------------------------------------------------------------------------------------- masks


def _is_box(mask: Any) -> bool:
    """Whether a mask is given as four numbers."""
    if isinstance(mask, np.ndarray | torch.Tensor):
        return tuple(mask.shape) == (4,)
    return isinstance(mask, Sequence) and not isinstance(mask, str) and len(mask) == 4


def _box_mask(box: Sequence[float], size: tuple[int, ...], name: str) -> UInt8Array:
    """(H0, W0) uint8, 1 inside a box; what of it lies outside the picture is left out."""
    x0, y0, x1, y1 = (float(value) for value in box)
    corners = f"box {x0:g},{y0:g},{x1:g},{y1:g}"
    mask = np.zeros(size, dtype=np.uint8)
    if x0 < x1 and y0 < y1:
        rows, columns = slice(max(int(y0), 0), max(-int(-y1 // 1), 0)), slice(max(int(x0), 0), max(-int(-x1 // 1), 0))
        mask[rows, columns] = 1
    if not mask.any():
        raise DatasetError(
            f"{name}: {corners} holds no pixel of a picture of {size[0]}x{size[1]} (HxW): expected x0,y0,x1,y1 in "
            "pixels, x0 < x1, y0 < y1"
        )
    return mask


def _fit(mask: UInt8Array, size: tuple[int, ...], turned: int, name: str) -> UInt8Array:
    """See that a mask has the picture's shape, maybe scaled; turn one that was drawn on the stored pixels."""
    fitted = fit_mask(mask, size, turned)
    if not same_shape(fitted.shape, size):
        raise DatasetError(
            f"{name} is {mask.shape[0]}x{mask.shape[1]} (HxW) but its picture {size[0]}x{size[1]}: expected the same "
            "size, or the same shape at another scale"
        )
    if fitted is mask and turned != 1 and (turned < SIDEWAYS or same_shape(mask.shape, size[::-1])):
        _log.warning("%s: its picture is turned by EXIF; taken as drawn on the picture as a viewer shows it", name)
    return fitted
