"""What `python -m hdmnet.predict` does: finds supports and queries, segments, and writes pictures.

Of a picture NAME it writes `NAME_mask.png` (0/255; of several classes a palette PNG of their indices),
`NAME_probability.png` (16-bit grey, one a class), `NAME_overlay.jpg`, and with `maps=true` what the method shows of
itself, by its names and numbered (`NAME_correlation_1.png` …): each map stretched from its least to its largest value,
at the picture's size. Other formats: hdmnet/apps/label_writers.py. Large pictures: hdmnet/apps/tiles.py. Of a video:
hdmnet/apps/video.py.
"""

from __future__ import annotations

import glob
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

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
from hdmnet.apps.tiles import Tiles, as_16_bits, num_steps, segment_tiles
from hdmnet.apps.unfinished import FOLDER, Unfinished, facts_of, file_facts, remove_finished
from hdmnet.apps.video import Pens, Video, VideoSettings, is_video, segment_video
from hdmnet.config.values import to_plain
from hdmnet.data.datasets.base import LeftOut
from hdmnet.data.io.arrays import bands
from hdmnet.data.io.listing import is_picture
from hdmnet.data.io.masks import write_mask
from hdmnet.data.io.user_pictures import LabelledMask, read_user_picture
from hdmnet.runtime.atomic import remove_leftovers, replacing
from hdmnet.runtime.errors import InputError, user_message
from hdmnet.runtime.home import expand_home
from hdmnet.runtime.malloc import keep_freed_memory
from hdmnet.visual.overlay import draw_overlay, overlay_colours

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from hdmnet.data.io.arrays import UInt8Array

log = logging.getLogger(__name__)

_JPEG_SIDE, _JPEG_QUALITY = 65_500, (cv2.IMWRITE_JPEG_QUALITY, 90)  # px, the longest that libjpeg writes
_NOT_IN_NAMES = r"[^\w.-]+"  # of files: a class's or a map's name may hold more


# --------------------------------------------------------------------------------------------------- the command line


