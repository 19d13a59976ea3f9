"""Videos, files or folders of frames: a mask a frame, a table of the frames, and an overlay video.

    NAME/frame_000000_mask.png …   as of pictures: 0/255, or the classes' indices
    NAME/frames.csv                of each frame and class: share of the frame, mean probability inside, whether it
                                   became a support
    NAME_overlay.mp4

One frame is in memory at a time. A method that stretches its maps by their extremes expects its object in every frame;
unless that is so, the extremes of frames from all over the video stand for it (`hdmnet.models.prior.SharedRanges`).

What is done is found again after a stop: a frame counts as done when its line is in the table, which is written after
its mask. The overlay is drawn when all masks are there.

Dimension letters: H0 W0 size of a frame.
"""

from __future__ import annotations

import csv
import itertools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# FFmpeg's complaints about a damaged file would stand between ours; read when OpenCV opens its first video.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

import cv2
import numpy as np

from hdmnet.apps.segmenter import Fitted, Prediction, Segmenter, prediction_of
from hdmnet.apps.unfinished import Unfinished
from hdmnet.data.io.arrays import UInt8Array
from hdmnet.data.io.listing import is_picture
from hdmnet.data.io.masks import read_mask
from hdmnet.data.io.user_pictures import read_user_picture
from hdmnet.data.transforms import resize_mask
from hdmnet.models.prior import SharedRanges
from hdmnet.runtime.atomic import replacing
from hdmnet.runtime.errors import InputError

log = logging.getLogger(__name__)

SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"})
NUM_SAMPLED = 32  # frames whose ranges stand for the video's
MEMORY_STEP = 10  # frames from one that becomes a support to the next: neighbours say the same
# What an overlay is written as, the first that this machine's OpenCV can write.
_CODECS = ((".mp4", "mp4v"), (".avi", "MJPG"))
_TABLE = "frames.csv"


def is_video(path: Path) -> bool:
    """Whether a file is called as videos are."""
    return path.suffix.lower() in SUFFIXES


@dataclass(frozen=True)
class VideoSettings:
    """What conf/predict.yaml says of videos.

    Attributes:
        folders: Whether the pictures of a folder are a video's frames.
        memory: How many of the last confident frames are supports too.
        confident: Least mean probability inside a mask of a frame that may be one.
        in_every_frame: Whether the object is in every frame, so that each is taken by itself.
        fps: Frames a second of a folder's overlay.

    Raises:
        ValueError: A value is out of range.
    """

    folders: bool = False
    memory: int = 0
    confident: float = 0.8
    in_every_frame: bool = False
    fps: float = 25.0

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        for key, fits, expected in (
            ("memory", self.memory >= 0, "0 or a number of frames"),
            ("confident", 0.5 <= self.confident <= 1, "a probability from 0.5 to 1"),
            ("fps", self.fps > 0, "a number above 0"),
        ):
            if not fits:
                raise InputError(f"video.{key}={getattr(self, key)}: expected {expected}")


