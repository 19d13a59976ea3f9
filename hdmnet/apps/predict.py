"""What `python -m hdmnet.predict` does: words of its command line to files, and predictions to pictures.

Of a query NAME it writes `NAME_mask.png` (0/255; of several classes a palette PNG of their indices),
`NAME_probability.png` (16-bit grey, one a class), `NAME_overlay.jpg`, and with `maps=true` what the method shows of
itself, by its names and numbered (`NAME_correlation_1.png` …): each map stretched from its least to its largest value,
at the picture's size. Other formats: hdmnet/apps/label_writers.py.
"""

from __future__ import annotations

import glob
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image
from tqdm import tqdm

from hdmnet.apps.example import CLASS, write_example
from hdmnet.apps.label_writers import PICTURES, LabelWriters, closing, refuse_label_folders
from hdmnet.apps.review import ReviewWriter, refuse_review
from hdmnet.apps.segmenter import Prediction, Segmenter
from hdmnet.apps.supports import Supports, leave_out_vanishing
from hdmnet.data.datasets.base import LeftOut
from hdmnet.data.io.listing import is_picture
from hdmnet.data.io.masks import write_mask
from hdmnet.data.io.user_pictures import LabelledMask, read_user_picture
from hdmnet.runtime.atomic import replacing
from hdmnet.runtime.errors import InputError, user_message
from hdmnet.runtime.home import expand_home
from hdmnet.runtime.malloc import keep_freed_memory
from hdmnet.visual.overlay import draw_overlay, overlay_colours

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from hdmnet.data.io.arrays import UInt8Array

log = logging.getLogger(__name__)

_NOT_IN_NAMES = r"[^\w.-]+"  # of files: a class's or a map's name may hold more


# --------------------------------------------------------------------------------------------------- the command line


def find_queries(value: Any) -> list[Path]:
    """Read the key `query`.

    Args:
        value: A picture, a folder, a pattern with * or ?, or a list of them.

    Returns:
        The pictures: as named, and those of each folder (not of its subfolders) in the order of their names. Whether
        they can be read is seen when it is their turn.

    Raises:
        ValueError: There is none.
    """
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    queries: list[Path] = []
    left_out: list[str] = []
    for word in [] if plain is None else plain if isinstance(plain, list) else [plain]:
        path = expand_home(str(word))
        found = sorted(map(Path, glob.glob(str(path)))) if re.search(r"[*?]", path.name) and not path.exists() else []
        for one in found or [path]:
            inside = sorted(path for path in one.iterdir() if path.name[0] != ".") if one.is_dir() else [one]
            chosen = [path for path in inside if path == one or (is_picture(path) and path.is_file())]
            queries += chosen
            left_out += [str(path) for path in inside if path not in chosen]
    if left_out:
        log.warning("query: %s", LeftOut("no picture by its name, left out", tuple(left_out)).tell())
    if not queries:
        shown = "is not given" if plain is None else f"{plain} holds no picture by its name (.jpg, .png, …)"
        raise InputError(f"query {shown}; expected query=[IMG_OR_FOLDER,…]")
    return queries


def example_of(cfg: DictConfig) -> tuple[Supports, list[Path]]:
    """What `example=true` is in place of: supports and queries, drawn into the output folder.

    Raises:
        ValueError: `support` or `query` is given too.
    """
    given = [key for key in ("support", "query") if cfg[key] is not None]
    if given:
        raise InputError(f"example=true draws its own pictures, and {given[0]} is given; expected one of them")
    support, mask, queries = write_example(Path(cfg.paths.run_dir) / "example")
    return {CLASS: [(support, mask)]}, queries


# -------------------------------------------------------------------------------------------------------- the command


def predict(cfg: DictConfig, supports: Supports | None, queries: Sequence[Path]) -> None:
    """Segment the queries and write what was found; without supports, the checkpoint is to be a fitted segmenter's.

    Raises:
        FileNotFoundError: The checkpoint or a support is missing.
        ValueError: Checkpoint or supports are not right; or some queries were not, after all others are done.
    """
    if supports is None and cfg.ckpt is None:
        raise InputError("support is not given; expected support=[IMG:MASK,…]")
    keep_freed_memory()
    output = Path(cfg.paths.run_dir)
    parts = [part for pairs in (supports or {}).values() for pair in pairs for part in pair]
    files = (part.file if isinstance(part, LabelledMask) else part for part in parts)
    read = [path for path in files if isinstance(path, Path)]
    if PICTURES in cfg.formats:
        _refuse_to_replace(output, _names(queries), [*queries, *read], maps=cfg.maps)
    refuse_label_folders(output, cfg.formats, [*queries, *read])
    refuse_review(output, [*queries, *read])
    if cfg.maps and PICTURES not in cfg.formats:
        raise InputError(f"maps=true and formats={cfg.formats}: expected png among them, for maps are pictures")
    segmenter = Segmenter.of_command(cfg)
    if supports is not None:
        supports = leave_out_vanishing(supports, segmenter.image_size)
        pairs = {name: tuple(zip(*several, strict=True)) for name, several in supports.items()}
        segmenter.fit(pairs)
    elif not segmenter.classes:
        raise InputError(f"support is not given and ckpt={cfg.ckpt} keeps none; expected support=[IMG:MASK,…]")
    if cfg.save is not None:
        segmenter.save(cfg.save)
    failed = 0
    settings = {key: cfg[key] for key in ("instances", "polygons", "tolerance")}
    written = LabelWriters(output, cfg.formats, segmenter.classes, queries, **settings)
    with closing(written) as labels, closing(ReviewWriter(output)) as review:
        done = write_predictions(segmenter, queries, output, maps=cfg.maps, labels=labels, review=review)
        for answer in tqdm(done, total=len(queries), desc="predict", unit="picture"):
            if answer.error is not None:
                failed += 1
                tqdm.write(f"error: {answer.error}", file=sys.stderr)
    print(f"segmented {len(queries) - failed} of {len(queries)} pictures: {output}", flush=True)
    if failed:
        raise InputError(f"{failed} of {len(queries)} queries could not be segmented, see above; the others are done")


