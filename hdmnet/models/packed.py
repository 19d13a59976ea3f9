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
        """Nothing to do: the items are as they are wanted, see `pad_foreground`."""
        return self

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
    """As `Foreground`, of B items, each of several maps, with as many positions for every item.

    Attributes:
        index: (B, M) int64, positions in those of all maps: of each item the foreground first, then others, none twice:
            in the backward pass no two threads write to one place.
        valid: (B, M) bool, True on foreground.
    """

    index: Tensor
    valid: Tensor

    def gather(self, maps: Tensor) -> PaddedRows:
        """Take the positions of maps (S, C, h, w)."""
        rows = maps.flatten(2).transpose(1, 2)  # (S, N, C)
        if self.index.numel() < rows.shape[0] * rows.shape[1]:  # else all of them, in order
            rows = rows.reshape(-1, maps.shape[1]).index_select(0, self.index.flatten())
        return PaddedRows(rows.reshape(*self.index.shape, -1), self.valid)


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


def pad_foreground(masks: Tensor, size: tuple[int, int], capacity: int, shots: int = 1) -> PaddedForeground:
    """As `find_foreground`, with `capacity` positions for every `shots` neighbours; waits for nothing."""
    resized = _resize(masks, size).unflatten(0, (-1, shots)).flatten(1)  # (B, K·N)
    order = torch.arange(capacity, device=masks.device).expand(len(resized), -1)
    if capacity < resized.shape[1]:
        order = resized.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :capacity]
    first = torch.arange(0, resized.numel(), resized.shape[1], device=masks.device)
    return PaddedForeground(order + first[:, None], resized.gather(1, order))


def measure_capacities(
    masks: Tensor, sizes: Sequence[tuple[int, int]], shots: int, *, coarse: bool = False
) -> tuple[list[int], list[int]]:
    """How many positions hold the foreground of any of the masks, and of any `shots` neighbours, in maps of each size.

    Waits for the masks' device, if that is no CPU.

    Args:
        masks: (B·K, H, W) bool, uint8 or float, 1 on foreground and 0 elsewhere.
        sizes: (h, w) of the maps.
        shots: K.
        coarse: Of few values, so that what is compiled for one is seldom compiled again: all positions or a half of
            them, of the neighbours down to an eighth, the same part at all sizes. Else a multiple of `ROUND`.
    """
    counts = torch.stack([_resize(masks, size).sum(1) for size in sizes])  # (sizes, B·K)
    of_neighbours = counts.unflatten(1, (-1, shots)).sum(2)
    found = torch.stack([counts.amax(1), of_neighbours.amax(1)]).tolist()
    capacities = []
    for most, positions, parts in zip(
        found, ([h * w for h, w in sizes], [shots * h * w for h, w in sizes]), ((2, 1), (8, 4, 2, 1)), strict=True
    ):
        if coarse:
            part = next(part for part in parts if all(m * part <= n for m, n in zip(most, positions, strict=True)))
            capacities.append([-(-n // part) for n in positions])
        else:
            rounded = (max(-(-m // ROUND), 1) * ROUND for m in most)
            capacities.append([min(m, n) for m, n in zip(rounded, positions, strict=True)])
    return capacities[0], capacities[1]


def send(x: Tensor, device: torch.device) -> Tensor:
    """Copy from a CPU to a device without waiting for it."""
    if x.device == device:
        return x
    return (x.pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)


def _resize(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (S, H, W), 0 and 1, as (S, h·w) bool."""
    masks = masks.view(torch.uint8) if masks.dtype == torch.bool else masks
    return F.interpolate(masks[:, None], size, mode="nearest").flatten(1) > 0.5