class Video:
    """The frames of a video, read one by one.

    Args:
        path: A file, or a folder of pictures, which are taken in the order of their names.
        fps: Frames a second of a folder.

    Attributes:
        num_frames: How many there are; of a file what it says itself.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds no frame that can be read.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.fps = path, fps
        self.files: list[Path] | None = None
        if path.is_dir():
            self.files = sorted(one for one in path.iterdir() if one.name[0] != "." and is_picture(one))
            self.num_frames = len(self.files)
        else:
            capture = _open(path)
            self.num_frames = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 1)
            self.fps = capture.get(cv2.CAP_PROP_FPS) or fps
            capture.release()
        if not self.num_frames:
            raise InputError(f"video {path} holds no picture by its name (.jpg, .png, …); expected frames")

    def frames(self, every: int = 1) -> Iterator[UInt8Array]:
        """All frames, or each so-many-th from the first on: (H0, W0, 3) uint8 RGB.

        Raises:
            ValueError: A frame of a folder cannot be read, or there is none.
        """
        if self.files is not None:
            yield from (read_user_picture(file)[0] for file in self.files[::every])
            return
        capture, number = _open(self.path), 0
        try:
            while capture.grab():
                if number % every == 0:
                    read, frame = capture.retrieve()
                    if not read:
                        break
                    yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), dtype=np.uint8)
                number += 1
        finally:
            capture.release()
        if not number:
            raise InputError(f"video {self.path} holds no frame that can be read: convert it to MP4 (H.264)")
        if number < self.num_frames:
            log.warning("video %s ends after %d of %d frames: is it damaged?", self.path, number, self.num_frames)


def _open(path: Path) -> cv2.VideoCapture:
    if not path.is_file():
        raise InputError(f"video {path} not found; expected the path of a video file")
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise InputError(f"video {path} cannot be read: replace it by a whole one, or convert it to MP4 (H.264)")
    return capture


@dataclass(frozen=True)
class Pens:
    """How frames are written.

    Attributes:
        write: Writes a mask (H0, W0) to a file.
        draw: Draws a mask (H0, W0) over a frame (H0, W0, 3).
    """

    write: Callable[[Path, UInt8Array], object]
    draw: Callable[[UInt8Array, UInt8Array], UInt8Array]


def segment_video(
    segmenter: Segmenter,
    video: Video,
    folder: Path,
    work: Unfinished,
    settings: VideoSettings,
    pens: Pens,
    step: Callable[[int], object] = lambda number: None,
) -> None:
    """Segment a video, frame by frame.

    Args:
        segmenter: With its supports.
        video: The video.
        folder: NAME: the masks go there, the overlay beside it.
        work: Keeps what is known; frames that are done are not computed again.
        settings: Of the command.
        pens: How frames are written.
        step: Is told how many frames are done.

    Raises:
        ValueError: A frame cannot be read.
    """
    ranges = None if settings.in_every_frame else _find_ranges(segmenter, video, work)
    table = FrameTable(work.folder / _TABLE, segmenter.classes, folder)
    memory = Memory(segmenter, settings, table.rows)
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(video.frames()):
        file = mask_file(folder, number)
        if number < len(table.rows):
            memory.recall(number, frame, file)
        else:
            prediction = prediction_of(segmenter.answer(frame, ranges, memory.classes()), frame.shape)
            pens.write(file, prediction.mask)
            found = measure(prediction)
            table.add(number / video.fps, found, memory.offer(number, frame, prediction.mask, found))
        step(1)
    _write_overlay(video, folder, work, pens)
    table.finish(folder / _TABLE)


def mask_file(folder: Path, number: int) -> Path:
    """Of a frame."""
    return folder / f"frame_{number:06}_mask.png"


def measure(prediction: Prediction) -> list[tuple[float, float]]:
    """Of each class its share of the picture, and its mean probability inside its mask, 0 of none."""
    found = []
    for index, probability in enumerate(prediction.probabilities.values(), start=1):
        inside = prediction.mask == index
        found.append((float(inside.mean()), float(probability[inside].mean()) if inside.any() else 0.0))
    return found


def _find_ranges(segmenter: Segmenter, video: Video, work: Unfinished) -> dict[str, SharedRanges]:
    """The ranges of `NUM_SAMPLED` frames from all over the video, by class."""
    parts, ranges = work.read_ranges(segmenter.classes)
    if not parts:
        for frame in video.frames(every=-(-video.num_frames // NUM_SAMPLED)):
            segmenter.answer(frame, ranges)
            parts += 1
        work.write_ranges(parts, ranges)
    for one in ranges.values():
        one.fix()
    return ranges


# -------------------------------------------------------------------------------------------------------------- memory


class Memory:
    """The last confident frames as further supports, class by class.

    A frame is one where the mean probability inside the mask is `confident` or more, something of the mask is left at
    the network's size, and the last one lies `MEMORY_STEP` frames back.

    Args:
        segmenter: With its supports.
        settings: How many, and what confident is.
        rows: Of the frames that are done, by class whether it became a support.
    """

    def __init__(self, segmenter: Segmenter, settings: VideoSettings, rows: list[list[bool]]) -> None:
        self.segmenter, self.settings = segmenter, settings
        self.taken = {
            name: [number for number, row in enumerate(rows) if row[index]]
            for index, name in enumerate(segmenter.classes)
        }
        # Of an earlier command's only the last ones are needed.
        self._wanted = {name: set(taken[-settings.memory :]) for name, taken in self.taken.items()}
        self._kept: dict[str, deque[Fitted]] = {name: deque(maxlen=settings.memory) for name in segmenter.classes}

    def classes(self) -> dict[str, Fitted]:
        """The supports as they are now."""
        joined = {}
        for name, own in self.segmenter.fitted.items():
            several = [own, *self._kept[name]]
            features = type(own.features).stack([one.features for one in several])
            joined[name] = Fitted(features, sum(one.shots for one in several))
        return joined

    def recall(self, number: int, frame: UInt8Array, file: Path) -> None:
        """Take up a frame again that became a support in an earlier command; its mask is in a file."""
        for index, name in enumerate(self._kept, start=1):
            if self.settings.memory and number in self._wanted[name]:
                mask = read_mask(file)
                self._keep(name, frame, mask == (index if len(self._kept) > 1 else 255))

    def offer(self, number: int, frame: UInt8Array, mask: UInt8Array, found: list[tuple[float, float]]) -> list[bool]:
        """Keep a frame where it is confident; returns of each class whether."""
        answer = []
        for index, (name, (_, probability)) in enumerate(zip(self._kept, found, strict=True), start=1):
            taken, inside = self.taken[name], (mask == index).astype(np.uint8)
            fits = (
                self.settings.memory > 0
                and probability >= self.settings.confident
                and (not taken or number - taken[-1] >= MEMORY_STEP)
                and bool(resize_mask(inside, self.segmenter.image_size).any())
            )
            if fits:
                taken.append(number)
                self._keep(name, frame, inside)
            answer.append(fits)
        return answer

    def _keep(self, name: str, frame: UInt8Array, inside: Any) -> None:
        self._kept[name].append(self.segmenter.encode(name, ([frame], [inside.astype(np.uint8)])))


# --------------------------------------------------------------------------------------------------------------- files


class FrameTable:
    """`frames.csv`: a line a frame, written when its mask is.

    Args:
        file: Where it grows; lines of an earlier command are kept as far as they are whole and the masks are there.
        classes: Their names.
        folder: Of the masks.

    Attributes:
        rows: Of each frame that is done, by class whether it became a support.
    """

    def __init__(self, file: Path, classes: tuple[str, ...], folder: Path) -> None:
        self.file = file
        columns = [f"{name} {what}" for name in classes for what in ("share", "probability", "support")]
        lines = file.read_text(encoding="utf-8").split("\n")[1:-1] if file.is_file() else []  # the last may be cut off
        there = itertools.takewhile(lambda numbered: mask_file(folder, numbered[0]).is_file(), enumerate(lines))
        done = [line for _, line in there]
        self.rows = [[value == "1" for value in row[4::3]] for row in csv.reader(done)]
        with replacing(file) as temporary, temporary.open("w", encoding="utf-8", newline="") as opened:
            csv.writer(opened, lineterminator="\n").writerow(["frame", "seconds", *columns])
            opened.writelines(f"{line}\n" for line in done)

    def add(self, seconds: float, found: list[tuple[float, float]], taken: list[bool]) -> None:
        """Add the next frame: of each class its share, its probability and whether it became a support."""
        values = [
            value
            for (share, probability), support in zip(found, taken, strict=True)
            for value in (f"{share:.6f}", f"{probability:.4f}", int(support))
        ]
        with self.file.open("a", encoding="utf-8", newline="") as opened:
            csv.writer(opened, lineterminator="\n").writerow([len(self.rows), f"{seconds:.3f}", *values])
        self.rows.append(taken)

    def finish(self, file: Path) -> None:
        """All frames are done: the table goes where it belongs."""
        with replacing(file) as temporary:
            temporary.write_bytes(self.file.read_bytes())


def _write_overlay(video: Video, folder: Path, work: Unfinished, pens: Pens) -> None:
    """Draw the masks over the frames and write a video; a half one stays in the folder of unfinished work."""
    writer: cv2.VideoWriter | None = None
    size = (0, 0)
    made = work.folder / "overlay"
    for number, frame in enumerate(video.frames()):
        if writer is None:
            size = frame.shape[1], frame.shape[0]
            made, writer = _open_writer(made, video.fps, size)
            if writer is None:
                log.warning("%s: this OpenCV writes neither MP4 nor AVI, no overlay video; the masks are there", folder)
                return
        mask = read_mask(mask_file(folder, number))
        drawn = pens.draw(frame, mask)
        drawn = drawn if drawn.shape[1::-1] == size else np.asarray(cv2.resize(drawn, size), dtype=np.uint8)
        writer.write(cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
    if writer is not None:
        writer.release()
        os.replace(made, folder.with_name(f"{folder.name}_overlay{made.suffix}"))


def _open_writer(made: Path, fps: float, size: tuple[int, int]) -> tuple[Path, cv2.VideoWriter | None]:
    """A writer of a video (W0, H0), and its file, whose suffix is the format's; None where no codec is there."""
    for place, (suffix, codec) in enumerate(_CODECS):
        file = made.with_suffix(suffix)
        writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*codec), fps, size)
        if writer.isOpened():
            if place:
                log.warning("this OpenCV has no encoder for MP4: the overlay is written as AVI (Motion JPEG)")
            return file, writer
    return made, None
