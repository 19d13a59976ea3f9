"""Self-support prototypes: what the query itself says of background and foreground (paper Sec. 3.2 and 3.3).

Dimension letters: B queries, S supports, C channels, h w feature size, N = h·w positions, H W input pixels; the two
classes are background and foreground.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hdmnet.models.class_prototypes import unit, weighted_means, without_autocast
from hdmnet.models.method import upsample

SCALE = 10.0  # of the cosines
THRESHOLDS = (0.6, 0.7)  # a position is sure of its class above this probability
FEWEST = 12  # positions that are taken where none is sure
SHARPNESS = 2.0  # of the softmax over the query's background


def pool(features: Tensor, masks: Tensor) -> Tensor:
    """Mean features of background and foreground (S, 2, C).

    Args:
        features: (S, C, h, w) float.
        masks: (S, H, W), 0 background, 1 foreground; 255 is in neither.
    """
    classes = torch.stack([masks == 0, masks == 1], dim=1).to(features.dtype)
    soft = upsample(classes, (features.shape[2], features.shape[3]))
    return weighted_means(features, soft, soft.sum((2, 3)))


def score(units: Tensor, background: Tensor, foreground: Tensor) -> Tensor:
    """Logits (B, N, 2) of positions of length 1 (B, N, C) by prototypes (B, 1, C), or one a position (B, N, C)."""
    return SCALE * torch.stack([(units * unit(one)).sum(2) for one in (background, foreground)], dim=2)


@without_autocast
def self_support(rows: Tensor, units: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """The query's own prototypes, by what it has been taken for.

    Which positions are chosen carries no gradient.

    Args:
        rows: (B, N, C) float, the query's features.
        units: The same of length 1.
        scores: (B, N, 2) float, logits.

    Returns:
        Prototypes: of background (B, N, C), one a position, and of foreground (B, 1, C).
    """
    probability = scores.detach().softmax(2)
    sure = probability > probability.new_tensor(THRESHOLDS)
    best = probability.topk(min(FEWEST, probability.shape[1]), dim=1).indices
    chosen = torch.where(sure.any(1, keepdim=True), sure, torch.zeros_like(sure).scatter(1, best, True))  # (B, N, 2)
    share = chosen.to(rows.dtype) / chosen.sum(1, keepdim=True)
    background, foreground = (share.transpose(1, 2) @ rows).split(1, dim=1)  # SSBP and SSFP, (B, 1, C)
    return 0.3 * background + 0.7 * adaptive_background(rows, units, chosen[..., 0]), foreground


def adaptive_background(rows: Tensor, units: Tensor, chosen: Tensor) -> Tensor:
    """ASBP (B, N, C): the chosen positions (B, N) bool, averaged by how similar they are to each position."""
    if not rows.is_cpu:  # nothing waits for the GPU to say how many there are
        keys, values, mask = units[:, None], rows[:, None], chosen[:, None, None]
        return F.scaled_dot_product_attention(keys, keys, values, attn_mask=mask, scale=SHARPNESS)[:, 0]
    items = []
    for row, own, keep in zip(rows, units, chosen, strict=True):
        similarity = SHARPNESS * own @ own[keep].T
        items.append(similarity.softmax(1) @ row[keep])
    return torch.stack(items)
