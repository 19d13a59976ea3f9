"""Lists the pictures and the other files of a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hdmnet.runtime.walk import walk_folders

#: What pictures and masks are called; of HEIC files, which Pillow reads with a plug-in only, reading says so.
IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".tif", ".tiff"),
        *(".webp", ".gif", ".avif", ".avifs", ".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c", ".ppm", ".pgm", ".pbm"),
        *(".pnm", ".tga", ".qoi", ".heic", ".heif", ".hif"),
    )
)


@dataclass(frozen=True)
class Listing:
    """What lies in a folder and its subfolders, also linked ones; hidden files and folders are none of it.

    Attributes:
        pictures: Paths by name, which is the path below the folder without its suffix ("cats/1"), both ascending.
        others: Files that are no pictures by their names.
        links: A line for each link that was not followed, see `walk_folders`.
        broken: Links that lead nowhere and are not called as pictures are: folders that are not there, maybe.
    """

    pictures: dict[str, list[Path]]
    others: tuple[Path, ...]
    links: tuple[str, ...]
    broken: tuple[Path, ...]


def is_picture(path: Path) -> bool:
    """Whether a file is called as pictures are."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def list_files(folder: Path) -> Listing:
    """List a folder and its subfolders.

    Raises:
        OSError: A folder cannot be read.
    """
    found: dict[str, list[Path]] = {}
    others: list[Path] = []
    broken: list[Path] = []
    links: list[str] = []
    for parent, folders, files in walk_folders(folder, links):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (parent / name for name in files if not name.startswith(".")):
            if is_picture(path):
                found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
            else:
                (broken if path.is_symlink() and not path.exists() else others).append(path)
    pictures = {name: sorted(found[name]) for name in sorted(found)}
    return Listing(pictures, tuple(sorted(others)), tuple(links), tuple(sorted(broken)))
