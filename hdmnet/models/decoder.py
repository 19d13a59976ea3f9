"""Coarse-to-fine decoder (paper Eq. 1, Fig. 10).

Dimension letters: B batch, C channels, h_l w_l size of stage l (1 = finest).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def _mlp(channels: int, hidden: int, out_channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, hidden, 1),
        nn.BatchNorm2d(hidden),
        nn.Conv2d(hidden, hidden, 3, padding=1),
        nn.BatchNorm2d(hidden),
        nn.Conv2d(hidden, out_channels, 1),
    ]


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
        x: Tensor = self.blocks[-1](stages[-1])
        for block, stage in zip(reversed(self.blocks[:-1]), reversed(stages[:-1]), strict=True):
            up = F.interpolate(x, stage.shape[-2:], mode="bilinear", align_corners=False)
            x = up + block(stage + up)
        logits: Tensor = self.head(x)
        return logits
