"""Labels as annotation tools write them, one function a format: LabelMe, YOLO, Label Studio.

Polygons are of the pixels whose centres lie inside; boxes are rounded to whole pixels, one at least. Coordinates are
those of the picture as a viewer shows it, as all of these tools have them. Marks without an area (points, lines) are
left out, and a log line says so. COCO-style JSONs and masks: `hdmnet/data/datasets/folder`.

Dimension letters: H0 W0 size of a picture as a viewer shows it.
"""

from __future__ import annotations

import base64
import io
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import numpy.typing as npt
from omegaconf import OmegaConf
from PIL import Image

from hdmnet.data.io.arrays import IGNORE, BoolArray, UInt8Array
from hdmnet.data.io.colour_masks import BACKGROUND, IGNORED
from hdmnet.data.io.listing import is_picture
from hdmnet.data.io.outlines import fill_polygon
from hdmnet.data.io.pictures import MAX_PIXELS
from hdmnet.data.io.upright import fit_mask, orientation, upright_size
from hdmnet.runtime.errors import DatasetError, MissingFileError, UserError

log = logging.getLogger(__name__)

_Regions = Sequence[tuple[str, BoolArray]]
_NAME_FILES = ("data.yaml", "dataset.yaml", "classes.txt", "obj.names")
_NO_LABELS = frozenset({"classes.txt", "train.txt", "val.txt", "test.txt", "requirements.txt"})


@dataclass(frozen=True, eq=False)
class PictureLabels:
    """What is marked in a picture.

    Attributes:
        picture: The picture.
        file: Where it is said.
        masks: By class, (H0, W0) uint8: 1 the class, 0 all else, 255 ignore; each has a pixel of 1.
    """

    picture: Path
    file: Path
    masks: dict[str, UInt8Array]


def _gather(picture: Path, file: Path, regions: _Regions) -> PictureLabels:
    """Labels of a picture from its objects' classes and (H0, W0) bool each; one of no class is left out."""
    ignored: BoolArray | bool = False
    classes: dict[str, BoolArray] = {}
    for name, region in regions:
        if name.lower() in IGNORED:
            ignored = ignored | region
        elif name.lower() not in BACKGROUND and region.any():
            classes[name] = classes[name] | region if name in classes else region
    masks = {
        name: np.where(region, 1, np.where(ignored, IGNORE, 0)).astype(np.uint8) for name, region in classes.items()
    }
    return PictureLabels(picture, file, masks)


@contextmanager
def _refusing(file: Path, what: str) -> Iterator[None]:
    """Turn what a file of labels lacks or holds wrongly into one line."""
    try:
        yield
    except UserError as error:
        raise type(error)(str(error) if str(file) in str(error) else f"{file}: {error}") from None
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, OSError, OverflowError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DatasetError(f"{file} is no {what} ({reason}): export it again") from None


def _left_out(file: Path, kinds: Sequence[str]) -> None:
    if kinds:
        log.warning("%s: %s: marks without an area, left out", file, ", ".join(sorted(set(kinds))))


# -------------------------------------------------------------------------------------------------------------- shapes