@dataclass(frozen=True)
class Answer:
    """What became of one query.

    Attributes:
        name: How the names of its files begin.
        files: The files, by kind: "mask", "probability", "overlay".
        maps: Those of the method's maps, if asked for: "prior_1", "correlation_1" …
        error: One line that says why there are none.
    """

    name: str
    files: dict[str, Path] = field(default_factory=dict)
    maps: dict[str, Path] = field(default_factory=dict)
    error: str | None = None


def write_predictions(
    segmenter: Segmenter,
    queries: Sequence[Path],
    output: Path,
    *,
    maps: bool = False,
    read: Callable[[Path], UInt8Array] = lambda path: read_user_picture(path)[0],
    labels: LabelWriters | None = None,
    review: ReviewWriter | None = None,
) -> Iterator[Answer]:
    """Segment pictures one after another and write what was found.

    Args:
        segmenter: With its supports.
        queries: The pictures.
        output: Where to.
        maps: The method's maps too.
        read: Reads a picture as (H0, W0, 3) uint8 RGB.
        labels: Writes further formats; None: pictures only.
        review: Takes down how sure the method is of each.

    Yields:
        Of each query, in order, what was written or why nothing was.
    """
    for path, name in zip(queries, _names(queries), strict=True):
        try:
            picture = read(path)
            prediction = segmenter.predict(picture, maps=maps)
            answer = Answer(name)
            if labels is None or labels.pictures:
                answer = write_prediction(output, name, picture, prediction)
            if labels is not None:
                labels.add(path, name, prediction)
            if review is not None:
                review.add(path, picture, prediction)
        except (ValueError, OSError) as error:
            message = user_message(error)
            if message is None:
                raise
            answer = Answer(name, error=message)
        yield answer


def _names(queries: Sequence[Path]) -> list[str]:
    """What to call the outputs: file names without suffix, numbered where one comes again."""
    return _distinct([path.stem for path in queries])


def _distinct(names: Sequence[str]) -> list[str]:
    """Names as parts of file names, numbered where one comes again."""
    taken: set[str] = set()
    distinct = []
    for given in names:
        name, number = given, 1
        while name in taken:
            number += 1
            name = f"{given}_{number}"
        taken.add(name)
        distinct.append(name)
    return distinct


def _refuse_to_replace(output: Path, names: Sequence[str], inputs: Sequence[Path], *, maps: bool) -> None:
    """Refuse an output folder in which an input bears the name of an output; a map's name may be any."""
    kinds = ("_",) if maps else ("_mask.png", "_overlay.jpg", "_probability")
    starts = tuple(name + kind for name in names for kind in kinds)
    for path in inputs:
        if path.parent.resolve() == output.resolve() and path.name.startswith(starts):
            raise InputError(
                f"output={output} holds {path.name}, which is read and might be replaced: choose another folder"
            )


# ------------------------------------------------------------------------------------------------------------ pictures


def write_prediction(folder: Path, name: str, picture: UInt8Array, prediction: Prediction) -> Answer:
    """Write what was found in a query (H0, W0, 3) uint8 RGB to files whose names begin with `name`."""
    several = len(prediction.classes) > 1
    labels = _distinct([re.sub(_NOT_IN_NAMES, "_", label) for label in prediction.classes])
    suffixes = {label: f"_{part}" if several else "" for label, part in zip(prediction.classes, labels, strict=True)}

    def write(kept: dict[str, Path], kind: str, array: NDArray[Any], suffix: str = ".png") -> None:
        kept[kind] = folder / f"{name}_{kind}{suffix}"
        _write(kept[kind], array)

    answer = Answer(name)
    if several:
        answer.files["mask"] = folder / f"{name}_mask.png"
        write_mask(answer.files["mask"], prediction.mask)
    else:
        write(answer.files, "mask", prediction.mask * np.uint8(255))
    for label, probability in prediction.probabilities.items():
        write(answer.files, f"probability{suffixes[label]}", np.rint(probability * 65535).astype(np.uint16))
    drawn = draw_overlay(picture, prediction.mask, overlay_colours(len(prediction.classes)))
    write(answer.files, "overlay", drawn, ".jpg")
    for label, maps in prediction.maps.items():
        for kind, levels in maps.items():
            for number, values in enumerate(levels, start=1):
                shown = f"{re.sub(_NOT_IN_NAMES, '_', kind)}_{number}{suffixes[label]}"
                write(answer.maps, shown, draw_map(values, picture.shape[:2]))
    return answer


def _write(path: Path, array: NDArray[Any]) -> None:
    """Write (H, W) uint8 or uint16, or (H, W, 3) uint8 RGB, whole or not at all."""
    with replacing(path) as temporary:
        Image.fromarray(array).save(temporary, format="JPEG" if path.suffix == ".jpg" else "PNG", quality=90)


def draw_map(values: NDArray[np.float32], size: tuple[int, ...]) -> UInt8Array:
    """A map (h, w) as a viridis picture (H0, W0, 3) uint8, its cells visible."""
    from matplotlib import colormaps

    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    cells = np.asarray(colormaps["viridis"](scaled)[..., :3] * 255, dtype=np.uint8)
    return np.asarray(cv2.resize(cells, (size[1], size[0]), interpolation=cv2.INTER_NEAREST), dtype=np.uint8)
