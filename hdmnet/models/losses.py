"""Cross entropy of a prediction: of logits, and of probabilities.

Dimension letters: B batch, C classes, H W input pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = 255


PROBABILITY_EPS = 1e-6  # the fusion is linear: its "probabilities" may reach 0 and below


def segmentation_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Cross entropy, 255 ignored; 0 when every pixel is ignored.

    Args:
        logits: (B, C, H, W) float.
        mask: (B, H, W) integer, 0..C-1 or 255.

    Returns:
        Scalar.
    """
    target = mask.long()
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # 16 bits would lose the sum over the pixels
    total = F.cross_entropy(logits, target, ignore_index=IGNORE_INDEX, reduction="sum")
    # torch's own mean over no pixel is NaN; to ask beforehand whether there is one would wait for the GPU.
    return total / (target != IGNORE_INDEX).sum().clamp(min=1)


def probability_loss(probabilities: Tensor, mask: Tensor) -> Tensor:
    """Negative log-likelihood of a map that holds probabilities, 255 ignored.

    What the cross entropy of the fused prediction would be by the text. The release takes the softmax of the
    probabilities once more (`segmentation_loss` on them), which cannot fall below log(1 + 1/e) = 0.31.

    Args:
        probabilities: (B, C, H, W) float; brought to a sum of 1 here.
        mask: (B, H, W) integer, 0..C-1 or 255.

    Returns:
        Scalar.
    """
    # Softmax of logarithms is division by the sum.
    return segmentation_loss(probabilities.clamp(min=PROBABILITY_EPS).log(), mask)
