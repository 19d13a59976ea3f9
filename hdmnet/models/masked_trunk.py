"""A frozen trunk that is cut before layer 4, so that a support is masked there (PFENet, BAM, CyCTR).

Dimension letters: B batch, H W input pixels, C_l channels of layer l, h w size of layer 3, h_4 w_4 of layer 4.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdmnet.models.checks import check_choice


class MaskedTrunk(nn.Module):
    """Mid-level features, and layer 4 of the whole picture or of its object only.

    Args:
        encoder: A backbone with `parts`, the last three of which give layers 2, 3 and 4, or a base learner that has
            trained one; its parameters are set to need no gradient.
        norm: Its batch normalisation in training: "batch": statistics of the batch, running statistics drift, as in the
            release; "frozen": as in evaluation.

    Raises:
        ValueError: Unknown `norm`, or a backbone that cannot be cut before its last layer.
    """

    def __init__(self, encoder: nn.Module, *, norm: str = "batch") -> None:
        super().__init__()
        check_choice("model.trunk_bn", norm, ("batch", "frozen"))
        encoder = cast("nn.Module", getattr(encoder, "backbone", encoder))
        self.mid_channels = check_cut(encoder)
        self.norm = norm
        self.encoder: Any = encoder.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> MaskedTrunk:
        """Switch the mode; with ``norm="frozen"`` it stays in evaluation mode."""
        return super().train(mode and self.norm == "batch")

    @torch.no_grad()
    def forward(self, images: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Encode pictures, or supports.

        Args:
            images: (B, 3, H, W) float, normalised.
            masks: (B, 1, H, W) float, 1 on the object: multiplies layer 3 before layer 4 sees it, and layer 4.

        Returns:
            Layers 3 and 2, (B, C_3 + C_2, h, w); layer 4, (B, C_4, h_4, w_4); the mask at layer 4's size, or None.
        """
        layer2, layer3, layer4, mask = run_cut(self.encoder.parts, images, masks)
        return torch.cat([layer3, layer2], dim=1), layer4, mask


def check_cut(backbone: nn.Module) -> int:
    """Channels of layers 2 and 3 together; ValueError for a backbone that cannot be cut before its last layer."""
    parts = getattr(backbone, "parts", None)
    levels: Any = getattr(backbone, "feature_info", ())  # of the last three parts
    if not isinstance(parts, nn.ModuleList) or len(parts) < 3 or len(levels) != 3:
        raise ValueError(
            f"the backbone's last layer runs on masked features: {type(backbone).__name__} of {len(levels)} levels "
            "cannot be cut there; expected three levels by `parts` that run one after the other (a ResNet, VGG-16, "
            "MobileNetV2)"
        )
    return int(levels[0].channels + levels[1].channels)


def run_cut(parts: Any, images: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Run a backbone's parts; arguments as of `MaskedTrunk.forward`.

    Returns:
        Layers 2 and 3, (B, C_2, h, w) and (B, C_3, h, w); layer 4, (B, C_4, h_4, w_4); the mask at layer 4's size.
    """
    outputs = [images]
    *parts, last = parts
    for part in parts:
        outputs.append(part(outputs[-1]))
    layer2, layer3 = outputs[-2:]
    if masks is None:
        layer4, mask = last(layer3), None
    else:
        layer4 = last(layer3 * _resize(masks, layer3))
        mask = _resize(masks, layer4)
        layer4 = layer4 * mask
    return _resize(layer2, layer3), layer3, layer4, mask


def _resize(maps: Tensor, like: Tensor) -> Tensor:
    """Maps (B, C, …) at the size and precision of others: bilinear, corners aligned."""
    size = like.shape[-2:]
    resized = maps if maps.shape[-2:] == size else F.interpolate(maps, size, mode="bilinear", align_corners=True)
    return resized.to(like.dtype)
