"""Deformable self-attention of a map: each position looks at a few places near it, which it chooses itself.

By torch's `grid_sample`: no kernel of its own is compiled.

Dimension letters: B pictures, C channels, h w map size, N = h·w positions, n heads, d channels of a head, P points.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdmnet.models.attention import to_map


class DeformableAttention(nn.Module):
    """Attention whose keys are P places a head, at offsets in cells that are computed from the query.

    Args:
        channels: C.
        num_heads: n.
        num_points: P.
        dropout: In training, of the weights of the points; and this share of the positions has no value, unscaled.
    """

    def __init__(self, channels: int, *, num_heads: int, num_points: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.num_points = num_heads, num_points
        self.offsets = nn.Linear(channels, num_heads * num_points * 2)
        self.weights = nn.Linear(channels, num_heads * num_points)
        self.value = nn.Linear(channels, channels, bias=False)
        self.output = nn.Linear(channels, channels, bias=False)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.offsets, self.weights):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        for linear in (self.value, self.output):
            nn.init.xavier_uniform_(linear.weight)
        # A direction a head, on the border of a square, and one cell further a point.
        angle = torch.arange(num_heads) * (2 * math.pi / num_heads)
        direction = torch.stack([angle.cos(), angle.sin()], 1)
        direction = direction / direction.abs().amax(1, keepdim=True)
        steps = torch.arange(1, num_points + 1)
        with torch.no_grad():
            self.offsets.bias.copy_((direction[:, None] * steps[:, None]).flatten())

    def forward(self, x: Tensor, position: Tensor, invalid: Tensor, size: tuple[int, int]) -> Tensor:
        """Attend.

        Args:
            x: (B, N, C) float.
            position: (B, N, C) float, code of the positions: joins the queries, not the values.
            invalid: (B, N) bool, positions without a value.
            size: (h, w).

        Returns:
            (B, N, C) float.
        """
        query = x + position
        offsets = self.offsets(query).unflatten(2, (self.num_heads, self.num_points, 2))  # x, then y
        weights = self.weights(query).unflatten(2, (self.num_heads, self.num_points))
        weights = self.dropout(weights.softmax(3)).transpose(1, 2).flatten(0, 1)  # (B·n, N, P)
        values = self.value(x).masked_fill(invalid[..., None], 0)
        if self.training:
            values = values * (torch.rand_like(values[..., :1]) >= self.dropout.p)
        maps = to_map(values, size).unflatten(1, (self.num_heads, -1)).flatten(0, 1)  # (B·n, d, h, w)
        # From -1 to 1 over the whole map, whose cells have their centre at a half.
        cells = torch.arange(x.shape[1], device=x.device)
        centres = torch.stack([cells % size[1], cells // size[1]], 1)[:, None, None] + 0.5  # (N, 1, 1, 2)
        places = (centres + offsets) * (2 / offsets.new_tensor([size[1], size[0]])) - 1
        grid = places.transpose(1, 2).flatten(0, 1)  # (B·n, N, P, 2)
        found = F.grid_sample(maps, grid.to(maps.dtype), padding_mode="zeros", align_corners=False)  # (B·n, d, N, P)
        mixed = (found * weights[:, None]).sum(3).unflatten(0, (len(x), -1))  # (B, n, d, N)
        attended: Tensor = self.output(mixed.flatten(1, 2).transpose(1, 2))
        return attended
