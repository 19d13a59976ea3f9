"""Lists of image ids as text files, and fingerprints of folders of files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from hdmnet.runtime.errors import DatasetError, MissingFileError
from hdmnet.runtime.home import expand_home


def strip_path(line: str) -> str:
    """Id of a line of a list: "ID", or "/JPEGImages/ID.jpg /SegmentationClassAug/ID.png", also as Windows writes it."""
    path = Path(line.split()[0].replace("\\", "/"))
    return path.stem if path.suffix.lower() in (".jpg", ".jpeg", ".png") else path.name


def read_ids(path: str | Path, parse: Callable[[str], str] = strip_path) -> list[str]:
    """Read a list of ids, one a line, in order; empty lines are skipped.

    Args:
        path: Text file.
        parse: Makes an id of a line that is not empty, without the space around it.

    Returns:
        The ids.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file holds no id or one id twice, or is no UTF-8.
    """
    if not os.path.isfile(path):
        raise MissingFileError(f"list of image ids {path} is missing: restore it or correct its path")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        raise DatasetError(f"list {path} is no UTF-8 text ({error.reason}): save it as UTF-8") from None
    ids = [parse(line.strip()) for line in text.splitlines() if line.strip()]
    if not ids:
        raise DatasetError(f"list of image ids {path} is empty, expected one id a line")
    check_unique(ids, str(path))
    return ids


def find_list(listed: str, folder: Path, *, names: str) -> Path:
    """Path of a list of ids, given relative to `folder` or to the working directory, or absolute.

    Raises:
        FileNotFoundError: If there is none; `names` are those that would have been taken for a list too.
    """
    for candidate in (folder / listed, folder / f"{listed}.txt", expand_home(listed)):
        if candidate.is_file():
            return candidate
    raise MissingFileError(
        f"list of ids {listed!r} is neither a known name ({names}) nor a file in {folder} or in {Path.cwd()}: "
        "correct the path"
    )


def check_unique(ids: list[str], origin: str) -> None:
    """Refuse a list that holds an id twice; `origin` says where it comes from.

    Raises:
        ValueError: An id occurs more than once.
    """
    seen: set[str] = set()
    for image_id in ids:
        if image_id in seen:
            raise DatasetError(f"{origin} holds id {image_id!r} more than once, expected each once: remove duplicates")
        seen.add(image_id)


def require_ids(ids: list[str], present: set[str], origin: str, what: str, remedy: str) -> None:
    """Check that every id of a list has its file.

    Args:
        ids: The list.
        present: Ids whose file is there.
        origin: Which list, for the error.
        what: What is looked for, and where.
        remedy: What to do.

    Raises:
        FileNotFoundError: If any lacks; names the first and how many.
    """
    missing = [image_id for image_id in ids if image_id not in present]
    if missing:
        raise MissingFileError(
            f"{origin}: {len(missing):,} of {len(ids):,} ids have no {what}, first {missing[0]!r}: {remedy}"
        )


def refuse_shared_ids(train: list[str], val: list[str]) -> None:
    """Refuse lists that would train on validation images.

    Raises:
        ValueError: If an id is in both; names the first three.
    """
    shared = sorted(set(train) & set(val))
    if shared:
        named = ", ".join(map(repr, shared[:3])) + (f" and {len(shared) - 3:,} more" if len(shared) > 3 else "")
        what, them = ("1 id is", "it") if len(shared) == 1 else (f"{len(shared):,} ids are", "them")
        raise DatasetError(f"{what} in the train list and in the val list: {named}: take {them} off one of them")


def _facts(entry: os.DirEntry[str]) -> list[str]:
    """A file's name, size and time; the name alone of one that cannot be looked at, which reading it will tell."""
    try:
        if not entry.is_file():
            return []
        stat = entry.stat()
    except OSError:  # e.g. a circle of links
        return [entry.name]
    return [f"{entry.name}\0{stat.st_size}\0{stat.st_mtime_ns}"]


def fingerprint_files(folder: str | Path, *, names: Iterable[str] | None = None, extra: Iterable[str] = ()) -> str:
    """Hash names, sizes and modification times of a folder's files, without opening them, as hex sha256.

    Args:
        folder: Folder to scan (not its subfolders).
        names: Only these file names count; None = all files. Names without a file are left out, so that a file that
            appears later changes the fingerprint.
        extra: More texts that the masks depend on, e.g. a crowd rule or a format version.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    wanted = None if names is None else set(names)
    try:
        with os.scandir(folder) as entries:  # one pass; os.listdir + os.stat per file is several times slower
            rows = []
            for entry in entries:
                if wanted is None or entry.name in wanted:
                    rows += _facts(entry)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFileError(f"folder of masks {folder} is missing: restore it") from None
    rows.sort()
    return hashlib.sha256("\n".join([*extra, "", *rows]).encode(errors="surrogateescape")).hexdigest()
