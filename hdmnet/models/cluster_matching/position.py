"""The part of a trunk's features that depends on the place in the picture: measured on noise and removed.

Dimension letters: H W input pixels, L levels, C_l channels of level l, h w feature size, r directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

NUM_PICTURES = 8  # of noise, over which features are averaged


def position_directions(
    encode: Callable[[Tensor], Sequence[Tensor]], size: tuple[int, int], rank: int, device: torch.device
) -> list[Tensor]:
    """Directions along which features differ from place to place though the pictures show nothing.

    Args:
        encode: Gives the levels (B, C_l, h, w) of normalised pictures (B, 3, H, W).
        size: (H, W) of the pictures.
        rank: How many directions, r; of a level with fewer than 4·r channels, a fourth of these.
        device: Where the pictures go.

    Returns:
        A level each: (C_l, r) float, orthonormal.
    """
    noise = torch.randn(NUM_PICTURES, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)
    found = []
    for level in encode(noise):
        mean = level.float().mean(0).flatten(1)  # (C_l, h·w): what the place alone decides
        directions = torch.linalg.svd(mean - mean.mean(1, keepdim=True), full_matrices=False).U
        found.append(directions[:, : min(rank, len(mean) // 4)])
    return found


def take_away(levels: Sequence[Tensor], directions: Sequence[Tensor]) -> list[Tensor]:
    """Levels (B, C_l, h, w) without their parts along directions (C_l, r) each."""
    return [
        level.float() - torch.einsum("cr,dr,bdhw->bchw", along, along, level.float())
        for level, along in zip(levels, directions, strict=True)
    ]
