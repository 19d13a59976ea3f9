"""Building blocks shared by the pyramid and the matching: feed-forward part, cross-attention, splitting into heads.

Dimension letters: B batch, C channels, h w map size, N = h·w positions, M source positions, d head channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-6  # of the release; torch's own default is 1e-5


class FeedForward(nn.Module):
    """1×1 convolution, depthwise 3×3, GELU, 1×1, with dropout after the GELU and at the end.

    Args:
        channels: C.
        expansion: Hidden channels are ``expansion * C``.
        dropout: Of single values.
    """

    def __init__(self, channels: int, *, expansion: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        hidden = channels * expansion
        self.layers = nn.Sequential(
            nn.Conv2d(channels, hidden, 1),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Conv2d(hidden, channels, 1),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Run on tokens (B, N, C) of a map of `size` (h, w); returns (B, N, C)."""
        return to_tokens(self.layers(to_map(x, size)))


class CrossAttention(nn.Module):
    """The parts of a pre-norm transformer layer whose keys and values come from another picture (paper Eq. 2).

    Args:
        channels: C.
        num_heads: Attention heads.
        dropout: After the output projection and in the feed-forward part.
    """

    def __init__(self, channels: int, *, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.query = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels, bias=False)
        self.output = nn.Linear(channels, channels, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.feed_forward = FeedForward(channels, dropout=dropout)

    def heads(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normed tokens (B, N, C) and (B, M, C) → q (B, heads, N, d), k and v (B, heads, M, d)."""
        q, k, v = self.query(x), self.key(source), self.value(source)
        return split_heads(q, self.num_heads), split_heads(k, self.num_heads), split_heads(v, self.num_heads)


def to_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, N, C) → (B, C, h, w)."""
    result: Tensor = tokens.transpose(1, 2).unflatten(2, size)
    return result


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, h, w) → (B, N, C)."""
    return x.flatten(2).transpose(1, 2)


def split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """(B, N, C) → (B, heads, N, C / heads)."""
    result: Tensor = tokens.unflatten(2, (num_heads, -1)).transpose(1, 2)
    return result


def merge_heads(tokens: Tensor) -> Tensor:
    """(B, heads, N, d) → (B, N, heads · d)."""
    return tokens.transpose(1, 2).flatten(2)


def sine_code(position: Tensor, channels: int) -> Tensor:
    """Positions (…) float → (…, C) float: sines and cosines of them, in turns, at falling rates."""
    steps = torch.arange(0, channels, 2, dtype=torch.float32, device=position.device)
    angle = position[..., None] * torch.exp(steps * -(math.log(1e4) / channels))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)[..., :channels]
