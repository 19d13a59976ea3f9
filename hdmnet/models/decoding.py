"""Small stacks of convolutions that methods share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def conv_stack(*channels: int, last_relu: bool = True) -> nn.Sequential:
    """3×3 convolutions that keep the size, from width to width, each with ReLU; the last one's may be left out."""
    layers: list[nn.Module] = []
    for ins, outs in pairwise(channels):
        layers += [nn.Conv2d(ins, outs, 3, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*(layers if last_relu else layers[:-1]))


def normed_conv_stack(channels: Sequence[int], kernels: Sequence[int], *, groups: int = 4) -> nn.Sequential:
    """Convolutions that keep the size, from width to width, each with group normalisation and ReLU."""
    layers: list[nn.Module] = []
    for (ins, outs), kernel in zip(pairwise(channels), kernels, strict=True):
        conv = nn.Conv2d(ins, outs, kernel, padding=kernel // 2)
        layers += [conv, nn.GroupNorm(groups, outs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def conv_relu(in_channels: int, out_channels: int, kernel: int = 1) -> list[nn.Module]:
    """A convolution without bias that keeps the size, and ReLU."""
    return [nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False), nn.ReLU(inplace=True)]


def refinement(channels: int) -> nn.Sequential:
    """Two 3×3 convolutions with ReLU; its output is added to its input, after the ReLU."""
    return nn.Sequential(*conv_relu(channels, channels, 3), *conv_relu(channels, channels, 3))


def classifier(channels: int, dropout: float) -> nn.Sequential:
    """Background and foreground of each position."""
    return nn.Sequential(*conv_relu(channels, channels, 3), nn.Dropout2d(dropout), nn.Conv2d(channels, 2, 1))
