"""A threshold that depends on an episode's supports, for methods without training.

Dimension letters: B episodes, K shots, S supports (B·K), h w feature size, T thresholds.
"""

from __future__ import annotations

import torch
from torch import Tensor

TRIED = 49  # thresholds
SHARPNESS = 16  # power of the IoU that a threshold reaches, by which it counts
LEAST_IOU = 1e-2  # that counts, so that a power of it is not 0


def choose_thresholds(maps: Tensor, foreground: Tensor, *, shots: int, default: float, default_weight: float) -> Tensor:
    """Mean of the thresholds that suit the supports and of a default one.

    Args:
        maps: (S, h, w) float in [0, 1]: what the method finds in each support, best without its own mask.
        foreground: (S, h, w) float in [0, 1], the truth, as the share of each position.
        shots: K: the supports of episode 0 come first.
        default: What the threshold would be without supports.
        default_weight: As how many supports that counts.

    Returns:
        (B,) float: mean of `default` and, weighted K, of the thresholds between 0 and 1, each with a high power of the
        IoU that it reaches over the K supports.
    """
    tried = torch.linspace(0.02, 0.98, TRIED, device=maps.device)  # (T,)
    flat, truth = maps.flatten(1), foreground.flatten(1)
    predicted = (flat[:, None] > tried[:, None]).float()  # (S, T, h·w)
    both = torch.einsum("stn,sn->st", predicted, truth).unflatten(0, (-1, shots)).sum(1)  # (B, T)
    either = (predicted.sum(2) + truth.sum(1)[:, None]).unflatten(0, (-1, shots)).sum(1) - both
    weight = (both / either.clamp(min=1)).clamp(min=LEAST_IOU) ** SHARPNESS
    best = (weight * tried).sum(1) / weight.sum(1)
    chosen: Tensor = (shots * best + default_weight * default) / (shots + default_weight)
    return chosen
