"""Masks as files: reading and writing.

A mask is (H, W) uint8 in the frame of the stored pixels of its picture: 0 background, 1..C the class, 255 ignore. On
disk it is a palette or grey PNG whose *index* is the class; colours (RGB) are refused, as reading them as grey would
give wrong labels silently.
"""

from __future__ import annotations

import functools
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image

from hdmnet.data.io.pictures import MAX_PIXELS, PNG_END, decode, read_content
from hdmnet.runtime.atomic import replacing
from hdmnet.runtime.errors import DatasetError

if TYPE_CHECKING:
    from hdmnet.data.io.arrays import UInt8Array


def read_mask(path: str | Path) -> UInt8Array:
    """Read a mask as class indices: of a palette PNG the indices and not the colours, of a grey PNG its values.

    Returns:
        (H, W) uint8, values as stored.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read or holds colours instead of indices; one line that names the path.
    """
    indices = _decode_indices(path)
    if indices is not None:
        return indices
    mask = decode(path, "mask")
    if mask.mode not in ("P", "L", "1"):
        raise DatasetError(
            f"mask {path} is a picture of mode {mask.mode}, expected class indices (mode P or L): "
            "save it as a palette or 8-bit grey PNG whose pixel values are the class indices"
        )
    if mask.format == "JPEG":
        raise DatasetError(f"mask {path} is a JPEG, whose compression changes indices: save it as a PNG")
    return np.array(mask, dtype=np.uint8)


def _decode_indices(path: str | Path) -> UInt8Array | None:
    """Decode an 8-bit palette or grey PNG by OpenCV to (H, W) uint8 indices; None leaves the file to Pillow.

    The two kinds differ in one byte of the header and in the chunks before the data. As OpenCV applies palettes, it is
    given every file as a grey one. What it decodes is right: it checks the sums of the data, as Pillow does.
    """
    content = read_content(path)
    header = content[12:29]  # the chunk's name, width, height, depth, colour type, three methods
    checksum, data = int.from_bytes(content[29:33], "big"), content.find(b"IDAT") - 4
    intact = zlib.crc32(header) == checksum and data > 0 and content.endswith(PNG_END)
    pixels = int.from_bytes(header[4:8], "big") * int.from_bytes(header[8:12], "big")
    if not intact or header[12:14] not in (b"\x08\x00", b"\x08\x03") or pixels > MAX_PIXELS:
        return None
    header = header[:13] + b"\x00" + header[14:]
    grey = content[:12] + header + zlib.crc32(header).to_bytes(4, "big") + content[data:]
    mask = cv2.imdecode(np.frombuffer(grey, np.uint8), cv2.IMREAD_UNCHANGED)
    return mask if mask is not None and mask.ndim == 2 else None  # type: ignore[return-value]


def read_palette(path: Path) -> UInt8Array | None:
    """Colours that a viewer shows of a mask's values, (n, 3) uint8 RGB of 0..n-1; None of a mask without a palette.

    A palette that shows each value as the grey of that number says nothing and is none.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read; one line that names the path.
    """
    picture = decode(path, "mask", header_only=True)
    if picture.mode != "P":
        return None
    if picture.format == "PNG" and picture.palette is not None:
        colours = bytes(picture.palette.getdata()[1])  # RGB; of other formats only decoding tells
    else:
        colours = bytes(decode(path, "mask").getpalette("RGB") or ())
    palette = np.frombuffer(colours[: len(colours) // 3 * 3], dtype=np.uint8).reshape(-1, 3)
    return None if (palette == np.arange(len(palette))[:, None]).all() else palette


@functools.cache
def voc_palette() -> tuple[int, ...]:
    """The colour map of PASCAL VOC, which shows a mask's classes in any viewer: RGB of each of the 256 indices."""
    palette: list[int] = []
    for index in range(256):
        # Bits 0, 3, 6 of the index are red's highest bits, and so on: so VOC's development kit defines it.
        palette += [sum(((index >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)]
    return tuple(palette)


def write_mask(path: Path, mask: UInt8Array) -> None:
    """Write a mask (H, W) uint8 as a palette PNG, whole or not at all; the folder is made if needed."""
    picture = Image.fromarray(mask)
    picture.putpalette(voc_palette())  # mode L becomes P, the values stay
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG")
