"""Masks of the supports, aggregated by attention of the query's positions to theirs (DCAMA, paper Sec. 3.2 and 3.3).

Dimension letters: B pictures or episodes, C channels, N query positions, M positions of all supports of an episode, n
heads, d channels of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hdmnet.models.attention import sine_code, split_heads, to_tokens
from hdmnet.models.checks import check_share

# Scores that exist at once: on a CPU they stay in its cache; on a GPU what bounds its memory.
SCORES_CPU, SCORES_GPU = 2**21, 2**28


def position_code(count: int, channels: int, device: torch.device | None = None) -> Tensor:
    """(N, C) float32: sines and cosines of a position's number, in turns; positions are counted row by row."""
    return sine_code(torch.arange(count, dtype=torch.float32, device=device), channels)


class MaskAggregation(nn.Module):
    """Attention whose values are masks, for all levels of a stage: there is no projection but of queries and keys.

    Args:
        channels: C.
        num_heads: n.
        dropout: Of features with their position code, and of the attention.
    """

    def __init__(self, channels: int, *, num_heads: int = 8, dropout: float = 0.5) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"model.num_heads={num_heads}: expected a divisor of the features' {channels} channels")
        check_share("model.dropout", dropout)
        self.num_heads = num_heads
        self.dropout = nn.Dropout(dropout)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.key.load_state_dict(self.query.state_dict())  # as in the release: copies of one layer

    def encode(self, features: Tensor, projection: nn.Linear) -> Tensor:
        """Queries or keys (B, N, C) of features (B, C, h, w)."""
        tokens = to_tokens(features)
        tokens = tokens + position_code(tokens.shape[1], tokens.shape[2], tokens.device)
        projected: Tensor = projection(self.dropout(tokens))
        return projected

    def forward(self, queries: Tensor, keys: Tensor, masks: Tensor) -> Tensor:
        """Aggregate masks.

        Args:
            queries: (B, N, C) float.
            keys: (B, M, C) float.
            masks: (B, M) float in [0, 1].

        Returns:
            (B, N) float in [0, 1], the mean over the heads.
        """
        with torch.autocast(queries.device.type, enabled=False):  # scores can be large
            q = split_heads(queries.float(), self.num_heads) / math.sqrt(queries.shape[2] / self.num_heads)
            k = split_heads(keys.float(), self.num_heads).transpose(2, 3).contiguous()  # (B, n, d, M)
            v = masks.float()[:, None, :, None]
            at_once = SCORES_CPU if q.is_cpu else SCORES_GPU
            rows = max(at_once // (len(q) * self.num_heads * keys.shape[1]), 16)
            found = []
            for block in q.split(rows, dim=2):
                weights = self.dropout((block @ k).softmax(3))  # (B, n, rows, M)
                found.append((weights @ v).squeeze(3).mean(1))
        return torch.cat(found, dim=1)
