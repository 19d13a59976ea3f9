"""The cycle-consistent transformer (paper Sec. 3): the query attends to itself, then to the supports' positions.

Dimension letters: B episodes, C channels, h w feature size, N = h·w positions of the query, M positions of all supports
of an episode, T of them taken, n heads, d channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdmnet.models.attention import merge_heads, sine_code, split_heads, to_map, to_tokens
from hdmnet.models.cyctr.deformable import DeformableAttention
from hdmnet.models.cyctr.support import SupportTokens, draw

EXCLUDED = -10000.0  # added to scores; the paper's is -inf: where all are excluded, none is
# In training the number of positions that are taken is multiplied by a random factor between these.
FACTORS_ONE, FACTORS_SEVERAL = (0.6, 4.0), (0.6, 1.4)  # of one support, of several


def position_code(invalid: Tensor, channels: int) -> Tensor:
    """Code (B, N, C) float of the positions of maps whose padding (B, h, w) bool tells: of the row, then of the column.

    Rows and columns are counted without the padding, as shares of their number.
    """
    codes = []
    for dim in (1, 2):
        count = (~invalid).cumsum(dim, dtype=torch.float32)
        codes.append(sine_code(count / (count.select(dim, -1).unsqueeze(dim) + 1e-6) * 2 * math.pi, channels // 2))
    return torch.cat(codes, dim=3).flatten(1, 2)


class CycleAttention(nn.Module):
    """Cross-attention to support positions whose cycle ends in their own class (paper Sec. 3.3).

    Args:
        channels: C.
        num_heads: n.
        dropout: In training, of the attention, of the output and of the exclusions.
    """

    def __init__(self, channels: int, *, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key, self.value, self.output = (nn.Linear(channels, channels, bias=False) for _ in range(4))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, support: SupportTokens) -> Tensor:
        """Attend from (B, N, C) float to T positions of the supports; (B, N, C) float."""
        q = split_heads(self.query(x), self.num_heads)
        k, v = (split_heads(linear(support.values), self.num_heads) for linear in (self.key, self.value))
        excluded = ~cycle_consistent(q, k, support.is_object)
        if self.training:
            excluded = excluded & (torch.rand(excluded.shape, device=x.device) >= self.dropout.p)
        bias = EXCLUDED * (excluded | support.invalid[:, None])[:, :, None].to(q.dtype)  # (B, n, 1, T)
        dropout = self.dropout.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        attended: Tensor = self.dropout(self.output(merge_heads(mixed)))
        return attended


@torch.no_grad()
def cycle_consistent(queries: Tensor, keys: Tensor, is_object: Tensor) -> Tensor:
    """Which support positions come back to their own class by way of the query's position that is most like them.

    Args:
        queries: (B, n, N, d) float.
        keys: (B, n, T, d) float.
        is_object: (B, T) bool, the keys' class.

    Returns:
        (B, n, T) bool.
    """
    back = []
    for q, k in zip(queries.flatten(0, 1), keys.flatten(0, 1), strict=True):  # all at once would not fit
        nearest = (k @ q.T).argmax(1)  # (T,)
        back.append((q[nearest] @ k.T).argmax(1))
    end = torch.stack(back).unflatten(0, keys.shape[:2])  # (B, n, T)
    return is_object[:, None] == is_object[:, None].expand_as(end).gather(2, end)


class CycleLayer(nn.Module):
    """Self-attention and cross-attention, each with a feed-forward part, normalised after every sum.

    Args:
        channels: C.
        num_heads: n of both attentions.
        num_points: Of the deformable attention, a head.
        dropout: Of attentions and feed-forward parts.
    """

    def __init__(self, channels: int, *, num_heads: int, num_points: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = DeformableAttention(channels, num_heads=num_heads, num_points=num_points, dropout=dropout)
        self.self_dropout = nn.Dropout(dropout)
        self.cross_attention = CycleAttention(channels, num_heads=num_heads, dropout=dropout)
        self.feed_forward1, self.feed_forward2 = (_feed_forward(channels, dropout) for _ in range(2))
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(channels) for _ in range(4))

    def forward(
        self, x: Tensor, position: Tensor, invalid: Tensor, size: tuple[int, int], support: SupportTokens
    ) -> Tensor:
        """Queries (B, N, C) float with their position code and padding, see `DeformableAttention`; (B, N, C) float."""
        x = self.norm1(x + self.self_dropout(self.self_attention(x, position, invalid, size)))
        x = self.norm2(x + self.feed_forward1(x))
        x = self.norm3(x + self.cross_attention(x, support))
        x = self.norm4(x + self.feed_forward2(x))
        return x


def _feed_forward(channels: int, dropout: float) -> nn.Sequential:
    hidden = 3 * channels
    first, second = nn.Linear(channels, hidden, bias=False), nn.Linear(hidden, channels, bias=False)
    return nn.Sequential(first, nn.ReLU(inplace=True), nn.Dropout(dropout), second, nn.Dropout(dropout))


class CycleTransformer(nn.Module):
    """Layers whose queries are the query's positions; the supports' are keys and values and stay as they are.

    Args:
        channels: C.
        num_layers: Layers.
        num_heads: n.
        num_points: Of the deformable attention, a head.
        num_taken: Support positions of the object that are taken, and of the rest, times the number of shots.
        own_flags: See `draw`.
        dropout: Of attentions and feed-forward parts.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_layers: int,
        num_heads: int,
        num_points: int,
        num_taken: int,
        own_flags: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.num_taken, self.own_flags = num_taken, own_flags
        self.level = nn.Parameter(torch.empty(1, channels))  # joins the position code
        self.layers = nn.ModuleList(
            CycleLayer(channels, num_heads=num_heads, num_points=num_points, dropout=dropout) for _ in range(num_layers)
        )
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2 and not name.endswith(("offsets.weight", "weights.weight")):
                nn.init.xavier_uniform_(parameter)

    def forward(self, query: Tensor, invalid: Tensor, support: SupportTokens, *, shots: int) -> Tensor:
        """Attend.

        Args:
            query: (B, C, h, w) float.
            invalid: (B, h, w) bool, the query's padding.
            support: M positions, those of the first support first.
            shots: K.

        Returns:
            (B, C, h, w) float.
        """
        size = (query.shape[2], query.shape[3])
        position = position_code(invalid, query.shape[1]) + self.level
        x, taken = to_tokens(query), None
        for layer in cast("Iterable[CycleLayer]", self.layers):
            if taken is None or self.training:
                taken = draw(support, self._count(shots), own_flags=self.own_flags, fixed=not self.training)
            x = layer(x, position, invalid.flatten(1), size, taken)
        return to_map(x, size)

    def _count(self, shots: int) -> int:
        """How many positions of either kind are taken: in training a random number."""
        count = self.num_taken * shots
        if not self.training:
            return count
        low, high = FACTORS_ONE if shots == 1 else FACTORS_SEVERAL
        return int(count * (low + (high - low) * torch.rand(()).item()))