def _box(start: npt.ArrayLike, end: npt.ArrayLike, size: tuple[int, int]) -> BoolArray:
    """Where a box from x, y to x, y is, (H0, W0) bool."""
    (x0, y0), (x1, y1) = np.asarray(start, dtype=np.float64).tolist(), np.asarray(end, dtype=np.float64).tolist()
    (left, right), (top, bottom) = (
        (round(one), max(round(one) + 1, round(other))) for one, other in ((x0, x1), (y0, y1))
    )
    region = np.zeros(size, dtype=bool)
    region[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
    return region


def _ellipse(
    centre: tuple[float, float], radii: tuple[float, float], degrees: float, size: tuple[int, int]
) -> BoolArray:
    """Where an ellipse is, turned clockwise, (H0, W0) bool."""
    rows, columns = np.ogrid[: size[0], : size[1]]
    x, y = columns + 0.5 - centre[0], rows + 0.5 - centre[1]
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    along, across = x * cosine + y * sine, y * cosine - x * sine
    inside: BoolArray = (along / radii[0]) ** 2 + (across / radii[1]) ** 2 <= 1
    return inside


# ------------------------------------------------------------------------------------------------------------- LabelMe


def read_labelme(file: Path, content: Mapping[str, Any]) -> PictureLabels:
    """Read a JSON of LabelMe: polygons, rectangles, circles and masks.

    Raises:
        FileNotFoundError: Its picture is missing.
        ValueError: It is malformed; one line that names the file.
    """
    with _refusing(file, "JSON of LabelMe"):
        name = PurePosixPath(str(content["imagePath"]).replace("\\", "/"))
        picture = _find_picture(file, [str(name), name.name])
        size = upright_size(picture)
        regions, others = [], []
        for shape in content["shapes"]:
            region = _labelme_region(shape, size)
            if region is None:
                others.append(str(shape["shape_type"]))
            else:
                regions.append((str(shape["label"]), region))
        _left_out(file, others)
        return _gather(picture, file, regions)


def _labelme_region(shape: Mapping[str, Any], size: tuple[int, int]) -> BoolArray | None:
    """Where a shape is, (H0, W0) bool; None of one without an area."""
    kind, points = shape.get("shape_type") or "polygon", np.array(shape["points"], dtype=float).reshape(-1, 2)
    if kind in ("polygon", "oriented_rectangle"):
        return fill_polygon(points, *size)
    if kind == "rectangle":
        return _box(points.min(axis=0), points.max(axis=0), size)
    if kind == "circle":
        radius = float(np.hypot(*(points[1] - points[0])))
        return _ellipse((points[0, 0], points[0, 1]), (max(radius, 0.5),) * 2, 0, size)
    if kind != "mask":
        return None
    (x0, y0), (x1, y1) = points.astype(int)
    stored = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"]))).convert("L")) > 0
    if stored.shape != (y1 - y0 + 1, x1 - x0 + 1) or min(x0, y0) < 0 or y1 >= size[0] or x1 >= size[1]:
        raise DatasetError(f"a mask of {stored.shape} pixels (HxW) from {x0},{y0} to {x1},{y1}: they do not fit")
    region = np.zeros(size, dtype=bool)
    region[y0 : y1 + 1, x0 : x1 + 1] = stored
    return region


# ---------------------------------------------------------------------------------------------------------------- YOLO


def find_yolo(root: Path) -> list[Path]:
    """The files of YOLO labels in a folder: texts below a folder `labels`, or beside a picture of the same name."""
    texts = [path for path in sorted(root.rglob("*.txt")) if path.name not in _NO_LABELS and path.name[0] != "."]
    below = [path for path in texts if "labels" in path.relative_to(root.parent).parts[:-1]]
    return below or [path for path in texts if any(is_picture(one) for one in path.parent.glob(_any_suffix(path)))]


def read_yolo(files: Sequence[Path]) -> list[PictureLabels]:
    """Read texts of YOLO: polygons `CLASS x1 y1 x2 y2 …` and boxes `CLASS x y w h`, in shares of the picture.

    A score behind them is passed over. Names of the classes: data.yaml or classes.txt, in the text's folder or above.

    Raises:
        FileNotFoundError: A picture or the names are missing.
        ValueError: One is malformed; one line that names the file.
    """
    names: dict[Path, dict[int, str]] = {}
    found = []
    for file in files:
        if file.parent not in names:
            names[file.parent] = _yolo_names(file)
        with _refusing(file, "text of YOLO"):
            parts = [*file.parent.parts]
            if "labels" in parts:
                at = len(parts) - 1 - parts[::-1].index("labels")
                parts[at] = "images"
            folders = [file.parent, Path(*parts)]
            picture = next(
                (one for one in folders for one in sorted(one.glob(_any_suffix(file))) if is_picture(one)), None
            )
            if picture is None:
                raise MissingFileError(f"{file}: no picture {file.stem}.* in {' or '.join(map(str, folders))}")
            size = upright_size(picture)
            regions = []
            for line in filter(None, map(str.strip, file.read_text(encoding="utf-8-sig").splitlines())):
                index, *shares = line.split()
                if int(index) not in names[file.parent]:
                    raise DatasetError(f"{file}: class {index} has no name: mend data.yaml or classes.txt")
                regions.append((names[file.parent][int(index)], _yolo_region([float(one) for one in shares], size)))
            found.append(_gather(picture, file, regions))
    return found


def _any_suffix(path: Path) -> str:
    """A pattern for files of a path's name with any suffix."""
    return re.sub(r"([\[*?])", r"[\1]", path.stem) + ".*"


def _yolo_region(shares: Sequence[float], size: tuple[int, int]) -> BoolArray:
    """Where a line's object is, (H0, W0) bool."""
    height, width = size
    if len(shares) in (4, 5):
        x, y, w, h = shares[:4]
        return _box(((x - w / 2) * width, (y - h / 2) * height), ((x + w / 2) * width, (y + h / 2) * height), size)
    if len(shares) < 6:
        raise DatasetError(f"a line of {len(shares) + 1} numbers, expected CLASS x y w h or CLASS x1 y1 x2 y2 x3 y3 …")
    corners = np.array(shares[: len(shares) // 2 * 2]).reshape(-1, 2) * (width, height)
    return fill_polygon(corners, *size)


def _yolo_names(file: Path) -> dict[int, str]:
    """Names of the classes of a text, from the nearest list above it; of other folders' none."""
    for folder in [*file.absolute().parents][:4]:
        for path in (folder / name for name in _NAME_FILES if (folder / name).is_file()):
            with _refusing(path, "list of classes"):
                if path.suffix == ".yaml":
                    given: Any = OmegaConf.to_container(OmegaConf.load(path))
                    names = given["names"]
                else:
                    names = path.read_text(encoding="utf-8-sig").split("\n")
                    names = [name.strip() for name in names]
                pairs = names.items() if isinstance(names, dict) else enumerate(names)
                return {int(index): str(name) for index, name in pairs if str(name)}
    raise MissingFileError(
        f"{file}: no names of its classes: write data.yaml (names: …) or classes.txt beside or above it"
    )


# -------------------------------------------------------------------------------------------------------- Label Studio


def read_label_studio(file: Path, tasks: Sequence[Mapping[str, Any]]) -> list[PictureLabels]:
    """Read a JSON export of Label Studio: polygons, rectangles, ellipses and brush strokes.

    Of several annotations of a picture the one that is marked as ground truth counts, else the first. Pictures are
    looked for by their names beside the JSON or in its folder's images/, also without what an upload puts before them.

    Raises:
        FileNotFoundError: A picture is missing.
        ValueError: It is malformed; one line that names the file.
    """
    found, others = [], list[str]()
    with _refusing(file, "JSON export of Label Studio"):
        for task in tasks:
            done = [one for one in task.get("annotations", task.get("completions")) if not one.get("was_cancelled")]
            results = max(done, key=lambda one: bool(one.get("ground_truth")))["result"] if done else []
            if not results:
                continue
            picture = find_task_picture(file, task["data"])
            size = upright_size(picture)
            regions = []
            for result in results:
                kind, value = str(result.get("type")), result.get("value", {})
                region = _label_studio_region(kind, result, value, picture, size)
                if region is None:
                    others.append(kind)
                else:
                    regions += [(str(name), region) for name in value[kind]]
            found.append(_gather(picture, file, regions))
    _left_out(file, others)
    return found


def _label_studio_region(
    kind: str, result: Mapping[str, Any], value: Mapping[str, Any], picture: Path, size: tuple[int, int]
) -> BoolArray | None:
    """Where a result is, (H0, W0) bool; None of one without an area. Lengths are percents of the picture."""
    height, width = size
    scale = np.array([width, height]) / 100
    if kind == "polygonlabels":
        return fill_polygon(np.array(value["points"], dtype=float) * scale, *size)
    if kind == "rectanglelabels":
        start, sides = (
            np.array([value[one] for one in names], dtype=float) * scale for names in ("xy", ("width", "height"))
        )
        turned = float(value.get("rotation", 0))
        if not turned:
            return _box(start, start + sides, size)
        cosine, sine = np.cos(np.radians(turned)), np.sin(np.radians(turned))
        along, across = sides[0] * np.array([cosine, sine]), sides[1] * np.array([-sine, cosine])
        return fill_polygon([start, start + along, start + along + across, start + across], *size)
    if kind == "ellipselabels":
        x, y = value["x"] * scale[0], value["y"] * scale[1]
        radii = max(value["radiusX"] * scale[0], 0.5), max(value["radiusY"] * scale[1], 0.5)
        return _ellipse((x, y), radii, float(value.get("rotation", 0)), size)
    if kind != "brushlabels":
        return None
    shape = (int(result["original_height"]), int(result["original_width"]), 4)
    pixels = decode_brush(value["rle"])
    if len(pixels) != np.prod(shape):
        raise DatasetError(f"a brush stroke of {len(pixels):,} values, expected 4 for each pixel of {shape[:2]} (HxW)")
    mask = fit_mask((pixels.reshape(shape)[..., 3] >= 128).astype(np.uint8), size, orientation(picture))
    if mask.shape != size:
        raise DatasetError(f"a brush stroke is of {shape[:2]} pixels (HxW) and {picture} of {size}: export it again")
    return mask.astype(bool)


def find_task_picture(file: Path, data: Mapping[str, Any]) -> Path:
    """The picture of a task of Label Studio, beside its JSON or in images/.

    It is looked for by its path below a local folder, by its name, and by that without what an upload puts before it.

    Args:
        file: The JSON, there or not.
        data: What the task says of its data.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: The task names no picture.
    """
    for value in data.values():
        url = urlsplit(str(value))
        path = PurePosixPath(parse_qs(url.query).get("d", [unquote(url.path)])[0].replace("\\", "/"))
        if is_picture(Path(path.name)):
            below = path.name if ".." in path.parts else str(path).lstrip("/")  # never out of the folder
            return _find_picture(file, [below, path.name, re.sub(r"^[0-9a-f]{8}-", "", path.name)])
    raise DatasetError(f"a task names no picture among {', '.join(map(str, data))}")


def decode_brush(code: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Unpack a brush stroke of Label Studio, which is coded by thi.ng's rle-pack.

    Bits, the highest first: 32 for the number of values, 5 for the bits of a value less 1, four times 4 for the bits of
    a length less 1. Then blocks: a bit that says whether one value repeats, 2 for which of the four, the length less 1,
    and the value, or as many as the length says.

    Args:
        code: Bytes.

    Returns:
        (n,) uint8: red, green, blue and alpha of each pixel, row by row.

    Raises:
        ValueError: It is cut short, or no such code.
    """
    bits = np.unpackbits(np.array(code, dtype=np.uint8))
    powers = 1 << np.arange(31, -1, -1, dtype=np.int64)
    place = 0

    def read(number: int) -> int:
        nonlocal place
        place += number
        if place > len(bits):
            raise DatasetError("a brush stroke is cut short")
        return int(bits[place - number : place] @ powers[32 - number :])

    total, word = read(32), read(5) + 1
    lengths = [read(4) + 1 for _ in range(4)]
    if word > 8 or total > 4 * MAX_PIXELS:
        raise DatasetError(f"a brush stroke of {total:,} values of {word} bits, expected up to {4 * MAX_PIXELS:,} of 8")
    values, filled = np.zeros(total, dtype=np.uint8), 0
    while filled < total:
        repeats, length = read(1), read(lengths[read(2)]) + 1
        if repeats:
            values[filled : filled + length] = read(word)
        else:
            place += length * word
            if place > len(bits):
                raise DatasetError("a brush stroke is cut short")
            block = bits[place - length * word : place].reshape(length, word) @ powers[32 - word :]
            values[filled : filled + length] = block[: total - filled]
        filled += length
    return values


def encode_brush(mask: BoolArray) -> list[int]:
    """A mask (H0, W0) bool as a brush stroke of Label Studio, white where it is True: what `decode_brush` reads."""
    flat = mask.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    longest = 1 << 14  # pixels of 4 values, in a length of 16 bits
    bits = [f"{4 * flat.size:032b}", f"{8 - 1:05b}", *(f"{length - 1:04b}" for length in (4, 8, 12, 16))]
    for start, end in zip(starts, [*starts[1:], flat.size], strict=True):
        for first in range(start, end, longest):
            values = 4 * (min(first + longest, end) - first) - 1
            which = next(index for index, length in enumerate((4, 8, 12, 16)) if values < 1 << length)
            bits.append(f"1{which:02b}{values:0{4 * (which + 1)}b}{255 if flat[start] else 0:08b}")
    joined = "".join(bits)
    joined += "0" * (-len(joined) % 8)
    return [int(joined[place : place + 8], 2) for place in range(0, len(joined), 8)]


def _find_picture(file: Path, names: Sequence[str]) -> Path:
    """The picture of a file of labels, by the names that it may have beside it or in images/."""
    places = [folder / name for name in names for folder in (file.parent, file.parent / "images")]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise MissingFileError(
            f"{file}: picture {names[0]} is neither in {file.parent} nor in its images/: put it there"
        )
    return found
