"""Pictures whose object is told from the rest by its colour, and a trunk that sees nothing else."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hdmnet.models.backbones.base import Backbone, FeatureInfo

RED, GREEN, GREY = (2.0, 0.0, 0.0), (0.0, 2.0, 0.0), (0.3, 0.3, 0.6)


class Colours(Backbone):
    """Mean colour, of cells of 4 pixels, as two levels."""

    feature_info = (FeatureInfo(3, 4), FeatureInfo(3, 4))

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(1))  # a trunk has weights

    def forward(self, images):
        cells = F.avg_pool2d(images, 4, ceil_mode=True) * self.gain
        return cells, cells.flip(1)


def scene(red, green, size=(48, 64)):
    """A picture (3, H, W) with a red and a green square at (top, left) on grey, and the mask (H, W) of each."""
    picture = torch.tensor(GREY)[:, None, None].expand(3, *size).clone()
    masks = torch.zeros(2, *size, dtype=torch.uint8)
    for mask, colour, (top, left) in zip(masks, (RED, GREEN), (red, green), strict=True):
        mask[top : top + 16, left : left + 16] = 1
        picture[:, mask == 1] = torch.tensor(colour)[:, None]
    return picture, masks


def episode(shots=1, of=0):
    """A query, its K supports, whose marked object is the red (0) or the green (1) square, and the query's mask."""
    query, truth = scene((4, 40), (28, 8))
    supports = [scene((20 - 4 * k, 4 + 8 * k), (28, 44 - 4 * k)) for k in range(shots)]
    pictures = torch.stack([picture for picture, _ in supports])[None]
    return (query[None], pictures, torch.stack([masks[of] for _, masks in supports])[None]), truth[of]


def iou(prediction, truth):
    """Of two (H, W) masks of 0 and 1."""
    return float(((prediction == 1) & (truth == 1)).sum() / ((prediction == 1) | (truth == 1)).sum())
