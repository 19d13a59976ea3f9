"""DCAMA's mixing and decoding of the aggregated masks (paper Sec. 3.4).

Dimension letters: B episodes, L levels of a stage, C channels, h w size of a stage, H W size of the finest features.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdmnet.models.decoding import conv_stack, normed_conv_stack
from hdmnet.models.method import upsample

KERNELS = {8: (5, 5, 3), 16: (5, 3, 3), 32: (3, 3, 3)}  # of a stage at a stride in input pixels
WIDTHS = (16, 64, 128)


class MaskDecoder(nn.Module):
    """From aggregated masks of all stages, and features of query and supports, to background and foreground.

    Args:
        stages: Levels and stride in input pixels of each, finest first; a stride between those of `KERNELS` is taken
            for the nearest.
        skips: Channels of the features at the finest stage, and of the still finer ones.
    """

    def __init__(self, stages: Sequence[tuple[int, int]], skips: tuple[int, int]) -> None:
        super().__init__()
        width = WIDTHS[-1]
        nearest = [min(KERNELS, key=lambda known: abs(known - stride)) for _, stride in stages]
        self.squeeze = nn.ModuleList(
            normed_conv_stack((depth, *WIDTHS), KERNELS[stride])
            for (depth, _), stride in zip(stages, nearest, strict=True)
        )
        self.mix = nn.ModuleList(normed_conv_stack((width,) * 4, (3,) * 3) for _ in stages[1:])
        self.decode_coarse = conv_stack(width + 2 * sum(skips), width, width // 2)
        self.decode_middle = conv_stack(width // 2, width // 2, 16)
        self.decode_fine = conv_stack(16, 16, 2, last_relu=False)

    def forward(self, masks: Sequence[Tensor], coarse: Sequence[Tensor], fine: Sequence[Tensor]) -> Tensor:
        """Decode.

        Args:
            masks: (B, L, h, w) float of each stage, finest first.
            coarse: Of query and supports, (B, C, h, w) float each at the finest stage.
            fine: Likewise (B, C', H, W), still finer.

        Returns:
            (B, 2, 4·H, 4·W) float, logits.
        """
        squeezed = [block(stage) for block, stage in zip(self.squeeze, masks, strict=True)]
        x: Tensor = squeezed.pop()
        for mix in reversed(self.mix):  # from coarse to fine
            finer = squeezed.pop()
            x = mix(finer + upsample(x, (finer.shape[2], finer.shape[3])))
        first, *rest = self.decode_coarse
        x = conv_parts(cast("nn.Conv2d", first), [x, *coarse], fine)
        for layer in rest:
            x = layer(x)
        for stack in (self.decode_middle, self.decode_fine):
            x = stack(upsample(x, (2 * x.shape[2], 2 * x.shape[3])))
        return x


def conv_parts(conv: nn.Conv2d, coarse: Sequence[Tensor], fine: Sequence[Tensor]) -> Tensor:
    """A 3×3 convolution of maps side by side, the coarse ones (B, C, h, w) upsampled first to the fine (B, C', H, W).

    Both are linear: the kernel's nine parts are applied to the coarse maps, and what they give is upsampled and moved:
    a quarter of the products. Each map is convolved apart, so that no gradient is made of frozen features.
    """
    height, width = fine[0].shape[2:]
    weights = conv.weight.split([part.shape[1] for part in (*coarse, *fine)], dim=1)
    taps = [
        F.conv2d(part, weight.permute(2, 3, 0, 1).flatten(0, 2)[..., None, None])  # (B, 9·C_out, h, w)
        for part, weight in zip(coarse, weights, strict=False)
    ]
    padded = F.pad(upsample(reduce(torch.add, taps), (height, width)), (1, 1, 1, 1)).unflatten(1, (9, -1))
    moved = [padded[:, k, :, k // 3 : k // 3 + height, k % 3 : k % 3 + width] for k in range(9)]
    own = zip(fine, weights[len(coarse) :], strict=True)
    parts = [F.conv2d(part, weight, padding=1) for part, weight in own]
    result: Tensor = reduce(torch.add, moved + parts) + cast("Tensor", conv.bias)[:, None, None]
    return result
