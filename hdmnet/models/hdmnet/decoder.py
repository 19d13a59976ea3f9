"""Coarse-to-fine decoder (paper Eq. 1, Fig. 10).

Its convolutions follow one another without a nonlinearity, so with batch normalisation that learns no statistics they
are one 3×3 convolution of 64 channels: composed before it is applied, a seventeenth of the operations (in the head a
five-hundredth), forward and backward. The result differs by rounding only.

Dimension letters: B batch, C channels, D hidden channels, h_l w_l size of stage l (1 = finest).
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNEL = 3


class Decoder(nn.Module):
    """Fuse the matching results from the coarsest stage to the finest, then classify.

    Args:
        channels: C of every stage.
        num_stages: L.
        expansion: Hidden channels are ``expansion * C``.
    """

    def __init__(self, channels: int, *, num_stages: int, expansion: int = 4) -> None:
        super().__init__()
        hidden = channels * expansion
        self.blocks = nn.ModuleList(
            nn.Sequential(*_mlp(channels, hidden, channels), nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
            for _ in range(num_stages)
        )
        self.head = nn.Sequential(*_mlp(channels, hidden, 2))

    def forward(self, stages: list[Tensor]) -> Tensor:
        """Decode matching results X_l, finest first, each (B, C, h_l, w_l), to logits (B, 2, h_1, w_1)."""
        blocks = [cast("nn.Sequential", block) for block in self.blocks]
        x = _apply(blocks[-1], stages[-1])
        for block, stage in zip(reversed(blocks[:-1]), reversed(stages[:-1]), strict=True):
            up = F.interpolate(x, stage.shape[-2:], mode="bilinear", align_corners=False)
            x = up + _apply(block, stage + up)
        return _apply(self.head, x)


def _mlp(channels: int, hidden: int, out_channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, hidden, 1),
        nn.BatchNorm2d(hidden),
        nn.Conv2d(hidden, hidden, KERNEL, padding=1),
        nn.BatchNorm2d(hidden),
        nn.Conv2d(hidden, out_channels, 1),
    ]


def _apply(layers: nn.Sequential, x: Tensor) -> Tensor:
    """What the layers make of (B, C, h, w)."""
    if any(norm.training for norm in (layers[1], layers[3])):
        result: Tensor = layers(x)  # statistics of the batch: nothing can be composed beforehand
        return result
    with torch.autocast(x.device.type, enabled=False):  # rounded only once composed
        weight, inside, bias = _compose(layers)
    y = F.conv2d(x, weight, bias, padding=1)
    # The 3×3 convolution pads with zeros what is not zero inside, the first convolution's bias.
    y = y + F.conv2d(x.new_ones(1, 1, *x.shape[2:]), inside, padding=1)
    for layer in layers[5:]:
        y = layer(y)
    return y


def _compose(layers: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The five layers of `_mlp` as one convolution.

    Args:
        layers: Starting with those five, the normalisations in evaluation mode.

    Returns:
        Weight (out, C, 3, 3), weight of a map of ones, zero-padded, (out, 1, 3, 3), and bias (out,).
    """
    first, first_norm, middle, middle_norm, last = layers[:5]
    scale, shift = _affine(first_norm)
    inner = torch.cat([scale[:, None] * first.weight.flatten(1), (scale * first.bias + shift)[:, None]], dim=1)
    scale, shift = _affine(middle_norm)
    outer = last.weight.flatten(1)  # (out, D)
    taps = (outer * scale) @ middle.weight.permute(2, 3, 0, 1).flatten(0, 1)  # (9, out, D)
    weight = (taps @ inner).permute(1, 2, 0).unflatten(2, (KERNEL, KERNEL))  # (out, C + 1, 3, 3)
    bias = outer @ (scale * middle.bias + shift) + last.bias
    return weight[:, :-1].contiguous(memory_format=torch.channels_last), weight[:, -1:], bias


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift (D,) of a normalisation in evaluation mode."""
    mean, variance = cast("Tensor", norm.running_mean), cast("Tensor", norm.running_var)
    scale = norm.weight * (variance + norm.eps).rsqrt()
    return scale, norm.bias - mean * scale
