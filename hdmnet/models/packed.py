"""Rows that differ in number from item to item: the foreground positions of the supports.

Only the foreground of the supports ever counts in prior, matching and correlation map: those positions are picked once,
and the rest is left out of every product. There are two forms of it:

* `PackedRows`, one item after the other, exactly as many rows as there are: what a CPU computes on, and what is kept of
  supports for later.
* `PaddedRows`, as many rows for every item, with a mask: what a GPU computes on. All items go through one kernel, and
  the host need not know how many rows an item has, which it could only wait for.

The number of rows is read from masks on the CPU where they are given there (`FewShotMethod.takes_host_masks`), so that
nothing waits for the GPU; from masks on a GPU it takes one wait.

Dimension letters: S items (supports), N positions of a map, M_s foreground positions of item s, M rows of every item, C
channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

ROUND = 64  # rows: sizes that matrix products are fast at


@dataclass
class PackedRows:
    """S items of M_s rows each.

    Attributes:
        values: (ΣM_s, C), the items one after the other.
        counts: M_s of each item.
    """

    values: Tensor
    counts: tuple[int, ...]

    def unbind(self) -> list[PackedRows]:
        """One item (M_s, C) each."""
        return [PackedRows(rows, (len(rows),)) for rows in self.values.split(self.counts)]

    @classmethod
    def cat(cls, items: Sequence[PackedRows]) -> PackedRows:
        """The items of all, in order: (ΣM_s, C)."""
        values = items[0].values if len(items) == 1 else torch.cat([item.values for item in items])
        return cls(values, tuple(count for item in items for count in item.counts))

    def merge(self, size: int) -> PackedRows:
        """Make one item of every `size` neighbours; the rows (ΣM_s, C) stay."""
        return PackedRows(self.values, tuple(sum(self.counts[i : i + size]) for i in range(0, len(self.counts), size)))

    def pad(self) -> tuple[Tensor, Tensor]:
        """Pad to the longest: rows (S, M, C) that are 0 where padded, and (S, M) bool, False there; M is at least 1."""
        longest = max(*self.counts, 1) if self.counts else 1
        valid = torch.arange(longest) < torch.tensor(self.counts)[:, None]
        if min(self.counts, default=0) == longest:
            rows = self.values.unflatten(0, valid.shape)  # nothing to copy
        elif self.values.is_cpu:
            rows = pad_sequence(self.values.split(self.counts), batch_first=True)
            rows = F.pad(rows, (0, 0, 0, longest - rows.shape[1]))
        else:  # not a kernel an item
            places = send(valid.flatten().nonzero()[:, 0], self.values.device)
            rows = self.values.new_zeros(valid.numel(), self.values.shape[1]).index_copy(0, places, self.values)
            rows = rows.unflatten(0, valid.shape)
        return rows, send(valid, rows.device)


@dataclass
class PaddedRows:
    """What `PackedRows` holds, with one number of rows for all items; does for prior and matching what that does.

    Attributes:
        values: (S, M, C).
        valid: (S, M) bool, False where a row does not count.
    """

    values: Tensor
    valid: Tensor

    def merge(self, size: int) -> PaddedRows:
        """Make one item of every `size` neighbours."""
        return PaddedRows(*(x.unflatten(0, (-1, size)).flatten(1, 2) for x in (self.values, self.valid)))

    @classmethod
    def cat(cls, items: Sequence[PaddedRows]) -> PaddedRows:
        """The items of all, in order; all have as many rows."""
        return cls(torch.cat([item.values for item in items]), torch.cat([item.valid for item in items]))

    def pad(self) -> tuple[Tensor, Tensor]:
        """Rows (S, M, C) and (S, M) bool."""
        return self.values, self.valid


Rows = PackedRows | PaddedRows


@dataclass
class Foreground:
    """Where the masks of S items are set.

    Attributes:
        index: (ΣM_s,) int64, positions in the S·N of all items, ascending.
        counts: M_s of each item.
    """

    index: Tensor
    counts: tuple[int, ...]

    def gather(self, maps: Tensor) -> PackedRows:
        """Take the foreground positions of maps (S, C, h, w), h·w = N."""
        rows = maps.flatten(2).transpose(1, 2).reshape(-1, maps.shape[1])  # no copy if channels come last in memory
        return PackedRows(rows.index_select(0, self.index), self.counts)


@dataclass
class PaddedForeground:
    """As `Foreground`, with as many positions for every item.

    Attributes:
        index: (S, M) int64, positions in the S·N of all items: of each item the foreground first, then others, none
            twice: in the backward pass no two threads write to one place.
        valid: (S, M) bool, True on foreground.
    """

    index: Tensor
    valid: Tensor

    def gather(self, maps: Tensor) -> PaddedRows:
        """Take the positions of maps (S, C, h, w), h·w = N."""
        rows = maps.flatten(2).transpose(1, 2)
        if self.index.shape[1] < rows.shape[1]:  # else all of them, in order
            rows = rows.reshape(-1, maps.shape[1]).index_select(0, self.index.flatten()).unflatten(0, self.index.shape)
        return PaddedRows(rows, self.valid)


def find_foreground(masks: Tensor, size: tuple[int, int]) -> Foreground:
    """Find the foreground positions of masks at a map's size.

    Args:
        masks: (S, H, W) float, 1 on foreground and 0 elsewhere.
        size: (h, w) of the maps; the masks are resized by nearest neighbour, as in the release.

    Returns:
        The positions, on the device of the masks.
    """
    return find_foregrounds(masks, [size], masks.device)[0]


def find_foregrounds(masks: Tensor, sizes: Sequence[tuple[int, int]], device: torch.device) -> list[Foreground]:
    """As `find_foreground` for maps of several sizes, for maps on a device, where the masks need not be."""
    resized = [_resize(masks, size) for size in sizes]
    if not masks.is_cpu:  # the one wait
        resized = list(torch.cat(resized, dim=1).cpu().split([h * w for h, w in sizes], dim=1))
    return [Foreground(send(one.flatten().nonzero()[:, 0], device), tuple(one.sum(1).tolist())) for one in resized]


def pad_foregrounds(masks: Tensor, sizes: Sequence[tuple[int, int]], capacities: Sequence[int]) -> list[PaddedForeground]:
    """As `find_foregrounds`, with `capacities` of positions, at least those of foreground; waits for nothing."""
    found = []
    for size, capacity in zip(sizes, capacities, strict=True):
        resized = _resize(masks, size)  # (S, N)
        order = torch.arange(capacity, device=masks.device).expand(len(masks), -1)
        if capacity < resized.shape[1]:
            order = resized.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :capacity]
        first = torch.arange(0, resized.numel(), resized.shape[1], device=masks.device)
        found.append(PaddedForeground(order + first[:, None], resized.gather(1, order)))
    return found


def measure_capacities(masks: Tensor, sizes: Sequence[tuple[int, int]], *, coarse: bool = False) -> list[int]:
    """How many rows hold the foreground of any of the masks (S, H, W), for maps of each size; at least 1.

    Waits for the masks' device, if that is no CPU.

    Args:
        masks: (S, H, W) bool, uint8 or float, 1 on foreground and 0 elsewhere.
        sizes: (h, w) of the maps.
        coarse: Of few values, so that what is compiled for one is seldom compiled again: all positions, or a half, a
            fourth … a sixteenth of them, at all sizes alike. Else a multiple of `ROUND`.
    """
    positions = [h * w for h, w in sizes]
    most = torch.stack([_resize(masks, size).sum(1).max() for size in sizes]).tolist()
    if coarse:
        share = max(number / of for number, of in zip(most, positions, strict=True))
        part = next(part for part in (16, 8, 4, 2, 1) if share * part <= 1)
        return [-(-of // part) for of in positions]
    return [min(max(-(-number // ROUND), 1) * ROUND, of) for number, of in zip(most, positions, strict=True)]


def send(x: Tensor, device: torch.device) -> Tensor:
    """Copy from a CPU to a device without waiting for it."""
    if x.device == device:
        return x
    return (x.pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)


def _resize(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (S, H, W), 0 and 1, as (S, h·w) bool."""
    masks = masks.view(torch.uint8) if masks.dtype == torch.bool else masks
    return F.interpolate(masks[:, None], size, mode="nearest").flatten(1) > 0.5
