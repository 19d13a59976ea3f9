"""Centre-pivot 4-D convolution (HSNet, Min et al., ICCV 2021, Sec. 3.3): of a query's and a support's positions.

A 4-D kernel of which only two planes through its centre count: one 2-D convolution over the query's positions and one
over the support's, each with its bias, added up.

Dimension letters: B episodes, C channels, h w query's size, m n support's size, k kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CenterPivotConv4d(nn.Module):
    """One convolution, with the same kernel in all four dimensions; a stride thins out the support's positions only.

    Args:
        in_channels: C.
        out_channels: C'.
        kernel: k, odd.
        stride: In the support's positions, starting at the first.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.query = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
        self.support = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w, m, n) → (B, C', h, w, m', n'), m' being m divided by the stride, rounded up; channels last."""
        stride = self.support.stride[0]
        of_query = over_query(self.query, x[..., ::stride, ::stride])
        return _over_support(self.support, x) + of_query


def over_query(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Run what takes maps (N, C, h, w) over the query's positions of (B, C, h, w, m, n), for each support position."""
    batch, _, _, _, m, n = x.shape
    # Channels stay last in memory: only the positions change places.
    maps = layer(x.permute(0, 4, 5, 2, 3, 1).flatten(0, 2).permute(0, 3, 1, 2))
    out: Tensor = maps.permute(0, 2, 3, 1).unflatten(0, (batch, m, n)).permute(0, 5, 3, 4, 1, 2)
    return out


def _over_support(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Likewise a convolution over the support's positions, for each query position."""
    size, kernel = x.shape[4:], conv.kernel_size[0]
    maps = x.permute(0, 2, 3, 4, 5, 1).flatten(0, 2)  # (B·h·w, m, n, C)
    # Of few positions: most of a kernel would meet padding only.
    few = size.numel() <= kernel**2
    out = _on_few(conv, maps) if few else conv(maps.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    result: Tensor = out.unflatten(0, (len(x), *x.shape[2:4])).permute(0, 5, 1, 2, 3, 4)
    return result


def _on_few(conv: nn.Conv2d, maps: Tensor) -> Tensor:
    """A convolution as one product: (N, m, n, C) → (N, m', n', C')."""
    m, n, channels = maps.shape[1:]
    stride, kernel = conv.stride[0], conv.kernel_size[0]
    ones = torch.eye(m * n, dtype=maps.dtype, device=maps.device).view(-1, 1, m, n)
    taps = F.unfold(ones, kernel, padding=kernel // 2, stride=stride)  # (m·n, k², m'·n'): which tap joins which
    weight = torch.einsum("dct,sto->odsc", conv.weight.flatten(2), taps)
    assert conv.bias is not None
    out = F.linear(maps.flatten(1), weight.reshape(-1, m * n * channels))
    return out.view(len(maps), -(-m // stride), -(-n // stride), -1) + conv.bias


class GroupNorm4d(nn.GroupNorm):
    """Group normalisation over the positions of query and support."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w, m, n) → the same."""
        if not x.is_cpu:
            return super().forward(x)
        # torch's own for channels that lie last adds a million squares up one by one, before it takes the mean off.
        # Means by channel first: these are added up in a tree.
        rows = x.permute(0, 2, 3, 4, 5, 1).flatten(1, 4).to(torch.promote_types(x.dtype, torch.float32))  # (B, N, C)
        rows = rows - self._over_groups(rows.mean(1))[:, None]
        deviation = (self._over_groups(rows.square().mean(1)) + self.eps).rsqrt()
        rows = rows * (deviation * self.weight)[:, None] + self.bias
        out: Tensor = rows.unflatten(1, x.shape[2:]).permute(0, 5, 1, 2, 3, 4)
        return out

    def _over_groups(self, means: Tensor) -> Tensor:
        """Means by channel (B, C) → those of each channel's group, (B, C)."""
        groups: Tensor = means.unflatten(1, (self.num_groups, -1))
        return groups.mean(2, keepdim=True).expand_as(groups).flatten(1)


def center_pivot_block(
    channels: Sequence[int], kernels: Sequence[int], strides: Sequence[int], *, groups: int = 4
) -> nn.Sequential:
    """Convolutions from width to width, each with group normalisation and ReLU: (B, C, h, w, m, n) in and out."""
    layers: list[nn.Module] = []
    for (ins, outs), kernel, stride in zip(pairwise(channels), kernels, strides, strict=True):
        layers += [CenterPivotConv4d(ins, outs, kernel, stride), GroupNorm4d(groups, outs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
