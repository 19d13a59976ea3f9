"""HSNet's lists: which class of which picture is a query or a support, a file a fold.

    trn/fold0.txt … val/fold3.txt   PASCAL-5i: ID__CLASS a line, classes from 1
    trn/fold0.pkl … val/fold3.pkl   COCO-20i: a dictionary from class, counted from 0, to the pictures' paths

They come with the code of HSNet and of what builds on it, in data/splits/pascal and data/splits/coco; they are not this
project's to bring along. Small objects are left out of them by a rule that is not known. Two folds' files never differ
in the pairs of a class, so that all are read together.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hdmnet.data.datasets.base import Split
from hdmnet.runtime.errors import DatasetError, MissingFileError

_FOLDERS: dict[Split, str] = {"train": "trn", "val": "val"}


@dataclass(frozen=True)
class PairLists:
    """The pairs of all folds together: of which fold a class is tells which pairs count.

    Attributes:
        ids: Images of each split, in the order of the files.
        pairs: (image id, class value) of each split.
    """

    ids: dict[Split, list[str]]
    pairs: dict[Split, frozenset[tuple[str, int]]]


def read_pair_lists(folder: Path, num_classes: int, parse: Callable[[str], str]) -> PairLists:
    """Read the lists of both splits.

    Args:
        folder: Holds trn/ and val/.
        num_classes: Number of classes.
        parse: Makes an id of a picture's path or name.

    Raises:
        FileNotFoundError: There is none.
        ValueError: A file is malformed; one line that names it.
    """
    ids, pairs = {}, {}
    for split, name in _FOLDERS.items():
        files = sorted((folder / name).glob("fold*.txt")) or sorted((folder / name).glob("fold*.pkl"))
        if not files:
            raise MissingFileError(
                f"dataset.lists={folder}: {folder / name} holds no fold0.txt or fold0.pkl; expected the folder of "
                "HSNet's lists, with trn/ and val/"
            )
        found: dict[tuple[str, int], None] = {}
        for file in files:
            try:
                entries = _read_text(file) if file.suffix == ".txt" else _read_pickle(file)
                found |= dict.fromkeys((parse(image), int(value)) for image, value in entries)
            except (ValueError, TypeError, AttributeError, EOFError, pickle.UnpicklingError) as error:
                raise DatasetError(f"{file} is none of HSNet's lists ({' '.join(str(error).split())})") from None
        wrong = next((value for _, value in found if not 1 <= value <= num_classes), None)
        if wrong is not None or not found:
            what = "no pair" if wrong is None else f"class {wrong}"
            raise DatasetError(f"{folder / name} holds {what}; expected classes 1..{num_classes}")
        ids[split] = list(dict.fromkeys(image for image, _ in found))
        pairs[split] = frozenset(found)
    return PairLists(ids, pairs)


def _read_text(path: Path) -> list[tuple[str, int]]:
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    return [(image, int(value)) for image, value in (line.split("__") for line in lines)]


def _read_pickle(path: Path) -> list[tuple[str, int]]:
    by_class = _PlainUnpickler(io.BytesIO(path.read_bytes())).load()
    return [(str(image), int(value) + 1) for value, images in by_class.items() for image in images]


class _PlainUnpickler(pickle.Unpickler):
    """Dictionaries, lists, text and numbers only: a file from others must not run anything."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse every class and function."""
        raise pickle.UnpicklingError(f"it holds a {module}.{name}")
