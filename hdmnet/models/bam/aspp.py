"""Atrous spatial pyramid pooling, as BAM has it: biases, ReLU and no normalisation in every branch."""

from __future__ import annotations

from torch import Tensor, nn

DILATIONS = (6, 12, 18)


class ASPP(nn.Module):
    """The whole map's mean, a 1×1 convolution, and three dilated 3×3 ones, side by side.

    Args:
        channels: C, of the input and of each branch.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)]
        convolutions += [nn.Conv2d(channels, channels, 3, padding=d, dilation=d) for d in DILATIONS]
        for convolution in convolutions:
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        self.branches = nn.ModuleList(nn.Sequential(one, nn.ReLU(inplace=True)) for one in convolutions)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, h, w) → the mean's (B, C, 1, 1), which is the same everywhere, then four (B, C, h, w)."""
        whole, *local = self.branches
        return [whole(x.mean((2, 3), keepdim=True)), *(branch(x) for branch in local)]
