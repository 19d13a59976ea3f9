"""The matching written out densely from the paper's Eqs. 3-7 and the release's masking; slow, and nothing shared.

Dimension letters: B batch, K shots, N query positions, S support positions over all shots, g heads, d head channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def dense_attention(layer, query, support, mask):
    """Eqs. 4, 5, 7 with every support position, background columns set to 0 after the softmax.

    query (B, N, C) and support (B, S, C) already normed; mask (B, S) of 0/1. Returns message (B, N, C), map (B, N).
    """
    messages, maps = [], []
    head_channels = query.shape[2] // layer.num_heads
    for head in range(layer.num_heads):
        rows = slice(head * head_channels, (head + 1) * head_channels)
        q = torch.einsum("bnc,dc->bnd", query, layer.query.weight[rows])
        k = torch.einsum("bsc,dc->bsd", support, layer.key.weight[rows])
        v = torch.einsum("bsc,dc->bsd", support, layer.value.weight[rows])
        q = q / q.pow(2).sum(2, keepdim=True).sqrt()
        k = k / k.pow(2).sum(2, keepdim=True).sqrt()
        scores = torch.einsum("bnd,bsd->bns", q, k) / layer.temperature  # Eq. 4
        exponentials = (scores - scores.amax(1, keepdim=True)).exp()
        attention = exponentials / exponentials.sum(1, keepdim=True)  # Eq. 5: over the query positions
        attention = attention * mask[:, None, :]
        messages.append(torch.einsum("bns,bsd->bnd", attention, v))
        maps.append((scores * mask[:, None, :]).sum(2) / (mask.sum(1)[:, None] + 1e-9))  # Eq. 7
    message = torch.einsum("bnc,dc->bnd", torch.cat(messages, dim=2), layer.output.weight)
    return message, torch.stack(maps).mean(0)


def layer_norm(x, norm):
    """Layer norm over the last dimension with the release's epsilon."""
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).pow(2).mean(-1, keepdim=True)
    return (x - mean) / (variance + 1e-6).sqrt() * norm.weight + norm.bias


def dense_matching(layer, query, support, support_mask, prior):
    """`CorrelationMatching.forward` without dropout and with batch normalisation in evaluation mode, densely."""
    batch, channels, height, width = query.shape
    shots = support.shape[1]
    rows = torch.arange(support.shape[3]) * support_mask.shape[2] // support.shape[3]  # nearest neighbour
    columns = torch.arange(support.shape[4]) * support_mask.shape[3] // support.shape[4]
    mask = support_mask[:, :, rows][:, :, :, columns].reshape(batch, -1)  # (B, S)
    source = torch.stack([support[:, i].reshape(batch, channels, -1) for i in range(shots)], dim=1)
    source = source.permute(0, 1, 3, 2).reshape(batch, -1, channels)
    tokens = query.reshape(batch, channels, -1).permute(0, 2, 1)
    message, correlation = dense_attention(
        layer, layer_norm(tokens, layer.norm1), layer_norm(source, layer.norm1), mask
    )
    tokens = tokens + message
    normed = layer_norm(tokens, layer.norm2).permute(0, 2, 1).reshape(query.shape)
    first, depthwise, _, _, second, _ = layer.feed_forward.layers
    hidden = F.conv2d(normed, first.weight, first.bias)
    hidden = F.conv2d(hidden, depthwise.weight, depthwise.bias, padding=1, groups=hidden.shape[1])
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
    x = tokens.permute(0, 2, 1).reshape(query.shape) + F.conv2d(hidden, second.weight, second.bias)
    x = torch.cat([x, F.interpolate(prior, (height, width), mode="bilinear", align_corners=True)], dim=1)
    conv, norm, _ = layer.merge
    x = F.conv2d(x, conv.weight, padding=conv.kernel_size[0] // 2)
    shape = (1, -1, 1, 1)
    x = (x - norm.running_mean.view(shape)) / (norm.running_var.view(shape) + norm.eps).sqrt()
    x = x * norm.weight.view(shape) + norm.bias.view(shape)
    return x.clamp(min=0), correlation.reshape(batch, height, width)
