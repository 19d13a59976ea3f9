"""A test's pixels by truth and prediction, episode by episode: for intervals and comparisons.

Dimension letters: B episodes of a batch, E episodes, C classes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from hdmnet.data.types import Episode, EvaluationBatch
from hdmnet.runtime.atomic import replacing
from hdmnet.runtime.errors import InputError, MissingFileError

if TYPE_CHECKING:
    from torch import Tensor

EPISODES = "episodes.csv"

IntArray = NDArray[np.int64]
_NOT_RUN = -1
_FIRST = ("seed", "episode", "class", "query", "background_pixels", "object_pixels")
_ENDINGS = ("false", "found")  # of a prediction's two columns: false and true positives


@dataclass(frozen=True)
class EpisodeTable:
    """Pixels of each episode by truth and prediction, in the order of seed and index.

    Attributes:
        class_names: Of the C classes.
        seed: (E,) places of the test seeds.
        index: (E,) places in the seeds' manifests.
        class_index: (E,) places of the classes.
        queries: E image ids.
        pixels: Of each prediction (E, 2, 2) as `hdmnet.metrics.count_pixels` counts; -1 where it was not run.
    """

    class_names: tuple[str, ...]
    seed: IntArray
    index: IntArray
    class_index: IntArray
    queries: tuple[str, ...]
    pixels: Mapping[str, IntArray]

    def __len__(self) -> int:
        """Number of episodes E."""
        return len(self.seed)

    def choose(self, which: NDArray[np.bool_]) -> EpisodeTable:
        """The episodes where `which` (E,) is true."""
        return replace(
            self,
            seed=self.seed[which],
            index=self.index[which],
            class_index=self.class_index[which],
            queries=tuple(query for query, kept in zip(self.queries, which.tolist(), strict=True) if kept),
            pixels={name: pixels[which] for name, pixels in self.pixels.items()},
        )

    def first_seed(self) -> EpisodeTable:
        """The episodes of the first test seed."""
        return self.choose(self.seed == 0)

    def has(self, *names: str) -> NDArray[np.bool_]:
        """(E,) whether all these predictions were run."""
        known = [name in self.pixels for name in names]
        if not all(known):
            return np.zeros(len(self), dtype=bool)
        ran: NDArray[np.bool_] = np.all([self.pixels[name][:, 0, 0] != _NOT_RUN for name in names], axis=0)
        return ran

    def object_shares(self, name: str) -> NDArray[np.float64]:
        """(E,) share of the query's pixels that is the object, of those that count; by a prediction that was run."""
        truth = self.pixels[name].sum(axis=2)  # (E, 2)
        shares: NDArray[np.float64] = truth[:, 1] / np.maximum(truth.sum(axis=1), 1)
        return shares

    def ious(self, name: str) -> NDArray[np.float64]:
        """(E,) IoU of each episode; NaN where neither truth nor prediction has a pixel."""
        found, either = intersection_and_union(self.pixels[name])
        ious: NDArray[np.float64] = np.divide(found, either, out=np.full(len(self), np.nan), where=either > 0)
        return ious

    def write(self, path: Path) -> None:
        """Write the table as CSV, in one step: an episode a line, a prediction's columns empty where it was not run."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*_FIRST, *(f"{name}_{ending}" for name in self.pixels for ending in _ENDINGS)])
        truths = np.max([one.sum(axis=2) for one in self.pixels.values()], axis=0).tolist() if self.pixels else []
        columns = [
            [("", "") if one[0][0] == _NOT_RUN else (one[0][1], one[1][1]) for one in pixels.tolist()]
            for pixels in self.pixels.values()
        ]
        places = zip(self.seed.tolist(), self.index.tolist(), self.class_index.tolist(), strict=True)
        for (seed, index, value), query, truth, *found in zip(places, self.queries, truths, *columns, strict=True):
            writer.writerow(
                [seed, index, self.class_names[value], query, *truth, *(one for two in found for one in two)]
            )
        with replacing(path) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8", errors="surrogateescape")


def intersection_and_union(pixels: IntArray) -> tuple[IntArray, IntArray]:
    """Pixels (…, 2, 2) by truth and prediction → foreground pixels that the two share, and those of either."""
    found = pixels[..., 1, 1]
    return found, found + pixels[..., 0, 1] + pixels[..., 1, 0]


def tabulate_batch(
    batch: Episode | EvaluationBatch,
    class_names: Sequence[str],
    item: Sequence[int],
    pixels: Mapping[str, tuple[Tensor, Sequence[int]]],
) -> EpisodeTable:
    """The E episodes of the manifests that a batch of B stands for.

    Args:
        batch: Tells class, query, place and seed.
        class_names: Of the classes.
        item: Which of the B each of the E equals.
        pixels: Of each prediction (b, 2, 2) int64, and which of the B these are.
    """
    ids = [key.image_id for key in batch.queries] if isinstance(batch, EvaluationBatch) else list(batch.query_id)
    items = np.asarray(item, dtype=np.int64)
    rows = {}
    for name, (counts, chosen) in pixels.items():
        every = np.full((len(ids), 2, 2), _NOT_RUN)
        every[list(chosen)] = counts.numpy()
        rows[name] = every[items]
    return EpisodeTable(
        tuple(class_names),
        seed=batch.seed_index.numpy().reshape(-1).copy(),
        index=batch.index.numpy().reshape(-1).copy(),
        class_index=batch.class_index.cpu().numpy().reshape(-1)[items],
        queries=tuple(ids[one] for one in items.tolist()),
        pixels=rows,
    )


def join_tables(tables: Sequence[EpisodeTable], class_names: Sequence[str]) -> EpisodeTable:
    """One table of several; of an episode in two of them a prediction's later pixels stay."""
    none = np.zeros(0, dtype=np.int64)
    places = [np.stack([one.seed, one.index], axis=1) for one in tables] or [none.reshape(0, 2)]
    keys, first, row = np.unique(np.concatenate(places), axis=0, return_index=True, return_inverse=True)
    row = row.reshape(-1)
    queries = [query for one in tables for query in one.queries]
    found: dict[str, IntArray] = {}
    start = 0
    for one in tables:
        own = row[start : start + len(one)]
        start += len(one)
        for name, pixels in one.pixels.items():
            ran = one.has(name)
            found.setdefault(name, np.full((len(keys), 2, 2), _NOT_RUN))[own[ran]] = pixels[ran]
    return EpisodeTable(
        tuple(class_names),
        seed=keys[:, 0],
        index=keys[:, 1],
        class_index=np.concatenate([none, *(one.class_index for one in tables)])[first],
        queries=tuple(queries[one] for one in first.tolist()),
        pixels=found,
    )


