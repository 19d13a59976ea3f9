"""Pictures and masks as files: reading, writing, and painting masks from the annotations of COCO and SBD.

A mask is (H, W) uint8 in the frame of the stored pixels of its picture: 0 background, 1..C the class, 255 ignore. On
disk it is a palette or grey PNG whose *index* is the class; colours (RGB) are refused, as reading them as grey would
give wrong labels silently.
"""

from __future__ import annotations

import os
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image

from hdmnet.atomic import replacing
from hdmnet.data.segmentations import check_polygons, run_lengths
from hdmnet.data.source import IGNORE  # not from `types`: workers need no torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import BinaryIO

    import numpy.typing as npt

    from hdmnet.data.source import UInt8Array

MAX_CLASS = IGNORE - 1
#: The values of `--crowd`, and what each paints; None = the annotation's own class.
CROWD_VALUES: dict[str, int | None] = {"ignore": IGNORE, "zero": 0, "class": None}

_TAIL = 1024
_MOST_PIXELS = 128_000_000  # the largest photographs have 100 million; a header of some bytes can promise any number
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB\x60\x82"


def read_image(path: str | Path) -> UInt8Array:
    """Read a picture as RGB, whatever its mode; transparency is dropped.

    The EXIF rotation is not applied: the masks of VOC and COCO are drawn on the stored pixels. OpenCV decodes
    whole, plain JPEGs, to the pixels that Pillow gives in two thirds of its time; Pillow all else.

    Args:
        path: The picture.

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
        raise ValueError(f"picture {path} has mode {picture.mode} (over 8 bits a channel): convert it to 8-bit RGB")
    if "transparency" in picture.info:
        picture = picture.convert("RGBA")  # Pillow warns when a palette with transparency goes to RGB in one step
    if picture.mode != "RGB":
        picture = picture.convert("RGB")
    return np.asarray(picture)  # Pillow's bytes as they are


def read_mask(path: str | Path) -> UInt8Array:
    """Read a mask as class indices: of a palette PNG the indices and not the colours, of a grey PNG its values.

    Args:
        path: The mask, a PNG of mode P, L or 1.

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
        raise ValueError(
            f"mask {path} is a picture of mode {mask.mode}, expected class indices (mode P or L): "
            "save it as a palette or 8-bit grey PNG whose pixel values are the class indices"
        )
    if mask.format == "JPEG":
        raise ValueError(f"mask {path} is a JPEG, whose compression changes indices: save it as a PNG")
    return np.array(mask, dtype=np.uint8)


def read_size(path: str | Path) -> tuple[int, int]:
    """Read the stored size of a picture from its header, and see that the file is not cut short.

    Args:
        path: The picture.

    Returns:
        (H, W) in pixels, EXIF rotation not applied.

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
    marks = {"JPEG": _JPEG_END, "PNG": _PNG_END}
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
                if picture.width * picture.height > _MOST_PIXELS:
                    raise ValueError(f"{picture.width * picture.height:,} pixels, expected at most {_MOST_PIXELS:,}")
                if not header_only:
                    picture.load()
                return picture
    except FileNotFoundError:
        raise FileNotFoundError(f"{what} {path} is missing: restore it, or take its id off the list") from None
    except Exception as error:  # what Pillow raises depends on the byte that is damaged
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{what} {path} cannot be read ({reason}): replace the file by a whole one") from None


def _refuse_other_kinds(path: str | Path, what: str) -> None:
    """Refuse folders, pipes and devices: opening a pipe would wait for somebody to write."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{what} {path} cannot be read (it is no file): replace it by a picture")


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
            plain = depth == b"\x08" and channels in (b"\x01", b"\x03") and height * width <= _MOST_PIXELS
        position += 2 + int.from_bytes(length, "big")
        if marker == b"\xda":
            scan = content[position:]
            # Within the data a 0 follows every 255; anything else there is a marker, which leaves the file to Pillow.
            return plain and scan.endswith(_JPEG_END) and scan.count(b"\xff") == scan.count(b"\xff\x00") + 1
    return False


