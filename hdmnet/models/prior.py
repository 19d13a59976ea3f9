"""Prior masks (paper Sec. 3.3 "the same as [45]", with the release's two maps and without its normalisation).

Dimension letters: B batch, K shots, C channels, h w feature size, H W input pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hdmnet.models.foreground import find_foreground

EPS = 1e-7


def prior_mask(query: Tensor, support: Tensor, support_mask: Tensor, *, normalise: bool = False) -> Tensor:
    """Largest cosine similarity of each query position to the supports' foreground, averaged over the shots.

    Masked-out support positions count as a similarity of exactly 0, as in the release.

    Args:
        query: (B, C, h, w) float, high-level query features.
        support: (B, K, C, h, w) float, high-level support features.
        support_mask: (B, K, H, W) float, 1 on foreground and 0 elsewhere; resized to (h, w) by nearest neighbour.
        normalise: Stretch each map to [0, 1] by its own minimum and maximum, before the mean over shots (PFENet; the
            release does not).

    Returns:
        (B, 1, h, w) float, in [-1, 1].
    """
    batch, shots, channels = support.shape[:3]
    mask = F.interpolate(support_mask.flatten(0, 1)[:, None], support.shape[-2:], mode="nearest")
    foreground = find_foreground(mask.flatten(1) > 0.5)  # (B·K, N)
    keys = foreground.gather(support.reshape(batch * shots, channels, -1).transpose(1, 2))  # (B·K, M, C)
    values = query.flatten(2)  # (B, C, hw)
    key_norms = keys.norm(dim=2, keepdim=True)
    value_norms = values.norm(dim=1, keepdim=True).repeat_interleave(shots, 0)
    products = keys @ values.repeat_interleave(shots, 0)  # (B·K, M, hw)
    best = (products / (key_norms * value_norms + EPS)).amax(1)  # (B·K, hw)
    has_background = foreground.count < foreground.num_positions
    best = torch.where(has_background[:, None], best.clamp(min=0), best)
    if normalise:
        low, high = best.amin(1, keepdim=True), best.amax(1, keepdim=True)
        best = (best - low) / (high - low + EPS)
    return best.view(batch, shots, *query.shape[-2:]).mean(1, keepdim=True)
