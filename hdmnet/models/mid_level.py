"""Mid-level features (layers 2 and 3 together), reduced in width, and a support's prototype of them.

Dimension letters: B batch, C channels, C_i those of part i, C_out width, h w feature size.
"""

from __future__ import annotations

from functools import reduce
from itertools import accumulate, pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PROTOTYPE_EPS = 5e-4


def masked_average(features: Tensor, mask: Tensor) -> Tensor:
    """Prototype: mean of the features (B, C, h, w) under a soft mask (B, 1, h, w) → (B, C, 1, 1)."""
    return (features * mask).sum((2, 3), keepdim=True) / (mask.sum((2, 3), keepdim=True) + PROTOTYPE_EPS)


class Reduction(nn.Sequential):
    """1×1 convolution without bias, ReLU, and dropout of whole channels where asked for.

    Its convolution is applied to the parts of what would be concatenated: a convolution of concatenated maps is a sum
    of convolutions, and neither the concatenation is needed nor the expansion of what is the same everywhere.

    Args:
        in_channels: Of all parts together.
        out_channels: C_out.
        dropout: Of whole channels.
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.0) -> None:
        conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        super().__init__(conv, nn.ReLU(inplace=True), nn.Dropout2d(dropout) if dropout else nn.Identity())

    @property
    def dropout(self) -> nn.Module:
        """What follows the ReLU."""
        return self[2]

    def forward(self, *parts: Tensor) -> Tensor:
        """Reduce parts, see `convolve`: (B, C_out, h, w)."""
        result: Tensor = self.dropout(self.convolve(*parts).relu_())
        return result

    def convolve(self, *parts: Tensor, first: int = 0) -> Tensor:
        """What the convolution makes of its input channels from `first` on, before the ReLU: (B, C_out, h, w).

        The parts are (B, C_i, h, w) float each, or (B, C_i, 1, 1) of what is the same everywhere.
        """
        bounds = accumulate((part.shape[1] for part in parts), initial=first)
        weight = cast("nn.Conv2d", self[0]).weight
        made = [F.conv2d(part, weight[:, low:high]) for part, (low, high) in zip(parts, pairwise(bounds), strict=True)]
        return reduce(torch.add, made)