def gather_tables(tables: Sequence[EpisodeTable], class_names: Sequence[str]) -> EpisodeTable:
    """One table of what all processes have; the same on each."""
    own = join_tables(tables, class_names)
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return own
    gathered: list[EpisodeTable] = [own] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, own)
    return join_tables(gathered, class_names)


def read_episodes(path: Path, class_names: Sequence[str]) -> EpisodeTable:
    """Read what `EpisodeTable.write` wrote.

    Args:
        path: The file.
        class_names: Of the classes, those of the result beside it.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged, or of other classes.
    """
    if not path.is_file():
        raise MissingFileError(
            f"{path} is missing: an earlier version wrote none; python -m hdmnet.evaluate on the same checkpoint does"
        )
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            head, *rows = csv.reader(file)
        if tuple(head[: len(_FIRST)]) != _FIRST or any(len(row) != len(head) for row in rows):
            raise ValueError("its columns are others")
        places = {name: place for place, name in enumerate(class_names)}
        seed, index, names, queries, *rest = zip(*rows, strict=True) if rows else [()] * len(head)
        numbers = [np.array([int(value or _NOT_RUN) for value in column], dtype=np.int64) for column in rest]
        background, objects, *found = numbers
        pixels = {}
        for name, false, true in zip(head[len(_FIRST) :: 2], found[::2], found[1::2], strict=True):
            ran = false != _NOT_RUN
            cells = np.stack([background - false, false, objects - true, true], axis=1)
            pixels[name.removesuffix(f"_{_ENDINGS[0]}")] = np.where(ran[:, None], cells, _NOT_RUN).reshape(-1, 2, 2)
        return EpisodeTable(
            tuple(class_names),
            seed=np.array([int(value) for value in seed], dtype=np.int64),
            index=np.array([int(value) for value in index], dtype=np.int64),
            class_index=np.array([places[name] for name in names], dtype=np.int64),
            queries=queries,
            pixels=pixels,
        )
    except (ValueError, KeyError) as error:
        raise InputError(f"{path} is damaged, or not of the result beside it ({error}): run the test again") from None
