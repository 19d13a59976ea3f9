"""Coarse-to-fine decoder (paper Eq. 1, Fig. 10).

Its convolutions follow one another without a nonlinearity, so with batch normalisation that learns no statistics they
are one 3×3 convolution of 64 channels: on a CPU composed before it is applied, a seventeenth of the operations (in the
head a five-hundredth), forward and backward. The result differs by rounding only.

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
            ConvolutionBlock(channels, hidden, channels, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
            for _ in range(num_stages)
        )
        self.head = ConvolutionBlock(channels, hidden, 2)

    def forward(self, stages: list[Tensor]) -> Tensor:
        """Decode matching results X_l, finest first, each (B, C, h_l, w_l), to logits (B, 2, h_1, w_1)."""
        x = self.blocks[-1](stages[-1])
        for block, stage in zip(reversed(self.blocks[:-1]), reversed(stages[:-1]), strict=True):
            up = F.interpolate(x, stage.shape[-2:], mode="bilinear", align_corners=False)
            x = up + block(stage + up)
        logits: Tensor = self.head(x)
        return logits


class ConvolutionBlock(nn.Sequential):
    """1×1 convolution, 3×3, 1×1, normalised in between but without a nonlinearity; then what else is given.

    Args:
        channels: C.
        hidden: D.
        out_channels: Of the last convolution.
        tail: What comes after it.
    """

    def __init__(self, channels: int, hidden: int, out_channels: int, *tail: nn.Module) -> None:
        super().__init__(
            nn.Conv2d(channels, hidden, 1),
            nn.BatchNorm2d(hidden),
            nn.Conv2d(hidden, hidden, KERNEL, padding=1),
            nn.BatchNorm2d(hidden),
            nn.Conv2d(hidden, out_channels, 1),
            *tail,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) → (B, out_channels, h, w)."""
        layers: list[Any] = list(self)
        expand, expand_norm, mix, mix_norm, project, *tail = layers
        # With statistics of the batch nothing can be composed beforehand; a GPU takes longer to start the many small
        # kernels that compose, forward and backward, than to run the five large ones.
        if expand_norm.training or mix_norm.training or not x.is_cpu:
            result: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            return result
        with torch.autocast(x.device.type, enabled=False):  # rounded only once composed
            weight, inside, bias = _compose(expand, expand_norm, mix, mix_norm, project)
        y = F.conv2d(x, weight, bias, padding=1)
        # The 3×3 convolution pads with zeros what is not zero inside, the first convolution's bias.
        y = y + F.conv2d(x.new_ones(1, 1, *x.shape[2:]), inside, padding=1)
        for layer in tail:
            y = layer(y)
        return y


def _compose(
    expand: nn.Conv2d, expand_norm: nn.BatchNorm2d, mix: nn.Conv2d, mix_norm: nn.BatchNorm2d, project: nn.Conv2d
) -> tuple[Tensor, Tensor, Tensor]:
    """The five layers of a block as one convolution, its normalisations being in evaluation mode.

    Returns:
        Weight (out, C, 3, 3), weight of a map of ones, zero-padded, (out, 1, 3, 3), and bias (out,).
    """
    scale, shift = _affine(expand_norm)
    expand_bias, mix_bias, project_bias = (cast("Tensor", conv.bias) for conv in (expand, mix, project))
    inner = torch.cat([scale[:, None] * expand.weight.flatten(1), (scale * expand_bias + shift)[:, None]], dim=1)
    scale, shift = _affine(mix_norm)
    outer = project.weight.flatten(1)  # (out, D)
    taps = (outer * scale) @ mix.weight.permute(2, 3, 0, 1).flatten(0, 1)  # (9, out, D)
    weight = (taps @ inner).permute(1, 2, 0).unflatten(2, (KERNEL, KERNEL))  # (out, C + 1, 3, 3)
    bias = outer @ (scale * mix_bias + shift) + project_bias
    return weight[:, :-1].contiguous(memory_format=torch.channels_last), weight[:, -1:], bias


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift (D,) of a normalisation in evaluation mode."""
    mean, variance = cast("Tensor", norm.running_mean), cast("Tensor", norm.running_var)
    scale = norm.weight * (variance + norm.eps).rsqrt()
    return scale, norm.bias - mean * scale
