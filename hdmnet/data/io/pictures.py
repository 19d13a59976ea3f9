"""Pictures from files, decoded strictly: a damaged file is an error that names it."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image

from hdmnet.runtime.errors import DatasetError, MissingFileError

if TYPE_CHECKING:
    from hdmnet.data.io.arrays import UInt8Array

_TAIL = 1024
MAX_PIXELS = 128_000_000  # the largest photographs have 100 million; a header of some bytes can promise any number
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
PNG_END = b"\x00\x00\x00\x00IEND\xaeB\x60\x82"


def read_image(path: str | Path) -> UInt8Array:
    """Read a picture as RGB, whatever its mode; transparency is dropped.

    The EXIF rotation is not applied: the masks of VOC and COCO are drawn on the stored pixels. OpenCV decodes
    whole, plain JPEGs, to the pixels that Pillow gives in two thirds of its time; Pillow all else.

    Returns:
        (H, W, 3) uint8 RGB at stored size; not to be written to.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no readable 8-bit picture; one line that names the path.
    """
    image = _decode_plain_jpeg(path)
    if image is not None:
        return image
    picture = decode(path, "picture")
    if picture.mode.startswith(("I", "F")):
        raise DatasetError(f"picture {path} has mode {picture.mode} (over 8 bits a channel): convert it to 8-bit RGB")
    if "transparency" in picture.info:
        picture = picture.convert("RGBA")  # Pillow warns when a palette with transparency goes to RGB in one step
    if picture.mode != "RGB":
        picture = picture.convert("RGB")
    return np.asarray(picture)  # Pillow's bytes as they are


def read_size(path: str | Path) -> tuple[int, int]:
    """Read the stored size (H, W) of a picture from its header, and see that the file is not cut short.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no picture or not whole; one line that names the path.
    """
    picture = decode(path, "picture", header_only=True)
    if not _has_end_mark(path, picture.format):
        decode(path, "picture")  # some whole files have no mark either; only decoding tells
    width, height = picture.size
    return height, width


def _has_end_mark(path: str | Path, file_format: str | None) -> bool:
    """Whether a JPEG's or PNG's end mark is among the last bytes; some programs write more after it."""
    marks = {"JPEG": _JPEG_END, "PNG": PNG_END}
    with open(path, "rb") as file:
        file.seek(-min(_TAIL, os.fstat(file.fileno()).st_size), os.SEEK_END)
        return file_format in marks and marks[file_format] in file.read()


def decode(path: str | Path, what: str, *, header_only: bool = False) -> Image.Image:
    """Open a picture, and decode it unless only the header is wanted; all failures become one line."""
    _refuse_other_kinds(path, what)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large photographs are no attack here
            warnings.simplefilter("ignore", UserWarning)  # damaged notes on a picture: what counts is raised
            with Image.open(path) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise DatasetError(f"{picture.width * picture.height:,} pixels, expected at most {MAX_PIXELS:,}")
                frames = getattr(picture, "n_frames", 1) if what == "mask" and picture.format != "MPO" else 1
                if frames > 1:
                    raise DatasetError(f"it holds {frames} pictures, expected one")
                if not header_only:
                    picture.load()
                return picture
    except FileNotFoundError:
        raise MissingFileError(f"{what} {path} is missing: restore it, or take its id off the list") from None
    except Exception as error:  # what Pillow raises depends on the byte that is damaged
        reason = " ".join(str(error).split()) or type(error).__name__
        heic = Path(path).suffix.lower() in (".heic", ".heif", ".hif")
        remedy = "convert it to JPEG or PNG" if heic else "replace the file by a whole one"
        raise DatasetError(f"{what} {path} cannot be read ({reason}): {remedy}") from None


def _refuse_other_kinds(path: str | Path, what: str) -> None:
    """Refuse folders, pipes and devices: opening a pipe would wait for somebody to write."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise DatasetError(f"{what} {path} cannot be read (it is no file): replace it by a picture")


def _is_plain_jpeg(content: bytes) -> bool:
    """Whether a file is a whole baseline JPEG of 8 bits, 1 or 3 channels and one scan.

    OpenCV makes the missing part of a damaged file grey and raises nothing, hence the look at the scan's markers.
    """
    position, plain = 2, False
    while content[position : position + 1] == b"\xff":
        marker, length = content[position + 1 : position + 2], content[position + 2 : position + 4]
        if marker in (b"\xc0", b"\xc1"):  # the frame: its depth, height, width, channels
            depth, channels = content[position + 4 : position + 5], content[position + 9 : position + 10]
            height, width = (int.from_bytes(content[position + at : position + at + 2], "big") for at in (5, 7))
            plain = depth == b"\x08" and channels in (b"\x01", b"\x03") and height * width <= MAX_PIXELS
        position += 2 + int.from_bytes(length, "big")
        if marker == b"\xda":
            scan = content[position:]
            # Within the data a 0 follows every 255; anything else there is a marker, which leaves the file to Pillow.
            return plain and scan.endswith(_JPEG_END) and scan.count(b"\xff") == scan.count(b"\xff\x00") + 1
    return False


def _decode_plain_jpeg(path: str | Path) -> UInt8Array | None:
    """Decode a plain JPEG by OpenCV to (H, W, 3) RGB; None leaves the file to Pillow."""
    content = read_content(path)
    if not (content.startswith(_JPEG_START) and _is_plain_jpeg(content)):
        return None
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    # In place; IMREAD_COLOR_RGB would save 5 % of the decoding, but OpenCV 4.9 does not have it.
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)  # type: ignore[return-value]


def read_content(path: str | Path) -> bytes:
    """All bytes of a file; none if it cannot be read, for then Pillow's error is the one to raise."""
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            return file.read()
    except OSError:
        return b""


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; of a pipe what is in it now, which is nothing."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
