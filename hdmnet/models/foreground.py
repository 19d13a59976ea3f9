"""Only the foreground of the supports ever counts: pick those positions once, and leave the rest out of every product.

Dimension letters: B batch, C channels, N support positions (all shots), M the largest foreground of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Foreground:
    """The foreground positions of each item of a batch, padded to the longest.

    Attributes:
        index: (B, M) int64, positions in [0, N); 0 where padded.
        valid: (B, M) bool, False where padded.
        count: (B,) int64, foreground positions of each item.
        num_positions: N.
    """

    index: Tensor
    valid: Tensor
    count: Tensor
    num_positions: int

    def gather(self, x: Tensor) -> Tensor:
        """Take the foreground columns of x (B, N, C); padded ones are exactly 0. Returns (B, M, C)."""
        picked = x.gather(1, self.index[..., None].expand(-1, -1, x.shape[-1]))
        return picked * self.valid[..., None].to(x.dtype)


def find_foreground(mask: Tensor) -> Foreground:
    """Find where a mask is set.

    Args:
        mask: (B, N) bool.

    Returns:
        The positions, in ascending order.
    """
    count = mask.sum(1)
    longest = max(int(count.max()), 1)
    # A stable sort of "not foreground" lists the foreground first, in order.
    index = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]
    valid = torch.arange(longest, device=mask.device)[None] < count[:, None]
    return Foreground(torch.where(valid, index, 0), valid, count, mask.shape[1])
