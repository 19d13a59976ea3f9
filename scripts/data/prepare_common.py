"""What the preparation scripts share: work on all cores, safe unpacking, and the work items with their readers.

It is a module of its own, as worker processes import by name the functions that they run.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import re
import shutil
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, NoReturn, TypeVar, cast

import numpy as np
from tqdm import tqdm

from hdmnet.data.datasets.palettes import CommonColours, refuse_other_palette
from hdmnet.data.io.annotations import paint_annotations
from hdmnet.data.io.arrays import UInt8Array
from hdmnet.data.io.masks import read_mask, write_mask
from hdmnet.data.io.pictures import PNG_END, read_size
from hdmnet.runtime.atomic import replacing
from hdmnet.runtime.errors import DatasetError, FileError, MissingFileError
from hdmnet.runtime.provenance import available_cpus

Item = TypeVar("Item")


CHUNK_SIZE = 32
STALE_SECONDS = 3600.0


def warn(name: str, text: str) -> None:
    """Print one line on stderr.

    Args:
        name: The script's name, put before the line.
        text: The line.
    """
    print(f"{name}: {text}", file=sys.stderr)


def count_workers(wanted: int | None) -> int:
    """Number of worker processes: as wanted, else one for every core that this process may use.

    Args:
        wanted: The value of `--workers`.

    Returns:
        At least 1.

    Raises:
        ValueError: If `wanted` is below 1.
    """
    if wanted is None:
        return available_cpus()
    if wanted < 1:
        raise DatasetError(f"--workers is {wanted}, expected at least 1")
    return wanted


def run_chunks(
    work: Callable[[Sequence[Item]], list[str]], items: Sequence[Item], *, workers: int, title: str
) -> list[str]:
    """Do the items in chunks on several processes, with a progress bar that tells the time left.

    Args:
        work: Does a chunk and returns a line for each item that failed; picklable.
        items: All items. A worker is sent only its chunk.
        workers: Number of processes; 1 works in this one.
        title: Stands before the bar.

    Returns:
        The lines of the items that failed.

    Raises:
        OSError: If a worker was killed or cannot write.
    """
    chunks = [items[start : start + CHUNK_SIZE] for start in range(0, len(items), CHUNK_SIZE)]
    problems: list[str] = []
    with _progress_bar(len(items), title, "masks") as bar:
        if workers == 1 or len(chunks) <= 1:
            for chunk in chunks:
                problems += work(chunk)
                bar.update(len(chunk))
            return problems
        # Not fork: the parent may hold threads (OpenCV's, torch's), whose locks a forked child would inherit.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(chunks)), mp_context=context) as pool:
            futures = {pool.submit(work, chunk): len(chunk) for chunk in chunks}
            try:
                for future in as_completed(futures):
                    problems += future.result()
                    bar.update(futures[future])
            except BrokenProcessPool:
                raise FileError("a worker process was killed (out of memory?): go on with fewer --workers") from None
            finally:
                pool.shutdown(cancel_futures=True)  # on Ctrl-C and errors: do not do the rest first
    return problems


def _progress_bar(total: int, title: str, unit: str, *, scale: bool = False) -> tqdm[NoReturn]:
    # In a log file (no terminal) a bar every 10 s will do.
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(
        total=total, desc=title, unit=unit, unit_scale=scale, mininterval=interval, maxinterval=max(10.0, interval)
    )


def is_complete_png(path: Path) -> bool:
    """Whether a file exists and ends as a PNG does, so that a truncated one counts as unfinished.

    Args:
        path: The file.

    Returns:
        True if its last 12 bytes are the PNG's end mark.
    """
    try:
        with path.open("rb") as file:
            file.seek(-len(PNG_END), os.SEEK_END)
            return file.read() == PNG_END
    except OSError:  # missing, or shorter than the mark
        return False


def unfinished(items: Sequence[Item], mask_of: Callable[[Item], Path]) -> list[Item]:
    """The items whose mask is not there yet or is truncated.

    Args:
        items: Work items.
        mask_of: Where the mask of an item goes.

    Returns:
        The rest, in order.
    """
    with ThreadPoolExecutor(16) as pool:  # threads: the time goes to a network disk's answers
        finished = list(pool.map(lambda item: is_complete_png(mask_of(item)), items, chunksize=CHUNK_SIZE))
    return [item for item, done in zip(items, finished, strict=True) if not done]


def remove_stale(folder: Path) -> None:
    """Remove what killed runs left half written; young files may belong to a run that goes on beside this one.

    Args:
        folder: Folder of masks or pictures.
    """
    for path in folder.glob(".*.tmp"):
        if time.time() - path.stat().st_mtime > STALE_SECONDS:
            path.unlink(missing_ok=True)


def archive_members(archive: Path, pattern: str) -> Iterator[tuple[re.Match[str], int, IO[bytes]]]:
    """Walk through a tar (plain or compressed) or zip archive with a progress bar.

    Args:
        archive: The file.
        pattern: Regular expression, searched in the members' names; others are left out, as is all but plain files.

    Yields:
        The match, the size in bytes, and the content as a stream that is valid until the next member.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a zip's member leads outside. Use it within `one_line_for(archive)`, which translates the rest.
    """
    if not archive.is_file():
        raise MissingFileError(f"archive {archive} is missing: give the path of the downloaded file")
    walk = _zip_members if zipfile.is_zipfile(archive) else _tar_members
    for name, size, stream in walk(archive):
        match = re.search(pattern, name)
        if match:
            yield match, size, stream


@contextmanager
def one_line_for(archive: Path) -> Iterator[None]:
    """Turn what the archive modules raise, on opening or on reading a member, into one line.

    Args:
        archive: The file, to be named.

    Yields:
        Nothing.

    Raises:
        ValueError: If the archive is damaged or refused.
    """
    try:
        yield
    except tarfile.FilterError as error:
        raise DatasetError(f"archive {archive} is refused, it is not the original: {error}") from None
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise DatasetError(f"archive {archive} is damaged or cut short ({error}): download it again") from None


def _tar_members(archive: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    with (
        archive.open("rb") as file,
        _progress_bar(archive.stat().st_size, archive.name, "B", scale=True) as bar,
        tarfile.open(fileobj=cast("IO[bytes]", _CountedReader(file, bar)), mode="r|*") as tar,
    ):
        for member in tar:
            tarfile.data_filter(member, str(archive.parent))  # refuses absolute names, "..", links outside, devices
            stream = tar.extractfile(member) if member.isreg() else None
            if stream is not None:
                yield member.name, member.size, stream


def _zip_members(archive: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    with zipfile.ZipFile(archive) as file:
        members = [member for member in file.infolist() if not member.is_dir()]
        with _progress_bar(sum(member.file_size for member in members), archive.name, "B", scale=True) as bar:
            for member in members:
                if member.filename.startswith("/") or ".." in Path(member.filename).parts:
                    raise DatasetError(f"archive {archive} is refused: its member {member.filename!r} leads outside")
                with file.open(member) as stream:
                    yield member.filename, member.file_size, stream
                bar.update(member.file_size)


class _CountedReader:
    """A file that moves a progress bar as it is read; all that tarfile's stream mode asks of a file."""

    def __init__(self, file: IO[bytes], bar: tqdm[NoReturn]) -> None:
        self._file = file
        self._bar = bar

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._bar.update(len(data))
        return data