def _decode_plain_jpeg(path: str | Path) -> UInt8Array | None:
    """Decode a plain JPEG by OpenCV to (H, W, 3) RGB; None leaves the file to Pillow."""
    content = _content(path)
    if not (content.startswith(_JPEG_START) and _is_plain_jpeg(content)):
        return None
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    # In place; IMREAD_COLOR_RGB would save 5 % of the decoding, but OpenCV 4.9 does not have it.
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)  # type: ignore[return-value]


def _decode_indices(path: str | Path) -> UInt8Array | None:
    """Decode an 8-bit palette or grey PNG by OpenCV to (H, W) uint8 indices; None leaves the file to Pillow.

    The two kinds differ in one byte of the header and in the chunks before the data. As OpenCV applies palettes, it is
    given every file as a grey one. What it decodes is right: it checks the sums of the data, as Pillow does.
    """
    content = _content(path)
    header = content[12:29]  # the chunk's name, width, height, depth, colour type, three methods
    checksum, data = int.from_bytes(content[29:33], "big"), content.find(b"IDAT") - 4
    intact = zlib.crc32(header) == checksum and data > 0 and content.endswith(_PNG_END)
    pixels = int.from_bytes(header[4:8], "big") * int.from_bytes(header[8:12], "big")
    if not intact or header[12:14] not in (b"\x08\x00", b"\x08\x03") or pixels > _MOST_PIXELS:
        return None
    header = header[:13] + b"\x00" + header[14:]
    grey = content[:12] + header + zlib.crc32(header).to_bytes(4, "big") + content[data:]
    mask = cv2.imdecode(np.frombuffer(grey, np.uint8), cv2.IMREAD_UNCHANGED)
    return mask if mask is not None and mask.ndim == 2 else None  # type: ignore[return-value]


