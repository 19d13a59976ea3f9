"""A small convolutional head.

Dimension letters: B queries, M maps in, D width, h w feature size.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

DILATIONS = (1, 2, 4, 1)  # of the blocks
GROUPS = 4  # of the group normalisation


class Block(nn.Module):
    """Two 3×3 convolutions, the first one dilated, whose output is added to their input."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False),
            nn.GroupNorm(GROUPS, width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.GroupNorm(GROUPS, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) → (B, D, h, w)."""
        return F.relu(x + self.layers(x))


class MapHead(nn.Module):
    """What maps change in a first answer; next to nothing, before it is trained.

    Args:
        num_maps: M.
        width: D; a multiple of 4.
        dropout: Of whole maps, in training.
    """

    def __init__(self, num_maps: int, *, width: int = 32, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.project = nn.Conv2d(num_maps, width, 1)
        self.blocks = nn.Sequential(*(Block(width, dilation) for dilation in DILATIONS))
        self.classify = nn.Conv2d(width, 2, 1)
        nn.init.normal_(self.classify.weight, std=1e-4)
        nn.init.zeros_(self.classify.bias)  # type: ignore[arg-type]

    def forward(self, maps: Tensor, scores: Tensor) -> Tensor:
        """Maps (B, M, h, w) float and logits (B, 2, h, w) → logits (B, 2, h, w)."""
        x = F.relu(self.project(self.dropout(maps)))
        logits: Tensor = scores + self.classify(self.blocks(x))
        return logits
