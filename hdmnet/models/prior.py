"""Prior masks (paper Sec. 3.3 "the same as [45]", with the release's two maps and without its normalisation).

Dimension letters: B batch, K shots, C channels, h w feature size, M foreground positions of one support.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hdmnet.models.packed import PackedRows, Rows

EPS = 1e-7
# Memory does not grow with the foreground: support positions compared at once on a CPU, products held at once on a GPU.
BLOCK, PRODUCTS_GPU = 1024, 2**27


def prior_mask(query: Tensor, keys: Rows, *, shots: int, normalise: bool = False) -> Tensor:
    """Largest cosine similarity of each query position to the supports' foreground, averaged over the shots.

    Masked-out support positions count as a similarity of exactly 0, as in the release.

    Args:
        query: (B, C, h, w) float, high-level query features.
        keys: B·K items of (M, C) float: high-level features of the supports' foreground at the same size (h, w), those
            of query 0 first.
        shots: K.
        normalise: Stretch each map to [0, 1] by its own minimum and maximum, before the mean over shots (PFENet; the
            release does not).

    Returns:
        (B, 1, h, w) float, in [-1, 1].
    """
    if query.is_cpu and isinstance(keys, PackedRows):
        result = _best_one_by_one(query, keys, shots)
    else:
        result = _best_at_once(query, keys, shots)
    if normalise:
        result = stretch(result.flatten(1)).view_as(result)
    mean: Tensor = result.unflatten(0, (-1, shots)).mean(1, keepdim=True)
    return mean


def _best_one_by_one(query: Tensor, keys: PackedRows, shots: int) -> Tensor:
    """Similarity (B·K, h, w) of the best of each support's keys, one support after the other."""
    lengths = keys.values.norm(dim=1)
    units = PackedRows(keys.values / (lengths[:, None] + torch.finfo(lengths.dtype).tiny), keys.counts)
    query_lengths = query.norm(dim=1)  # (B, h, w); it divides after the maximum, which it does not change
    similarities = []
    for i, (rows, own_lengths) in enumerate(zip(units.unbind(), lengths.split(keys.counts), strict=True)):
        item = i // shots
        best = _best_match(query[item : item + 1], rows.values, query_lengths[item], own_lengths)
        # Where there is background, its similarity is 0.
        similarities.append(best.clamp(min=0) if len(own_lengths) < best.numel() else best)
    return torch.stack(similarities)


def _best_at_once(query: Tensor, keys: Rows, shots: int) -> Tensor:
    """As `_best_one_by_one`, of all supports together."""
    rows, valid = keys.pad()  # (B·K, M, C), (B·K, M)
    lengths = rows.norm(dim=2)
    # What does not count has a similarity of exactly 0, as the background has: it needs no other mask.
    units = rows * (valid / (lengths + torch.finfo(lengths.dtype).tiny))[..., None]
    flat, query_lengths = query.flatten(2), query.norm(dim=1).flatten(1)  # (B, C, N), (B, N)
    step = max(PRODUCTS_GPU // (len(rows) * flat.shape[2]), 16)
    best: Tensor | None = None
    for block, block_lengths in zip(units.split(step, 1), lengths.split(step, 1), strict=True):
        products = torch.bmm(block.unflatten(0, (-1, shots)).flatten(1, 2), flat)  # (B, K·m, N)
        largest, index = products.unflatten(1, (shots, -1)).max(2)  # (B, K, N)
        of_largest = block_lengths.unflatten(0, (-1, shots)).gather(2, index)
        found = largest / (query_lengths[:, None] + EPS / (of_largest + EPS))
        best = found if best is None else torch.maximum(best, found)
    assert best is not None
    best = torch.where(valid.sum(1).view(-1, shots, 1) < best.shape[2], best.clamp(min=0), best)
    return best.reshape(-1, *query.shape[2:])


def _best_match(query: Tensor, keys: Tensor, query_lengths: Tensor, lengths: Tensor) -> Tensor:
    """Largest cosine (h, w) of each position of a query (1, C, h, w) with keys (M, C) of length 1 or 0; 0 without keys.

    The lengths, (h, w) and (M,), are of the query and of the keys before they were brought to 1.
    """
    best = torch.zeros_like(query_lengths) if not len(keys) else torch.full_like(query_lengths, -torch.inf)
    for block, block_lengths in zip(keys.split(BLOCK), lengths.split(BLOCK), strict=True):
        if not len(block):
            break
        largest, index = inner_products(query, block).max(0)
        # As in the release: q·k / (|q| |k| + eps).
        best = torch.maximum(best, largest / (query_lengths + EPS / (block_lengths[index] + EPS)))
    return best


def inner_products(query: Tensor, keys: Tensor) -> Tensor:
    """Of a query (1, C, h, w) and keys (M, C): (M, h, w), on a CPU."""
    # The same numbers as of a matrix product, twice as fast: convolutions go to oneDNN, products to MKL.
    return F.conv2d(query, keys[:, :, None, None])[0]


def stretch(maps: Tensor) -> Tensor:
    """Maps (..., N) to [0, 1], each by its own minimum and maximum; of a part of a picture see `SharedRanges`."""
    low, high = maps.amin(-1, keepdim=True), maps.amax(-1, keepdim=True)
    shared = _shared.get()
    if shared is None:
        return (maps - low) / (high - low + EPS)
    low, high = shared.take(low, high)
    return ((maps - low) / (high - low + EPS)).clamp(0, 1)


class SharedRanges:
    """The ranges by which parts of one picture, or pictures of one scene, are stretched alike, as if they were one.

    Alone each part would be stretched as if the object were in it. A method stretches its maps in a fixed order, by
    which the ranges are told apart. First all parts are run, each stretched by itself; after `fix` they are run again,
    stretched by the extremes that were seen. Those of a map that is made of stretched ones are then too wide by a
    little; further rounds, each ended by `fix`, would bring them closer (docs/log.md: nothing was gained).
    """

    def __init__(self) -> None:
        self._known: list[tuple[Tensor, Tensor]] = []
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._next = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing was stretched since the last `fix`."""
        return not self._seen

    @contextmanager
    def part(self) -> Iterator[None]:
        """What is stretched in this block, and in this thread, is of one part."""
        self._next = 0
        token = _shared.set(self)
        try:
            yield
        finally:
            _shared.reset(token)

    def fix(self) -> None:
        """All parts have been seen: their extremes count from now on."""
        self._known, self._seen = self._seen, []

    def take(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Note a map's own extremes (..., 1); returns those to stretch it by."""
        place, self._next = self._next, self._next + 1
        if place == len(self._seen):
            self._seen.append((low, high))
        else:
            least, largest = (one.to(low.device) for one in self._seen[place])
            if least.shape == low.shape:
                self._seen[place] = torch.minimum(least, low), torch.maximum(largest, high)
        if place >= len(self._known):  # in the first round
            return low, high
        known_low, known_high = (one.to(low.device) for one in self._known[place])
        if known_low.shape != low.shape:  # one a shot, and there are more shots now
            return known_low.amin(0, keepdim=True), known_high.amax(0, keepdim=True)
        return known_low, known_high

    def to_lists(self) -> list[Any]:
        """What was seen since the last `fix`, as lists of numbers."""
        return [[one.tolist() for one in pair] for pair in self._seen]

    def see_lists(self, lists: list[Any]) -> None:
        """Take what `to_lists` gave as seen."""
        self._seen = [(torch.tensor(low), torch.tensor(high)) for low, high in lists]


_shared: ContextVar[SharedRanges | None] = ContextVar("shared_ranges", default=None)
