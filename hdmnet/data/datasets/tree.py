"""What data sets of files have in common: a picture and a mask file for every image, and lists of ids as text files."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path

from hdmnet.data.datasets.base import SegmentationDataset, Split, SplitRule, check_unique, read_id_list
from hdmnet.data.io.arrays import UInt8Array
from hdmnet.data.io.masks import read_mask
from hdmnet.data.io.pictures import read_image, read_size


class TreeDataset(SegmentationDataset):
    """A data set in a folder; its subclasses tell where the files of an image lie.

    Attributes:
        root: The folder.
        lists: What the user asked for as the list of each split; None where the folder itself says.

    Args:
        root: The folder.
        train_list: List of training images.
        val_list: List of validation images.
        split_rule: How classes are dealt out to folds.
        min_area: Fewest pixels, at original size, for a class to count in an image.
    """

    def __init__(
        self, root: str | Path, train_list: str | None, val_list: str | None, split_rule: SplitRule, min_area: int
    ) -> None:
        self.root = Path(root)
        self.lists: dict[Split, str | None] = {"train": train_list, "val": val_list}
        self.split_rule = split_rule
        self.min_area = min_area

    @abstractmethod
    def image_path(self, image_id: str) -> Path:
        """Path of a picture; need not exist."""

    @abstractmethod
    def mask_path(self, image_id: str) -> Path:
        """Path of a mask; need not exist."""

    def read_image(self, image_id: str) -> UInt8Array:
        """Picture as (H, W, 3) uint8 RGB at original size; grey pictures too."""
        return read_image(self.image_path(image_id))

    def read_mask(self, image_id: str) -> UInt8Array:
        """Mask as (H, W) uint8 at original size: 0 background, 1..C class, 255 ignore."""
        return read_mask(self.mask_path(image_id))

    def image_size(self, image_id: str) -> tuple[int, int]:
        """Size (H, W) of the picture, from its header; refuses one that is cut short."""
        return read_size(self.image_path(image_id))

    def require_ids(self, ids: list[str], present: set[str], origin: str, what: str, remedy: str) -> None:
        """As the function below; does nothing where files may be skipped, for then the catalog leaves them out."""
        if self.skips is None:
            require_ids(ids, present, origin, what, remedy)

    def mask_location(self, image_id: str) -> str:
        """Path of the mask, for error messages."""
        return str(self.mask_path(image_id))


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
        raise FileNotFoundError(
            f"{origin}: {len(missing):,} of {len(ids):,} ids have no {what}, first {missing[0]!r}: {remedy}"
        )


def refuse_shared_ids(train: list[str], val: list[str]) -> None:
    """Refuse lists that would train on validation images.

    Args:
        train: Training ids.
        val: Validation ids.

    Raises:
        ValueError: If an id is in both; names the first three.
    """
    shared = sorted(set(train) & set(val))
    if shared:
        named = ", ".join(map(repr, shared[:3])) + (f" and {len(shared) - 3:,} more" if len(shared) > 3 else "")
        what, them = ("1 id is", "it") if len(shared) == 1 else (f"{len(shared):,} ids are", "them")
        raise ValueError(f"{what} in the train list and in the val list: {named}: take {them} off one of them")


def find_list(listed: str, folder: Path, *, names: str) -> Path:
    """Find a list of ids by its path.

    Args:
        listed: Path relative to `folder` or to the working directory, or absolute.
        folder: The tree's folder of lists.
        names: Names that would have been taken for a list too, for the error.

    Returns:
        Path of the file.

    Raises:
        FileNotFoundError: If there is none.
    """
    for candidate in (folder / listed, folder / f"{listed}.txt", Path(listed)):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(
        f"list of ids {listed!r} is neither a known name ({names}) nor a file in {folder} or in {Path.cwd()}: "
        "correct the path"
    )


def strip_path(line: str) -> str:
    """Id of a line of a list: "ID", or "/JPEGImages/ID.jpg /SegmentationClassAug/ID.png"."""
    path = Path(line.split()[0])
    return path.stem if path.suffix.lower() in (".jpg", ".jpeg", ".png") else path.name


def read_ids(path: Path, parse: Callable[[str], str] = strip_path) -> list[str]:
    """Read a list of ids.

    Args:
        path: Text file, one image a line.
        parse: Makes an id of a line that is not empty.

    Returns:
        The ids in order.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is empty or holds an id twice.
    """
    ids = [parse(line) for line in read_id_list(path)]
    check_unique(ids, str(path))
    return ids
