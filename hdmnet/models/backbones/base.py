"""Frozen encoders with declared channels and strides.

Every backbone returns three levels, named after the ResNet layers the paper uses: ``layer2`` and ``layer3`` (mid-level
features, Sec. 4.1) and ``layer4`` (the prior mask). Layers 3 and 4 keep the resolution of layer 2 by dilation, except
for VGG-16, whose layers 3 and 4 have stride 16.

Dimension letters: B batch, H W input pixels, C_l / h_l / w_l channels and size of level l.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in 0..1


@dataclass(frozen=True)
class Level:
    """What one feature level looks like: its number of channels and its stride in input pixels."""

    channels: int
    stride: int


class Backbone(nn.Module):
    """An encoder cut into a stem and the parts up to layers 2, 3 and 4.

    Args:
        parts: Modules run one after the other; the outputs of the last three are the levels layer2, layer3, layer4.
        levels: Channels and stride of layer2, layer3, layer4.
    """

    def __init__(self, *, parts: list[nn.Module], levels: tuple[Level, Level, Level]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.levels = levels

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode pictures.

        Args:
            images: (B, 3, H, W) float, normalised.

        Returns:
            layer2, layer3, layer4: each (B, C_l, h_l, w_l) float.
        """
        outputs = []
        x = images
        for part in self.parts:
            x = part(x)
            outputs.append(x)
        layer2, layer3, layer4 = outputs[-3:]
        return layer2, layer3, layer4
