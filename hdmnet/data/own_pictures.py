"""A user's own pictures and masks, of whatever kind, as what the network takes: RGB as a viewer shows it, and 0/1/255.

Unlike those of the benchmarks (`hdmnet/data/masks.py`, stored pixels), pictures are turned as their EXIF orientation
says, and 16-bit ones become 8-bit ones by their high byte. All errors are one line that names the picture.

Dimension letters: H0, W0 size of a picture as a viewer shows it, h w size of a mask.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from hdmnet.data.folder_files import exif_orientation, orientation, read_upright, turn
from hdmnet.data.masks import decode
from hdmnet.data.source import IGNORE, UInt8Array

_HALF = 128  # of 255: where a soft mask turns to foreground

_log = logging.getLogger(__name__)


def read_picture(image: Any) -> tuple[UInt8Array, int]:
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
        turned = _orientation(image)
        return turn(_to_rgb(_pil_array(image, "picture"), "picture"), turned), turned
    return _to_rgb(_plain_array(image, "picture"), "picture"), 1


def read_mask(mask: Any, picture: UInt8Array, turned: int = 1, *, name: str = "mask") -> UInt8Array:
    """Read where the object is in a support picture.

    Files may be grey or palette PNGs with one class (0/1, 0/255, 0/5, with 255 as ignore beside another value), soft
    masks, JPEGs, black with one colour, or cut-outs whose alpha tells; arrays (h, w) alike, bool, or float in [0, 1].

    Args:
        mask: A path, PIL image, array, tensor; or a box x0, y0, x1, y1 in the pixels of the picture as shown, the
            second corner not included.
        picture: (H0, W0, 3), from `read_picture`.
        turned: The picture's EXIF orientation, from `read_picture`: a mask whose shape tells that it was drawn on the
            stored pixels is turned likewise. Where both fit it is taken as drawn on the picture as shown, and a log
            line says so.
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
    if isinstance(mask, str | Path):
        values = _file_mask(_existing(mask, "mask"), name)
    elif isinstance(mask, Image.Image):
        values = turn(_binary(_pil_array(mask, name), name, palette=mask.mode == "P"), _orientation(mask))
    else:
        values = _binary(_plain_array(mask, name), name)
    if not (values == 1).any():
        raise ValueError(f"{name} is empty: expected the object marked in it")
    return _fit(values, size, turned, name)


def _existing(path: str | Path, what: str) -> Path:
    """The path, `~` expanded, of a file that is there."""
    found = Path(path).expanduser()
    if not found.is_file():
        raise FileNotFoundError(f"{what} {path} not found; expected the path of a picture file")
    return found


# ----------------------------------------------------------------------------------------------------------- pictures


def _orientation(picture: Image.Image) -> int:
    """EXIF orientation (1..8) of a PIL image."""
    picture.load()  # turns a TIFF, which then has none any more
    return exif_orientation(picture)


def _pil_array(picture: Image.Image, name: str) -> NDArray[Any]:
    """Stored pixels of a PIL image: indices of a palette only for masks, else colours."""
    if picture.mode == "P" and name.startswith("picture"):
        picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    elif picture.mode not in ("1", "L", "P", "LA", "RGB", "RGBA", "F") and not picture.mode.startswith("I"):
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
        raise ValueError(f"{name} is a {type(values).__name__}: expected a path, a PIL image, an array or a tensor")
    if array.ndim not in (2, 3) or 0 in array.shape or array.dtype.kind not in "buif":
        raise ValueError(f"{name} has shape {array.shape} and type {array.dtype}: expected numbers, (H, W) or colours")
    return array


def _to_rgb(array: NDArray[Any], name: str) -> UInt8Array:
    """(H, W), or (H, W, C) with 1 to 4 channels, to (H, W, 3) uint8."""
    channels = array[..., None] if array.ndim == 2 else array
    if channels.shape[2] not in (1, 2, 3, 4):
        raise ValueError(f"{name} has shape {array.shape}: expected 1, 3 or 4 channels, last (tensors: first)")
    channels = channels[..., : 1 if channels.shape[2] < 3 else 3]  # without alpha
    return np.ascontiguousarray(np.broadcast_to(_to_uint8(channels, name), (*channels.shape[:2], 3)))


def _to_uint8(values: NDArray[Any], name: str) -> UInt8Array:
    """Values of any type to 8 bits; of 16 the high byte, as Pillow does with 16-bit RGB."""
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind == "f":
        if not (low >= 0 and high <= 1):  # also NaN
            raise ValueError(f"{name} holds floats from {low:g} to {high:g}: expected [0, 1], or uint8")
        return np.asarray(np.rint(values * 255), dtype=np.uint8)
    if values.dtype.kind == "b":
        return np.asarray(values, dtype=np.uint8) * np.uint8(255)
    if low < 0 or high > 65535:
        raise ValueError(f"{name} holds values from {low:g} to {high:g}: expected 8 or 16 bits")
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
        raise ValueError(
            f"{name}: {corners} holds no pixel of a picture of {size[0]}x{size[1]} (HxW): expected x0,y0,x1,y1 in "
            "pixels, x0 < x1, y0 < y1"
        )
    return mask


