"""Losses that methods share. A loss is a module, called as ``loss(output, query_mask)``, that gives its terms by name.

Dimension letters: B batch, C classes, H W input pixels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdmnet.models.checks import check_choice, check_weight
from hdmnet.models.method import Segmentation

IGNORE_INDEX = 255
DICE_EPS = 1e-8
PROBABILITY_EPS = 1e-6  # the fusion is linear: its "probabilities" may reach 0 and below


def segmentation_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Cross entropy of logits (B, C, H, W) float and a mask (B, H, W) integer, 0..C-1 or 255, which is ignored.

    A scalar; 0 when every pixel is ignored.
    """
    target = mask.long()
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # 16 bits would lose the sum over the pixels
    # On a GPU the sum within adds up in any order, which trainer.deterministic=true refuses.
    reduction = "none" if torch.are_deterministic_algorithms_enabled() else "sum"
    total = F.cross_entropy(logits, target, ignore_index=IGNORE_INDEX, reduction=reduction).sum()
    # torch's own mean over no pixel is NaN; to ask beforehand whether there is one would wait for the GPU.
    return total / (target != IGNORE_INDEX).sum().clamp(min=1)


def probability_loss(probabilities: Tensor, mask: Tensor) -> Tensor:
    """Negative log-likelihood of a map that holds probabilities, 255 ignored.

    What the cross entropy of the fused prediction would be by the text. The release takes the softmax of the
    probabilities (B, C, H, W) once more (`segmentation_loss` on them), which cannot fall below log(1 + 1/e) = 0.31.
    Here they are brought to a sum of 1; the rest is as in `segmentation_loss`.
    """
    # Softmax of logarithms is division by the sum.
    return segmentation_loss(probabilities.clamp(min=PROBABILITY_EPS).log(), mask)


def dice_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Dice of both classes' sigmoids, squared in the denominator, summed over the two and averaged over the batch.

    Of logits (B, 2, H, W) float and a mask (B, H, W) integer, 0/1/255; a scalar in [0, 2]. Pixels of 255 are of neither
    class, but what is predicted there counts.
    """
    probability = logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid().flatten(2)
    target = torch.stack([mask == 0, mask == 1], dim=1).flatten(2).to(probability.dtype)
    both = (probability * target).sum(2)
    squares = (probability.square() + target).sum(2).clamp(min=DICE_EPS)
    return (1 - 2 * both / squares).sum(1).mean()


class SegmentationLoss(nn.Module):
    """Cross entropy of the final prediction and of the auxiliary ones: what most methods are trained with.

    Args:
        auxiliary: Weight of the mean of the auxiliary terms, or a weight each by name (the others then count nothing).
        border: What pixels of 255 are: "ignore", nothing; "background", as HSNet and DCAMA have it.

    Raises:
        ValueError: A weight is negative or not finite, or `border` has another value.
    """

    def __init__(self, auxiliary: float | Mapping[str, float] = 1.0, *, border: str = "ignore") -> None:
        super().__init__()
        weights = auxiliary if isinstance(auxiliary, Mapping) else {"": auxiliary}
        for name, weight in weights.items():
            check_weight(f"loss.auxiliary{'.' if name else ''}{name}", weight)
        check_choice("loss.border", border, ("ignore", "background"))
        self.auxiliary, self.border = auxiliary, border

    def forward(self, output: Segmentation, query_mask: Tensor) -> dict[str, Tensor]:
        """Score an answer.

        Args:
            output: The method's answer to B episodes.
            query_mask: (B, H, W) integer, 0/1/255.

        Returns:
            Scalars: ``loss``, the weighted sum; ``final``; and one an auxiliary prediction.
        """
        if self.border == "background":
            query_mask = query_mask == 1
        final = segmentation_loss(output.logits, query_mask)
        weights = self.auxiliary
        if not isinstance(weights, Mapping):
            weights = dict.fromkeys(output.auxiliary, weights / max(len(output.auxiliary), 1))
        terms = {name: segmentation_loss(output.auxiliary_logits[name], query_mask) for name in weights}
        total = final
        for name, weight in weights.items():
            total = total + weight * terms[name]
        return {"loss": total, "final": final, **terms}
