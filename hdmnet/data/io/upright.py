"""A user's pictures, of any kind, turned upright; and masks turned with them.

Upright: a camera that was held on its side notes so in the EXIF data, and every viewer and annotation tool turns the
picture; so do we here, other than for VOC and COCO, whose masks are drawn on the stored pixels (`masks.read_image`).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hdmnet.data.io.pictures import decode, read_image, read_size
from hdmnet.runtime.errors import DatasetError

if TYPE_CHECKING:
    from PIL import Image

    from hdmnet.data.io.arrays import UInt8Array

_ORIENTATION = 0x0112  # the EXIF tag: 1 upright, 2..8 flipped or turned
#: EXIF orientation: from this value on height and width change places.
SIDEWAYS = 5


def read_upright(path: Path) -> UInt8Array:
    """Read a picture of any mode as RGB, turned as its EXIF data say.

    Of 16 bits the upper eight are taken, as Pillow does with colours; transparency is dropped.

    Returns:
        (H, W, 3) uint8 RGB, upright; not to be written to.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no readable picture; one line that names the path.
    """
    header = decode(path, "picture", header_only=True)
    if not header.mode.startswith("I"):
        return turn(read_image(path), _orientation(header))
    deep = np.asarray(decode(path, "picture"))
    if deep.min() < 0 or deep.max() > np.iinfo(np.uint16).max:
        raise DatasetError(f"picture {path} has values {deep.min()}..{deep.max()}, expected 8 or 16 bits: convert it")
    grey = (deep >> 8).astype(np.uint8)
    return turn(np.repeat(grey[:, :, None], 3, axis=2), _orientation(header))


def upright_size(path: Path) -> tuple[int, int]:
    """Size (H, W) of `read_upright`'s picture, from the header; refuses a file that is cut short, as that does."""
    height, width = read_size(path)
    return (width, height) if orientation(path) >= SIDEWAYS else (height, width)


def orientation(path: Path) -> int:
    """How a picture is stored, by its EXIF data: 1 upright, 2..8 flipped or turned; raises as `read_upright`."""
    return _orientation(decode(path, "picture", header_only=True))


def fit_mask(mask: UInt8Array, size: tuple[int, ...], turned: int) -> UInt8Array:
    """Turn a mask upright that was drawn on the stored pixels of a picture.

    Told by the shape: a mask of the upright picture's shape stays as it is, so a mask of a picture that is stored
    upside down, flipped, or square and turned is taken as drawn on the upright one.

    Args:
        mask: (h, w) uint8, maybe at another scale.
        size: (H, W) of the upright picture.
        turned: The picture's EXIF orientation.

    Returns:
        The mask, turned if it has the stored and not the upright shape; one of neither as it is, to be refused.
    """
    drawn_on_stored = turned >= SIDEWAYS and same_shape(mask.shape, size[::-1]) and not same_shape(mask.shape, size)
    return turn(mask, turned) if drawn_on_stored else mask


def same_shape(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two sizes (H, W) are equal up to scale, a pixel of rounding allowed."""
    return abs(one[0] * other[1] - one[1] * other[0]) <= max(*one, *other)


def turn(array: UInt8Array, value: int) -> UInt8Array:
    """Turn stored pixels, (H, W) or (H, W, 3) uint8, upright by their EXIF orientation; 5..8 change the sides."""
    if value == 1:
        return array
    if value >= SIDEWAYS:
        array = array.swapaxes(0, 1)  # 5; the others are a flip of it
    rows, columns = value in (3, 4, 7, 8), value in (2, 3, 6, 7)
    return np.ascontiguousarray(array[:: -1 if rows else 1, :: -1 if columns else 1])


def _orientation(header: Image.Image) -> int:
    # Pillow turns TIFFs itself. Without "exif" in a header Pillow would decode a whole PNG to look for more.
    return 1 if header.format == "TIFF" or "exif" not in header.info else exif_orientation(header)


def exif_orientation(picture: Image.Image) -> int:
    """Orientation 1..8 that the EXIF data of an opened picture tell; 1 where there are none or they are damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow raises many kinds on damaged EXIF data, which viewers pass over too
        return 1
    return value if value in range(1, 9) else 1