def _file_mask(path: Path, name: str) -> UInt8Array:
    """Read a mask file as a viewer shows it: (h, w) uint8 0/1/255."""
    picture = decode(path, "mask")
    indices = picture.mode == "P"
    if indices and _is_grey(picture.getpalette("RGB")):
        picture, indices = picture.convert("L"), False  # grey shades kept as a palette: what it shows
    return turn(_binary(_pil_array(picture, name), name, palette=indices), orientation(path))


def _is_grey(palette: Sequence[int] | None) -> bool:
    colours = np.array(palette or [0, 0, 0]).reshape(-1, 3)
    return bool((colours == colours[:, :1]).all())


def _binary(array: NDArray[Any], name: str, *, palette: bool = False) -> UInt8Array:
    """Stored values (h, w) or (h, w, C) to 0 background, 1 object, 255 ignore."""
    if array.ndim == 3:
        array = _one_channel(array, name)
    if array.dtype.kind == "f":
        return (np.asarray(_to_uint8(array, name)) >= _HALF).astype(np.uint8)
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    return _one_class(array, name, palette=palette)


def _one_channel(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Of a mask with channels (h, w, C) the one that tells: alpha where it varies, grey, or where the colour is."""
    channels = array.shape[2]
    if channels in (2, 4) and array[..., -1].min() != array[..., -1].max():
        return np.asarray(array[..., -1] > (0.5 if array.dtype.kind == "f" else np.iinfo(array.dtype).max // 2))
    colours = array[..., : 3 if channels >= 3 else 1]
    if channels > 4 or (colours == colours[..., :1]).all():
        if channels > 4:
            raise ValueError(f"{name} has {channels} channels: expected one, or RGB or RGBA")
        return np.asarray(colours[..., 0])
    coloured = colours.max(axis=2) >= (0.5 if array.dtype.kind == "f" else np.iinfo(array.dtype).max // 4)
    found = np.unique(colours[coloured].reshape(-1, 3), axis=0) if coloured.any() else colours[:0, 0]
    spread = float((found.max(axis=0) - found.min(axis=0)).max()) if len(found) else 0.0
    # A JPEG's one colour scatters a little; two that a person would choose are further apart.
    if spread > (0.25 if array.dtype.kind == "f" else np.iinfo(array.dtype).max // 4):
        raise ValueError(f"{name} holds {len(found)} colours: expected one on black, for one class")
    return np.asarray(coloured)


def _one_class(values: NDArray[Any], name: str, *, palette: bool) -> UInt8Array:
    """Integer values (h, w) to 0/1/255: which value is the object, is told from those that there are."""
    found, counts = np.unique(values, return_counts=True)
    classes = [int(value) for value in found if value not in (0, IGNORE)]
    if not classes:  # only 0 and 255
        only: UInt8Array = (values == IGNORE).astype(np.uint8)
        return only
    if len(classes) == 1:
        mask: UInt8Array = (values == classes[0]).astype(np.uint8)
        mask[values == IGNORE] = IGNORE
        return mask
    # Several grey values: a soft mask or a JPEG lies near 0 and its maximum, class indices are small numbers.
    half = _HALF << 8 if found[-1] > IGNORE else _HALF
    bright = int(counts[found >= half].sum())
    if palette or bright <= int(counts[(found > 0) & (found < half)].sum()):
        shown = ", ".join(map(str, classes[:5])) + (" …" if len(classes) > 5 else "")
        raise ValueError(f"{name} holds {len(classes)} classes ({shown}): expected one, give each class its own mask")
    return (values >= half).astype(np.uint8)


def _fit(mask: UInt8Array, size: tuple[int, ...], turned: int, name: str) -> UInt8Array:
    """See that a mask has the picture's shape, maybe scaled; turn one that was drawn on the stored pixels."""
    stored = (size[1], size[0]) if turned >= 5 else size
    if _same_shape(mask.shape, size):
        if turned != 1 and _same_shape(mask.shape, stored):
            _log.warning("%s: its picture is turned by EXIF; taken as drawn on the picture as a viewer shows it", name)
        return mask
    if _same_shape(mask.shape, stored):
        return turn(mask, turned)
    raise ValueError(
        f"{name} is {mask.shape[0]}x{mask.shape[1]} (HxW) but its picture {size[0]}x{size[1]}: expected the same size, "
        "or the same shape at another scale"
    )


def _same_shape(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two sizes (H, W) are equal up to scale, a pixel of rounding allowed."""
    return abs(one[0] * other[1] - one[1] * other[0]) <= max(*one, *other)
