"""The self-attention pyramid: query and supports apart, no exchange between them (paper Sec. 3.2, "Decoupled").

Dimension letters: B batch (query, or query shots flattened), C channels, h_l w_l size of stage l.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hdmnet.models.attention import LAYER_NORM_EPS, FeedForward, merge_heads, split_heads, to_map, to_tokens
from hdmnet.models.checks import check_integer

MAX_STAGES = 4
# Stage 1 (finest) first. A fourth stage (paper Table 7, S_4) continues the pattern of the third; the release stops at
# three.
KERNELS = (1, 3, 3, 3)
STRIDES = (1, 2, 2, 2)
HEADS = (2, 4, 8, 8)
REDUCTIONS = (4, 2, 1, 1)


class SelfAttention(nn.Module):
    """Multi-head self-attention whose keys and values may be reduced by a strided convolution.

    Args:
        channels: C.
        num_heads: Heads; C must be a multiple.
        reduction: Kernel and stride of the reducing convolution (no padding: odd remainders are dropped); 1 = none.
        dropout: After the output projection.
    """

    def __init__(self, channels: int, *, num_heads: int, reduction: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.reduction = reduction
        self.scale = 1.0 / ((channels // num_heads) ** 0.5 + 1e-9)
        self.query = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels, bias=False)
        self.output = nn.Linear(channels, channels, bias=False)
        self.dropout = nn.Dropout(dropout)
        if reduction > 1:
            self.reduce = nn.Conv2d(channels, channels, reduction, stride=reduction)
            self.norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Attend among tokens (B, N, C) of a map of `size`; returns (B, N, C) (paper Eq. 2)."""
        source = x
        if self.reduction > 1 and min(size) >= self.reduction:
            source = self.norm(to_tokens(self.reduce(to_map(x, size))))
        q, k, v = (
            split_heads(f(t), self.num_heads) for f, t in ((self.query, x), (self.key, source), (self.value, source))
        )
        out: Tensor = self.output(merge_heads(F.scaled_dot_product_attention(q, k, v, scale=self.scale)))
        dropped: Tensor = self.dropout(out)
        return dropped


class SelfAttentionLayer(nn.Module):
    """A pre-norm transformer layer: self-attention, then feed-forward, each with a residual connection.

    Args:
        channels: C.
        num_heads: Attention heads.
        reduction: Reduction of keys and values.
        dropout: In both parts.
    """

    def __init__(self, channels: int, *, num_heads: int, reduction: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.attention = SelfAttention(channels, num_heads=num_heads, reduction=reduction, dropout=dropout)
        self.norm2 = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.feed_forward = FeedForward(channels, dropout=dropout)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens (B, N, C) of a map of `size` → (B, N, C)."""
        x = x + self.attention(self.norm1(x), size)
        result: Tensor = x + self.feed_forward(self.norm2(x), size)
        return result


class PyramidStage(nn.Module):
    """Patch embedding, self-attention layers, layer norm: one stage of the pyramid.

    Args:
        channels: C in and out.
        stage: 0 = finest; sets kernel, stride, heads and reduction.
        depth: Self-attention layers.
        dropout: In the layers.
    """

    def __init__(self, channels: int, *, stage: int, depth: int, dropout: float) -> None:
        super().__init__()
        kernel = KERNELS[stage]
        self.embed = nn.Conv2d(channels, channels, kernel, stride=STRIDES[stage], padding=kernel // 2)
        self.embed_norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.layers = nn.ModuleList(
            SelfAttentionLayer(channels, num_heads=HEADS[stage], reduction=REDUCTIONS[stage], dropout=dropout)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) → (B, C, h / stride, w / stride), layer-normed."""
        x = self.embed(x)
        size = (x.shape[2], x.shape[3])
        tokens = self.embed_norm(to_tokens(x))
        for layer in self.layers:
            tokens = layer(tokens, size)
        return to_map(self.norm(tokens), size)


class Pyramid(nn.Module):
    """L stages run one after the other; the features of all are kept (the paper's F_l, l = 1 … L).

    Args:
        channels: C.
        num_stages: L, 1 to 4.
        depth: Self-attention layers a stage.
        dropout: In the layers.

    Raises:
        ValueError: The number of stages is out of range.
    """

    def __init__(self, channels: int, *, num_stages: int, depth: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        check_integer("model.num_stages", num_stages, 1, MAX_STAGES)
        self.stages = nn.ModuleList(
            PyramidStage(channels, stage=i, depth=depth, dropout=dropout) for i in range(num_stages)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, h, w) → one (B, C, h_l, w_l) a stage, finest first."""
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features
