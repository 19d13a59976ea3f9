"""From uint8 colours to the values that the backbones were trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn uint8 colours to the float32 values that the backbones were trained on.

    Args:
        images: (..., 3, H, W) uint8 RGB.
        mean: RGB mean in [0, 1].
        std: RGB standard deviation.

    Returns:
        (..., 3, H, W) float32 on the same device: (images / 255 - mean) / std.
    """
    # Built on the CPU and sent without waiting, so that a GPU's queue is not stalled.
    statistics = torch.tensor([list(mean), list(std)]).to(images.device, non_blocking=True)
    shift, scale = statistics.view(2, 3, 1, 1)
    # In place, on the copy that `to` makes of integers (and must make of floats).
    return images.to(torch.float32, copy=True).div_(255).sub_(shift).div_(scale)