def find_queries(value: Any, *, whole_folders: bool = False) -> list[Path]:
    """Read the key `query`.

    Args:
        value: A picture or video, a folder, a pattern with * or ?, or a list of them.
        whole_folders: Whether a folder is a query itself, the frames of a video.

    Returns:
        The pictures and videos: as named, and the pictures of each folder (not of its subfolders) in the order of their
        names. Whether they can be read is seen when it is their turn.

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
            listed = one.is_dir() and not whole_folders
            inside = sorted(path for path in one.iterdir() if path.name[0] != ".") if listed else [one]
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
    videos = [path for path in queries if path.is_dir() or is_video(path)]
    pictures = [path for path in queries if path not in videos]
    settings = VideoSettings(**to_plain(cfg.video))
    tiles = None if cfg.tile is None else Tiles.read(to_plain(cfg)["tile"], cfg.tile_overlap)
    _refuse_of_videos(cfg, videos, output)
    if cfg.maps and tiles is not None:
        raise InputError(f"maps=true and tile={cfg.tile}: a picture in tiles has no maps; expected one of them")
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
    if (output / FOLDER).is_dir():
        remove_leftovers(output)
    facts = facts_of(cfg, [*([] if cfg.ckpt is None else [Path(cfg.ckpt)]), *read])
    about = {key: cfg[key] for key in ("instances", "polygons", "tolerance")}
    tiled = None if tiles is None else TiledQueries(segmenter, tiles, output, facts)
    written = LabelWriters(output, cfg.formats, segmenter.classes, pictures, **about)
    with closing(written) as labels, closing(ReviewWriter(output)) as review:
        outlets = {"maps": cfg.maps, "labels": labels, "review": review, "tiled": tiled}
        done = write_predictions(segmenter, pictures, output, **outlets)
        for error in tqdm(done, total=len(pictures), desc="predict", unit="picture", disable=not pictures):
            if error is not None:
                failed += 1
                tqdm.write(f"error: {error}", file=sys.stderr)
    failed += _segment_videos(segmenter, videos, output, settings, facts)
    what = "pictures" if not videos else "videos" if not pictures else "pictures and videos"
    print(f"segmented {len(queries) - failed} of {len(queries)} {what}: {output}", flush=True)
    if failed:
        raise InputError(f"{failed} of {len(queries)} queries could not be segmented, see above; the others are done")
    remove_finished(output)


def _refuse_of_videos(cfg: DictConfig, videos: Sequence[Path], output: Path) -> None:
    """Refuse what cannot be had of videos."""
    if not videos:
        return
    if list(cfg.formats) != [PICTURES]:
        raise InputError(
            f"formats={list(cfg.formats)} and query={videos[0]}: of a video masks and an overlay are written; expected "
            "formats=[png], or frames as pictures (query=FOLDER without video.folders=true)"
        )
    for key, default in (("maps", False), ("tile", None)):
        if cfg[key] != default:
            raise InputError(f"{key}={cfg[key]} and query={videos[0]}: of pictures only; leave it out for videos")
    for path, name in zip(videos, _names(videos), strict=True):
        if path.resolve() == (output / name).resolve():
            raise InputError(f"output={output}: the masks of {path} would lie among its frames: choose another folder")


def _segment_videos(
    segmenter: Segmenter, videos: Sequence[Path], output: Path, settings: VideoSettings, facts: dict[str, Any]
) -> int:
    """Segment videos one after another; returns how many could not be."""
    several = len(segmenter.classes) > 1
    colours = overlay_colours(len(segmenter.classes))
    pens = Pens(
        lambda path, mask: _write_mask(path, mask, several),
        lambda frame, mask: draw_overlay(frame, mask if several else np.minimum(mask, 1), colours),
    )
    failed = 0
    for path, name in zip(videos, _names(videos), strict=True):
        try:
            video = Video(path, settings.fps)
            work = Unfinished(output / FOLDER / f"{name}.video", {**facts, "query": file_facts(path)})
            with tqdm(total=video.num_frames, desc=name, unit="frame") as bar:
                segment_video(segmenter, video, output / name, work, settings, pens, bar.update)
        except (ValueError, OSError) as error:
            message = user_message(error)
            if message is None:
                raise
            failed += 1
            print(f"error: {message}", file=sys.stderr, flush=True)
    return failed


@dataclass(frozen=True)
class TiledQueries:
    """Segments queries in tiles; what is known of one is kept until all of the command is done.

    Attributes:
        segmenter: With its supports.
        tiles: How to cut pictures up.
        output: Of the command.
        facts: Of the command.
    """

    segmenter: Segmenter
    tiles: Tiles
    output: Path
    facts: dict[str, Any]

    def predict(self, picture: UInt8Array, path: Path, name: str) -> Prediction:
        """Segment a picture (H0, W0, 3) of a file, whose outputs are called `name`; a small one whole."""
        if len(self.tiles.cover(picture.shape)) == 1:
            found: Prediction = self.segmenter.predict(picture)
            return found
        work = Unfinished(self.output / FOLDER / name, {**self.facts, "query": file_facts(path)})
        classes = self.segmenter.classes
        with tqdm(total=num_steps(self.tiles, picture.shape), desc=name, unit="tile", leave=False) as bar:
            mask, stored = segment_tiles(self.segmenter.answer, picture, classes, self.tiles, work, bar.update)
        return Prediction(mask, cast("dict[str, NDArray[np.float32]]", stored))


def write_predictions(
    segmenter: Segmenter,
    queries: Sequence[Path],
    output: Path,
    *,
    maps: bool = False,
    labels: LabelWriters | None = None,
    review: ReviewWriter | None = None,
    tiled: TiledQueries | None = None,
) -> Iterator[str | None]:
    """Segment pictures one after another and write what was found.

    Args:
        segmenter: With its supports.
        queries: The pictures.
        output: Where to.
        maps: The method's maps too.
        labels: Writes further formats; None: pictures only.
        review: Takes down how sure the method is of each.
        tiled: Segments large pictures; None: all are segmented whole.

    Yields:
        Of each query, in order, None, or a line that says why there is nothing of it.
    """
    for path, name in zip(queries, _names(queries), strict=True):
        error = None
        try:
            picture = read_user_picture(path)[0]
            prediction = segmenter.predict(picture, maps=maps) if tiled is None else tiled.predict(picture, path, name)
            if labels is None or labels.pictures:
                write_prediction(output, name, picture, prediction)
            if review is not None:
                review.add(path, picture, prediction)
            del picture  # of 100 million pixels it takes 300 MB, and labels as much again
            if labels is not None:
                labels.add(path, name, prediction)
        except (ValueError, OSError) as refusal:
            error = user_message(refusal)
            if error is None:
                raise
        yield error


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
    kinds = ("_",) if maps else ("_mask.png", "_overlay.", "_probability")
    starts = tuple(name + kind for name in names for kind in kinds)
    for path in inputs:
        if path.parent.resolve() == output.resolve() and path.name.startswith(starts):
            raise InputError(
                f"output={output} holds {path.name}, which is read and might be replaced: choose another folder"
            )


# ------------------------------------------------------------------------------------------------------------ pictures


def write_prediction(folder: Path, name: str, picture: UInt8Array, prediction: Prediction) -> None:
    """Write what was found in a query (H0, W0, 3) uint8 RGB to files whose names begin with `name`."""
    several = len(prediction.classes) > 1
    labels = _distinct([re.sub(_NOT_IN_NAMES, "_", label) for label in prediction.classes])
    suffixes = {label: f"_{part}" if several else "" for label, part in zip(prediction.classes, labels, strict=True)}

    _write_mask(folder / f"{name}_mask.png", prediction.mask, several)
    for label, probability in prediction.probabilities.items():
        _write(folder / f"{name}_probability{suffixes[label]}.png", as_16_bits(probability))
    suffix = ".jpg" if max(picture.shape) <= _JPEG_SIDE else ".png"
    drawn = draw_overlay(picture, prediction.mask, overlay_colours(len(prediction.classes)))
    _write(folder / f"{name}_overlay{suffix}", drawn)
    for label, maps in prediction.maps.items():
        for kind, levels in maps.items():
            for number, values in enumerate(levels, start=1):
                shown = f"{re.sub(_NOT_IN_NAMES, '_', kind)}_{number}{suffixes[label]}"
                _write(folder / f"{name}_{shown}.png", draw_map(values, picture.shape[:2]))


def _write_mask(path: Path, mask: UInt8Array, several: bool) -> None:
    """Write a mask (H0, W0): of several classes their indices with a palette, of one 0 and 255."""
    if several:
        write_mask(path, mask)
    else:
        _write(path, mask * np.uint8(255))


def _write(path: Path, array: NDArray[Any]) -> None:
    """Write (H, W) uint8 or uint16, or (H, W, 3) uint8 RGB, whole or not at all; colours for a JPEG are used up."""
    with replacing(path) as temporary:
        if path.suffix == ".jpg":  # Pillow would copy the colours, and OpenCV too where it changes their order
            for rows in bands(len(array)):
                array[rows] = array[rows, :, ::-1]
            cv2.imencode(".jpg", array, _JPEG_QUALITY)[1].tofile(temporary)
        else:
            Image.fromarray(array).save(temporary, format="PNG")


def draw_map(values: NDArray[np.float32], size: tuple[int, ...]) -> UInt8Array:
    """A map (h, w) as a viridis picture (H0, W0, 3) uint8, its cells visible."""
    from matplotlib import colormaps

    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    cells = np.asarray(colormaps["viridis"](scaled)[..., :3] * 255, dtype=np.uint8)
    return np.asarray(cv2.resize(cells, (size[1], size[0]), interpolation=cv2.INTER_NEAREST), dtype=np.uint8)
