"""Correlation matching of query and support at one stage (paper Sec. 3.3, Eqs. 3-7).

Symbols: q, k = W^q F^q, W^k F^s, L2-normalised per head; t = `temperature` (0.1); scores C = q·k / t (Eq. 4); the
inverse softmax runs over the query positions (Eq. 5); C' = the correlation map (Eq. 7).

Only foreground support positions take part, so they are picked first: the background columns, which the release sets to
0 after the softmax, would add nothing. C' is a mean of inner products, hence the inner product with a mean.

Dimension letters: B batch, K shots, C channels, N query positions, M foreground support positions over all shots, d
head channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdmnet.models.attention import LAYER_NORM_EPS, FeedForward, merge_heads, split_heads, to_map, to_tokens
from hdmnet.models.foreground import find_foreground

COUNT_EPS = 1e-9


class CorrelationMatching(nn.Module):
    """Match a query against the foreground of K supports by dense cosine correlation.

    A pre-norm layer whose attention is the correlation, then the prior masks are merged in by a 3×3 convolution. (The
    paper's Eq. 6 has a 1×1 projection: `merge_kernel=1`.)

    Args:
        channels: C.
        num_heads: Heads of the correlation.
        temperature: t of Eq. 4.
        num_priors: Prior masks merged in.
        dropout: As in the pyramid.
        merge_kernel: 3 as in the release, or 1 as in Eq. 6.
        num_shots: K of the training. The message grows with the number of support positions, so with another K at run
            time it is scaled by num_shots / K. None: never (the release needs a model of its own for each K).
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 2,
        temperature: float = 0.1,
        num_priors: int = 2,
        dropout: float = 0.1,
        merge_kernel: int = 3,
        num_shots: int | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.temperature = temperature
        self.num_shots = num_shots
        self.norm1 = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.query = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels, bias=False)
        self.output = nn.Linear(channels, channels, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.feed_forward = FeedForward(channels, dropout=dropout)
        merge = nn.Conv2d(channels + num_priors, channels, merge_kernel, padding=merge_kernel // 2, bias=False)
        nn.init.kaiming_normal_(merge.weight, mode="fan_out", nonlinearity="relu")
        self.merge = nn.Sequential(merge, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))

    def forward(self, query: Tensor, support: Tensor, support_mask: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """Match one stage.

        Args:
            query: (B, C, h, w) float, F^q.
            support: (B, K, C, h_s, w_s) float, F^s.
            support_mask: (B, K, H, W) float, 1 on foreground and 0 elsewhere; resized by nearest neighbour.
            prior: (B, P, h_1, w_1) float; resized bilinearly (corners aligned) to (h, w).

        Returns:
            The enriched query X (B, C, h, w) and the correlation map C' (B, h, w), before any softmax.
        """
        size = (query.shape[2], query.shape[3])
        mask = F.interpolate(support_mask.flatten(0, 1)[:, None], support.shape[-2:], mode="nearest")
        foreground = find_foreground(mask.view(query.shape[0], -1) > 0.5)
        source = foreground.gather(support.flatten(3).transpose(2, 3).flatten(1, 2))  # (B, M, C)
        tokens = to_tokens(query)  # (B, N, C)
        attended, correlation = self.attend(self.norm1(tokens), self.norm1(source), foreground.valid)
        if self.num_shots is not None and self.num_shots != support.shape[1]:
            attended = attended * (self.num_shots / support.shape[1])
        tokens = tokens + attended
        tokens = tokens + self.feed_forward(self.norm2(tokens), size)
        prior = F.interpolate(prior, size, mode="bilinear", align_corners=True)
        merged: Tensor = self.merge(torch.cat([to_map(tokens, size), prior], dim=1))
        return merged, correlation.unflatten(1, size)

    def attend(self, query: Tensor, support: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Correlate normed tokens (Eqs. 4, 5, 7).

        Args:
            query: (B, N, C) float.
            support: (B, M, C) float, foreground positions only.
            valid: (B, M) bool, False on padding.

        Returns:
            Projected, dropped-out message (B, N, C) and correlation map (B, N).
        """
        q = F.normalize(split_heads(self.query(query), self.num_heads), dim=3)  # (B, heads, N, d)
        k = F.normalize(split_heads(self.key(support), self.num_heads), dim=3)  # (B, heads, M, d)
        weight = valid[:, None, :, None].to(q.dtype)
        v = split_heads(self.value(support), self.num_heads) * weight
        # Over the query positions, for each support position: the inverse softmax.
        attention = (q @ k.transpose(2, 3) / self.temperature).softmax(dim=2)  # (B, heads, N, M)
        message: Tensor = self.dropout(self.output(merge_heads(attention @ v)))
        mean_key = (k * weight).sum(2) / (weight.sum(2) + COUNT_EPS) / self.temperature  # (B, heads, d)
        correlation = (q @ mean_key[..., None])[..., 0].mean(1)
        return message, correlation
