"""Losses: cross entropy of final and meta prediction, and the correlation distillation (paper Sec. 3.4, Eqs. 8-9).

Dimension letters: B batch, H W input pixels, h_l w_l size of stage l (1 = finest), P positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = 255
LOG_EPS = 1e-12
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
    if not bool((target != IGNORE_INDEX).any()):
        return logits.sum() * 0.0  # torch's mean over no pixel is NaN
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # 16 bits would lose the sum over the pixels
    return F.cross_entropy(logits, target, ignore_index=IGNORE_INDEX)


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


def ground_truth_teacher(query_mask: Tensor, size: tuple[int, int]) -> Tensor:
    """The teacher of the coarsest correlation map, made from the ground truth.

    The release resizes a map of 1 on foreground and -1e9 elsewhere (255 too) and takes its softmax. In exact arithmetic
    that is: uniform over the cells whose interpolation footprint is foreground only; if there is none, all on the
    cell(s) with the largest foreground share; uniform with no foreground at all. Computed so here, as -1e9 drowns the
    differences in float32.

    Args:
        query_mask: (B, H, W) integer, 0/1/255.
        size: (h, w) of the coarsest stage.

    Returns:
        (B, h·w) float, sums to 1.
    """
    foreground = (query_mask == 1).double()[:, None]
    # Halves or odd weights of the same taps may sum up in another order: compare up to a whisker far below one tap's
    # weight.
    share = F.interpolate(foreground, size, mode="bilinear", align_corners=False).flatten(1)
    best = share.amax(1, keepdim=True)
    chosen = (share >= best - 1e-9).double()  # (B, P)
    return (chosen / chosen.sum(1, keepdim=True)).float()


def distillation_per_stage(
    correlation_maps: Sequence[Tensor], query_mask: Tensor, temperature: float = 1.0
) -> list[Tensor]:
    """KL divergence of each stage from its teacher, mean over the batch (Eq. 9).

    The teacher of the coarsest stage is the ground truth; of each other the next coarser map, detached.

    Args:
        correlation_maps: Finest first, each (B, h_l, w_l) float.
        query_mask: (B, H, W) integer, 0/1/255.
        temperature: T of Eq. 8, above 0; the release has none (T = 1).

    Returns:
        One scalar a stage, finest first.

    Raises:
        ValueError: The temperature is not above 0, or there is no map.
    """
    if temperature <= 0:
        raise ValueError(f"loss.temperature={temperature}: expected a number above 0")
    if not correlation_maps:
        raise ValueError("no correlation maps to distil; expected one a matching stage")
    losses: list[Tensor] = []
    teacher: Tensor | None = None
    for correlation_map in reversed(correlation_maps):  # coarse → fine
        size = (correlation_map.shape[1], correlation_map.shape[2])
        # 16 bits (mixed precision) would lose the 1e-12 below.
        student_map = correlation_map.to(torch.promote_types(correlation_map.dtype, torch.float32))
        if teacher is None:
            target = ground_truth_teacher(query_mask, size).to(student_map.dtype)
        else:
            resized = F.interpolate(teacher[:, None], size, mode="bilinear", align_corners=False)
            target = (resized.flatten(1) / temperature).softmax(1)
        student = (student_map.flatten(1) / temperature).softmax(1)
        divergence = target * ((target + LOG_EPS).log() - (student + LOG_EPS).log())
        losses.append(divergence.sum(1).mean())
        teacher = student_map.detach()
    return losses[::-1]


def correlation_distillation(
    correlation_maps: Sequence[Tensor], query_mask: Tensor, temperature: float = 1.0
) -> Tensor:
    """Correlation distillation: mean of the stages' KL divergences (Sec. 3.4).

    Args:
        correlation_maps: Finest first, each (B, h_l, w_l) float, before any softmax.
        query_mask: (B, H, W) integer, 0/1/255, at any size.
        temperature: T of Eq. 8, above 0.

    Returns:
        Scalar, at least 0.

    Raises:
        ValueError: The temperature is not above 0, or there is no map.
    """
    return torch.stack(distillation_per_stage(correlation_maps, query_mask, temperature)).mean()