def unpack(archive: Path, root: Path, pattern: str) -> int:
    """Unpack the members that match; those there already with the right size are left alone.

    Args:
        archive: Tar or zip file.
        root: Where to.
        pattern: Regular expression; group 1 is the folder under `root`, group 2 the file's name.

    Returns:
        Number of members that matched.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, refused or holds nothing that matches.
    """
    found = 0
    with one_line_for(archive):
        for match, size, stream in archive_members(archive, pattern):
            found += 1
            target = root / match[1] / match[2]
            if not (target.is_file() and target.stat().st_size == size):
                _write_stream(stream, target)
    if not found:
        raise DatasetError(f"archive {archive} holds none of the files expected of it: is it the right one?")
    return found


def _write_stream(stream: IO[bytes], target: Path) -> None:
    with replacing(target) as temporary, temporary.open("wb") as file:
        shutil.copyfileobj(stream, file)


@dataclass(frozen=True)
class PaintItem:
    """A COCO picture to paint the mask of: `size` is (H, W) by the JSON, `annotations` are in the JSON's order."""

    picture: Path
    mask: Path
    size: tuple[int, int]
    annotations: list[dict[str, Any]]


def paint_chunk(items: Iterable[PaintItem], *, values: Mapping[int, int], crowd: str) -> list[str]:
    """Paint and write the masks of some COCO pictures.

    Args:
        items: The pictures.
        values: Class value of every category id.
        crowd: What a crowd region paints, see `CROWD_VALUES`.

    Returns:
        A line for each picture that failed.
    """
    problems = []
    for item in items:
        try:
            _check_size(item.picture, item.size, "its annotations")
            mask = paint_annotations(item.annotations, item.size, values, crowd)
        except (ValueError, FileNotFoundError) as error:
            text = str(error)
            text = text if str(item.picture) in text else f"picture {item.picture}: {text}"
            problems.append(" ".join(text.split()))  # a file name may hold line breaks
        else:
            write_mask(item.mask, mask)
    return problems


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
        raise DatasetError(f"{name} holds no readable GTcls.Segmentation ({reason}): unpack SBD again") from None
    if mask.ndim != 2 or mask.size == 0 or mask.min() < 0 or mask.max() > 20:
        values = f"{mask.min()}..{mask.max()}" if mask.size else "none"
        raise DatasetError(
            f"{name}: GTcls.Segmentation has shape {mask.shape} and values {values}, expected (H, W) and 0..20: "
            "unpack SBD again"
        )
    return mask.astype(np.uint8)


@dataclass(frozen=True)
class ConvertItem:
    """A PASCAL mask to write: `source` is VOC's PNG, an SBD .mat, or an SBD .mat's bytes; `name` names it in errors."""

    picture: Path
    mask: Path
    source: Path | bytes
    name: str


def convert_chunk(items: Iterable[ConvertItem], *, colours: CommonColours) -> list[str]:
    """Write some VOC or SBD masks as palette PNGs.

    Args:
        items: The masks.
        colours: Of VOC's own masks, from `common_colours`: one with another palette has other values, too.

    Returns:
        A line for each mask that failed.
    """
    problems = []
    for item in items:
        try:
            if isinstance(item.source, Path) and item.source.suffix == ".png":
                refuse_other_palette(item.source, colours)
                mask = read_mask(item.source)
            else:
                mask = read_sbd(io.BytesIO(item.source) if isinstance(item.source, bytes) else item.source, item.name)
            _check_size(item.picture, (mask.shape[0], mask.shape[1]), f"its mask {item.name}")
        except (ValueError, FileNotFoundError) as error:
            problems.append(str(error))
        else:
            write_mask(item.mask, mask)
    return problems


def _check_size(picture: Path, size: tuple[int, int], other: str) -> None:
    stored = read_size(picture)
    if stored != size:
        raise DatasetError(
            f"picture {picture} is {stored[0]} x {stored[1]} (H x W), but {other} {size[0]} x {size[1]}: "
            "one of them is not the original, restore it"
        )
