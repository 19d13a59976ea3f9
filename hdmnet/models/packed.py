"""Rows that differ in number from item to item, packed one after the other: the foreground positions of the supports.

Only the foreground of the supports ever counts in prior, matching and correlation map: those positions are picked once,
and the rest is left out of every product.

Dimension letters: S items (supports), N positions of a map, M_s foreground positions of item s, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


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
        if len(self.counts) == 1 and self.counts[0] == longest:
            rows = self.values[None]  # nothing to copy
        else:
            rows = pad_sequence(self.values.split(self.counts), batch_first=True)
            rows = F.pad(rows, (0, 0, 0, longest - rows.shape[1]))
        count = torch.tensor(self.counts, device=rows.device)
        return rows, torch.arange(longest, device=rows.device) < count[:, None]


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


def find_foreground(masks: Tensor, size: tuple[int, int]) -> Foreground:
    """Find the foreground positions of masks at a map's size.

    Args:
        masks: (S, H, W) float, 1 on foreground and 0 elsewhere.
        size: (h, w) of the maps; the masks are resized by nearest neighbour, as in the release.

    Returns:
        The positions.
    """
    small = F.interpolate(masks[:, None], size, mode="nearest").flatten(1) > 0.5  # (S, N)
    return Foreground(small.flatten().nonzero()[:, 0], tuple(small.sum(1).tolist()))
