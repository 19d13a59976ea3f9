"""What a backbone is: features of several levels, with declared channels and strides.

The last three levels stand for the ResNet layers that the paper uses: `layer2` and `layer3` (mid-level features, Sec.
4.1) and `layer4` (the prior mask).

Dimension letters: B batch, H W input pixels, C_l h_l w_l channels and size of level l.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in 0..1
LAYER3 = -2  # of the levels: the one whose size HDMNet's features have


@dataclass(frozen=True)
class FeatureInfo:
    """What the features of one level look like: their number of channels and their stride in input pixels."""

    channels: int
    stride: int


class Backbone(nn.Module):
    """An encoder of pictures. Any module with these attributes and this `forward` is one; inheriting is not needed.

    Attributes:
        feature_info: Channels and stride of each level, finest first.
        multiple_of: What height and width of the pictures must be a multiple of; `encode` pads them.
    """

    feature_info: tuple[FeatureInfo, ...]
    multiple_of: int = 1

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Encode pictures.

        Args:
            images: (B, 3, H, W) float, normalised; H and W multiples of `multiple_of`.

        Returns:
            One (B, C_l, h_l, w_l) float a level, finest first; h_l is H divided by the stride, rounded up.
        """
        raise NotImplementedError


class SequentialBackbone(Backbone):
    """A backbone cut into parts that run one after the other.

    Args:
        parts: The outputs of the last ones are the levels.
        feature_info: Channels and stride of each level.
    """

    def __init__(self, parts: Sequence[nn.Module], feature_info: Sequence[FeatureInfo]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.feature_info = tuple(feature_info)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) float, normalised → one (B, C_l, h_l, w_l) float a level."""
        outputs = [images]
        for part in self.parts:
            outputs.append(part(outputs[-1]))
        return tuple(outputs[-len(self.feature_info) :])


def encode(backbone: Backbone, images: Tensor, *, size_of: int | None = None) -> tuple[Tensor, ...]:
    """Encode pictures of any size.

    Pictures are padded at the right and the bottom with the mean colour up to a multiple of `multiple_of`; of the
    features, what lies wholly in the padding is cut off.

    Args:
        backbone: The encoder.
        images: (B, 3, H, W) float, normalised.
        size_of: The level to whose size levels of another stride are brought; None: each keeps its own.

    Returns:
        One (B, C_l, h_l, w_l) float a level, finest first.
    """
    height, width = images.shape[-2:]
    bottom, right = -height % backbone.multiple_of, -width % backbone.multiple_of
    if bottom or right:
        images = F.pad(images, (0, right, 0, bottom))
    levels = list(backbone(images))
    strides = [info.stride for info in backbone.feature_info]
    if size_of is not None:
        # Before cutting: the levels cover the same pixels only while they are whole.
        for i, level in enumerate(levels):
            if strides[i] != strides[size_of]:
                size = levels[size_of].shape[-2:]
                levels[i] = F.interpolate(level, size, mode="bilinear", align_corners=True)
        strides = [strides[size_of]] * len(levels)
    if bottom or right:
        for i, (level, stride) in enumerate(zip(levels, strides, strict=True)):
            levels[i] = level[..., : -(-height // stride), : -(-width // stride)]
    return tuple(levels)
