"""Self- and cross-attention by turns (paper Fig. 4), which the decoupled pyramid replaces: part of Table 4's baseline.

The paper gives a sketch and a sentence: query and supports go through self-attention, then "the cross-attention layers
accomplish mutual message exchange between the query and support features", and so on (Secs. 3.2 and 4.3, after LoFTR
and CyCTR). What it leaves open is as in our pyramid and matching, so that Table 4 compares the architecture only: one
scale, that of the finest stage, with its embedding, layers and heads; weights shared by query and supports; the query
takes messages from the supports' foreground only.

Dimension letters: B batch, K shots, C channels, h w map size, N = h·w positions, M source positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hdmnet.models.attention import LAYER_NORM_EPS, CrossAttention, merge_heads, to_map, to_tokens
from hdmnet.models.hdmnet.matching_variants import attend
from hdmnet.models.hdmnet.pyramid import HEADS, REDUCTIONS, SelfAttentionLayer
from hdmnet.models.packed import Foreground, PaddedForeground


class CrossAttentionLayer(CrossAttention):
    """A pre-norm transformer layer with plain cross-attention; see `CrossAttention` for the arguments."""

    def forward(self, x: Tensor, source: Tensor, valid: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens (B, N, C) of a map of `size` take messages from (B, M, C) where valid (B, M) bool; (B, N, C)."""
        normed = self.norm1(source)
        q, k, v = self.heads(self.norm1(x), normed)
        message, _ = attend(q, k, v, valid, score="dot", normalise="support")
        x = x + self.dropout(self.output(merge_heads(message)))
        result: Tensor = x + self.feed_forward(self.norm2(x), size)
        return result


class AlternatingTransformer(nn.Module):
    """Embedding, then rounds of self- and cross-attention on query and supports; the last cross-attention is not here.

    That one is the matching, after which the decoder follows.

    Args:
        channels: C.
        num_rounds: Self-attention layers; there is a cross-attention layer between any two of them.
        num_heads: Of the cross-attention.
        dropout: In the layers.
    """

    def __init__(self, channels: int, *, num_rounds: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, channels, 1)
        self.embed_norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.self_layers = nn.ModuleList(
            SelfAttentionLayer(channels, num_heads=HEADS[0], reduction=REDUCTIONS[0], dropout=dropout)
            for _ in range(num_rounds)
        )
        self.cross_layers = nn.ModuleList(
            CrossAttentionLayer(channels, num_heads=num_heads, dropout=dropout) for _ in range(num_rounds - 1)
        )
        self.norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)

    def forward(
        self, query: Tensor, support: Tensor, foreground: Foreground | PaddedForeground, *, shots: int
    ) -> tuple[Tensor, Tensor]:
        """Mix queries (B, C, h, w) and supports (B·K, C, h_s, w_s) with their foreground; both again, layer-normed."""
        size, support_size = (query.shape[2], query.shape[3]), (support.shape[2], support.shape[3])
        tokens = self.embed_norm(to_tokens(self.embed(query)))  # (B, N, C)
        support_tokens = self.embed_norm(to_tokens(self.embed(support)))  # (B·K, N_s, C)
        everything = torch.ones(support.shape[0], tokens.shape[1], dtype=torch.bool, device=tokens.device)
        for i, self_layer in enumerate(self.self_layers):
            tokens, support_tokens = self_layer(tokens, size), self_layer(support_tokens, support_size)
            if i == len(self.cross_layers):
                break
            cross_layer = self.cross_layers[i]
            source, valid = foreground.gather(to_map(support_tokens, support_size)).merge(shots).pad()  # (B, M, C)
            repeated = tokens.repeat_interleave(shots, 0)  # (B·K, N, C)
            # Both from what they were before: neither direction comes first.
            tokens, support_tokens = (
                cross_layer(tokens, source, valid, size),
                cross_layer(support_tokens, repeated, everything, support_size),
            )
        return to_map(self.norm(tokens), size), to_map(self.norm(support_tokens), support_size)
