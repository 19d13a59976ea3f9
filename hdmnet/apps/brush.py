"""Behind the demo's page: a mask painted over a picture, and what is found with it, through `predict`'s code.

The page shows a picture made smaller and keeps the file: what the network gets is read from the file, as by `predict`,
and the mask is of the shown size, which is the picture's but for the scale. Knows nothing of Gradio.

Dimension letters: H0, W0 size of a picture as a viewer shows it, h w size at which it was painted.
"""

from __future__ import annotations

import copy
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image

from hdmnet.apps.predict import Answer, write_predictions
from hdmnet.data.io.upright import upright_size
from hdmnet.data.io.user_pictures import read_user_picture
from hdmnet.runtime.errors import InputError
from hdmnet.visual.colours import TRUTH
from hdmnet.visual.overlay import draw_overlay

if TYPE_CHECKING:
    from hdmnet.apps.segmenter import Segmenter
    from hdmnet.data.io.arrays import UInt8Array

MAX_PIXELS = 50_000_000  # of a picture: more would take gigabytes at the picture's own size
PAINT_SIDE = 800  # longest side (pixels) of what is painted on: more than any of the networks sees
BRUSH_OPACITY = 0.6  # the object stays visible under the paint


@dataclass(frozen=True)
class Example:
    """A picture and where the object is in it.

    Attributes:
        picture: The file.
        mask: (h, w) uint8, 1 where painted; the picture's shape, maybe scaled.
    """

    picture: Path
    mask: UInt8Array


def read_limited(path: Path) -> UInt8Array:
    """A picture of any kind, of a size that is no attack: (H0, W0, 3) uint8 RGB as a viewer shows it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read, or has more than `MAX_PIXELS`.
    """
    height, width = upright_size(path)  # from the header: a bomb is never unpacked
    if height * width > MAX_PIXELS:
        raise InputError(
            f"picture {path} has {height}x{width} (HxW) pixels: expected at most {MAX_PIXELS // 10**6} million, make "
            "it smaller"
        )
    return read_user_picture(path)[0]


def shown_for_brush(path: Path) -> UInt8Array:
    """A picture at the size at which it is painted on: (h, w, 3) uint8 RGB, the longest side `PAINT_SIDE`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read, or is too large.
    """
    picture = read_limited(path)
    scale = PAINT_SIDE / max(picture.shape[:2])
    width, height = (max(1, round(side * scale)) for side in (picture.shape[1], picture.shape[0]))
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, (width, height), interpolation=kind), dtype=np.uint8)


def brush_mask(layers: Sequence[UInt8Array], name: str) -> UInt8Array:
    """What was painted.

    Args:
        layers: (h, w, 4) uint8 RGBA each, transparent where nothing is.
        name: Of the picture, for the message.

    Returns:
        (h, w) uint8, 1 where the paint has at least half of the brush's opacity: a brush's rim is soft.

    Raises:
        ValueError: Nothing is painted.
    """
    threshold = round(255 * BRUSH_OPACITY / 2)
    painted = [layer[..., 3] >= threshold for layer in layers]
    if not any(one.any() for one in painted):
        raise InputError(f"nothing is painted in {name}: paint over the object first")
    return np.asarray(np.logical_or.reduce(painted), dtype=np.uint8)


def segment(
    segmenter: Segmenter, examples: Sequence[Example], queries: Sequence[Path], folder: Path, *, maps: bool
) -> Iterator[Answer]:
    """Find in the queries what was painted in the examples.

    Writes what `predict` writes, and below `examples/` the painted masks (0/255) and overlays.

    Args:
        segmenter: Left as it is, so that several pages may use it at once.
        examples: One or more.
        queries: Pictures.
        folder: Where to; made if needed.
        maps: The method's maps too.

    Yields:
        Of each query, in order, what was written or why nothing was.

    Raises:
        FileNotFoundError: A file of an example is missing.
        ValueError: There is no example or no query, or an example cannot be used.
    """
    if not examples:
        raise InputError("no picture to learn from: choose one and paint over the object in it")
    if not queries:
        raise InputError("no picture to search: choose one or more")
    pictures = [read_limited(example.picture) for example in examples]
    fitted = copy.copy(segmenter).fit(pictures, [example.mask for example in examples])
    (folder / "examples").mkdir(parents=True)
    for number, (example, picture) in enumerate(zip(examples, pictures, strict=True), start=1):
        name = folder / "examples" / f"{number}_{example.picture.stem}"
        Image.fromarray(example.mask * np.uint8(255)).save(f"{name}_mask.png")
        Image.fromarray(draw_example(picture, example.mask)).save(f"{name}_overlay.jpg", quality=90)
    yield from write_predictions(fitted, queries, folder, maps=maps, read=read_limited)


def draw_example(picture: UInt8Array, mask: UInt8Array) -> UInt8Array:
    """A picture (H0, W0, 3) with its painted mask (h, w) laid over: (H0, W0, 3) uint8 RGB."""
    whole = cv2.resize(mask, (picture.shape[1], picture.shape[0]), interpolation=cv2.INTER_NEAREST)
    colours = np.array([(0, 0, 0), TRUTH], dtype=np.uint8)
    return draw_overlay(picture, np.asarray(whole, dtype=np.uint8), colours)


def pack(folder: Path) -> Path:
    """Pack the files that `segment` wrote to a folder, without the folder's name: `results.zip` in it."""
    archive = folder / "results.zip"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with zipfile.ZipFile(archive, "w") as packed:  # stored: PNG and JPEG do not shrink
        for path in files:
            packed.write(path, path.relative_to(folder))
    return archive