def _content(path: str | Path) -> bytes:
    """All bytes of a file; none if it cannot be read, for then Pillow's error is the one to raise."""
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            return file.read()
    except OSError:
        return b""


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; of a pipe what is in it now, which is nothing."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def voc_palette() -> list[int]:
    """The colour map of PASCAL VOC, which shows a mask's classes in any viewer.

    Returns:
        768 integers in 0..255: red, green, blue of each of the 256 indices.
    """
    palette = []
    for index in range(256):
        # Bits 0, 3, 6 of the index are red's highest bits, and so on: so VOC's development kit defines it.
        palette += [sum(((index >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)]
    return palette


def write_mask(path: Path, mask: UInt8Array) -> None:
    """Write a mask as a palette PNG, whole or not at all: a stopped run leaves no half-written mask under its name.

    Args:
        path: Where to; the folder is made if needed.
        mask: (H, W) uint8 class indices.
    """
    picture = Image.fromarray(mask)
    picture.putpalette(voc_palette())  # mode L becomes P, the values stay
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG")


def is_complete_png(path: Path) -> bool:
    """Whether a file exists and ends as a PNG does, so that a truncated one counts as unfinished.

    Args:
        path: The file.

    Returns:
        True if its last 12 bytes are the PNG's end mark.
    """
    try:
        with path.open("rb") as file:
            file.seek(-len(_PNG_END), os.SEEK_END)
            return file.read() == _PNG_END
    except OSError:  # missing, or shorter than the mark
        return False


def category_values(categories: Iterable[Mapping[str, Any]]) -> dict[int, int]:
    """Number the categories of an instances file: class = position, from 1, in ascending category id.

    Args:
        categories: The `categories` of a COCO instances file.

    Returns:
        Class value of every category id.

    Raises:
        ValueError: If there is none, or there are more than fit in 8 bits.
    """
    ids = sorted({int(category["id"]) for category in categories})
    if not 1 <= len(ids) <= MAX_CLASS:
        raise ValueError(f"found {len(ids)} categories, expected 1 to {MAX_CLASS}, as class {IGNORE} means ignore")
    return {category: value for value, category in enumerate(ids, start=1)}


def decode_segmentation(segmentation: Any, height: int, width: int) -> npt.NDArray[np.bool_]:
    """Decode a COCO segmentation exactly as pycocotools' `annToMask` does.

    Args:
        segmentation: A list of polygons [x1, y1, x2, y2, ...], whose union it is, in pixels of the original picture; or
            a run-length encoding {"size": [H, W], "counts": list of int (uncompressed) | str (compressed)}.
        height: H of the picture.
        width: W of the picture.

    Returns:
        (H, W) bool.

    Raises:
        ValueError: If it is malformed or has another size than the picture.
    """
    from pycocotools import mask as coco_mask

    if isinstance(segmentation, list):
        if not segmentation:
            return np.zeros((height, width), dtype=bool)  # an annotation without a part: pycocotools would fail
        check_polygons(segmentation)
        code = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation, dict) and {"size", "counts"} <= segmentation.keys():
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(f"its run-length code has size {segmentation['size']}, its picture [{height}, {width}]")
        counts = segmentation["counts"]
        lengths = counts if isinstance(counts, list) else run_lengths(counts)
        if not all(type(length) is int and length >= 0 for length in lengths):
            raise ValueError("its run lengths are no integers of at least 0")
        if sum(lengths) != height * width:
            raise ValueError(f"its run lengths add up to {sum(lengths)}, expected {height * width}")
        code = (
            coco_mask.frPyObjects(segmentation, height, width)
            if isinstance(counts, list)
            else {"size": [height, width], "counts": counts}
        )
    else:
        raise ValueError("its segmentation is neither polygons nor a run-length code")
    with warnings.catch_warnings():
        # pycocotools lacks the `copy` keyword that NumPy 2 asks of `__array__`; the result is right all the same.
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        decoded: npt.NDArray[np.bool_] = coco_mask.decode(code).astype(bool)
    return decoded


def paint_annotations(
    annotations: Sequence[Mapping[str, Any]], size: tuple[int, int], values: Mapping[int, int], crowd: str = "ignore"
) -> UInt8Array:
    """Paint a picture's annotations to one mask, in the order given, later ones over earlier ones.

    Args:
        annotations: COCO annotations: `segmentation`, `category_id`, and if any `iscrowd`, `id`.
        size: (H, W) of the picture.
        values: Class value of every category id, see `category_values`.
        crowd: What a crowd region paints: "ignore" 255, "zero" background, "class" its class.

    Returns:
        (H, W) uint8: 0, 1..C, 255.

    Raises:
        ValueError: If a category is unknown or a segmentation malformed; the line names the annotation.
    """
    mask = np.zeros(size, dtype=np.uint8)
    for annotation in annotations:
        name = f"annotation {annotation.get('id', '?')}"
        category = annotation.get("category_id")
        if not isinstance(category, int) or category not in values:
            raise ValueError(f"{name} has category {category!r}, not among the file's {len(values)} categories")
        crowd_value = CROWD_VALUES[crowd] if annotation.get("iscrowd") else None
        try:
            region = decode_segmentation(annotation.get("segmentation"), *size)
        except Exception as error:  # pycocotools raises bare Exception, TypeError and more on malformed input
            raise ValueError(f"{name} cannot be decoded: {' '.join(str(error).split())}") from None
        mask[region] = values[category] if crowd_value is None else crowd_value
    return mask


def read_sbd(file: str | Path | BinaryIO, name: str) -> UInt8Array:
    """Read a class segmentation of SBD, the Semantic Boundaries Dataset.

    Args:
        file: A `dataset/cls/*.mat`: its path or its bytes as a stream.
        name: What to call it in an error.

    Returns:
        (H, W) uint8: 0 background, 1..20 the VOC class.

    Raises:
        ValueError: If it is no such file; one line that names it.
    """
    from scipy.io import loadmat

    try:
        mask = np.asarray(loadmat(file, variable_names=["GTcls"])["GTcls"][0, 0]["Segmentation"])
    except Exception as error:  # scipy raises a dozen types on damaged files
        reason = " ".join(str(error).split())
        raise ValueError(f"{name} holds no readable GTcls.Segmentation ({reason}): unpack SBD again") from None
    if mask.ndim != 2 or mask.size == 0 or mask.min() < 0 or mask.max() > 20:
        values = f"{mask.min()}..{mask.max()}" if mask.size else "none"
        raise ValueError(
            f"{name}: GTcls.Segmentation has shape {mask.shape} and values {values}, expected (H, W) and 0..20: "
            "unpack SBD again"
        )
    return mask.astype(np.uint8)
