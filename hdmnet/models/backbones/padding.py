"""Depthwise convolutions with wide padding, as dilated networks have them, fast on a CPU."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDEST = 4  # padding that oneDNN's depthwise kernel takes with AVX2; beyond, a general one runs, ten times as long


class PaddedFirst(nn.Conv2d):
    """A convolution that on a CPU pads its input first: the same numbers, many times as fast (docs/backbones.md)."""

    def _conv_forward(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not images.is_cpu or torch.compiler.is_compiling():  # an exported graph runs elsewhere
            found: Tensor = super()._conv_forward(images, weight, bias)
            return found
        height, width = cast("tuple[int, int]", self.padding)
        padded = F.pad(images, (width, width, height, height))
        return F.conv2d(padded, weight, bias, self.stride, 0, self.dilation, self.groups)


def pad_first(network: nn.Module) -> None:
    """Make `PaddedFirst` of the depthwise convolutions that are padded by more than `WIDEST`; in place."""
    for module in network.modules():
        if type(module) is not nn.Conv2d or isinstance(module.padding, str) or module.padding_mode != "zeros":
            continue
        if module.groups == module.in_channels > 1 and max(module.padding) > WIDEST:
            module.__class__ = PaddedFirst
