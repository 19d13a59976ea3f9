"""PFENet's prior mask (its paper's Sec. 3.2; BAM and CyCTR have it too): no parameters, no gradient.

Unlike `hdmnet.models.prior`, the support mask is soft (resized bilinearly) and each shot's map is stretched to [0, 1].

Dimension letters: B queries, K shots, S supports (B·K), C channels of layer 4, h w its size, M positions of a support.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hdmnet.models.packed import Foreground, PackedRows, send
from hdmnet.models.prior import BLOCK, EPS, PRODUCTS_GPU, inner_products, stretch


@torch.no_grad()
def pack_masked(features: Tensor, masks: Tensor, *, whole: bool = False) -> PackedRows:
    """Keep of masked features what the prior can depend on.

    Args:
        features: (S, C, h, w) float, 0 wherever the mask is 0.
        masks: (S, 1, h, w) float in [0, 1].
        whole: Keep all positions: on a GPU nothing is waited for then.

    Returns:
        S items (M, C): the positions under the mask and, where there is another, one of the masked-out ones. These are
        all alike: their feature is 0, and so is their similarity to anything.
    """
    if whole:
        rows = features.flatten(2).transpose(1, 2)  # (S, M, C)
        return PackedRows(rows.flatten(0, 1), (rows.shape[1],) * len(rows))
    outside = masks.flatten(1) == 0  # (S, h·w)
    kept = ~outside | (outside & (outside.cumsum(1) == 1))
    kept = kept.cpu()  # the one wait, where this is a GPU
    index = send(kept.flatten().nonzero()[:, 0], features.device)
    return Foreground(index, tuple(kept.sum(1).tolist())).gather(features)


@torch.no_grad()
def prior_masks(query: Tensor, supports: PackedRows, *, shots: int) -> Tensor:
    """Largest cosine similarity of each query position to a support's, stretched to [0, 1]; all 0 for an empty mask.

    Layer 4 of queries (B, C, h, w) float and of B·K supports, from `pack_masked`, gives (B, K, h, w) float.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)  # 1e-7 is nothing to 16 bits
    lengths: Tensor = query.to(dtype).norm(dim=1)  # (B, h, w)
    if not query.is_cpu:
        found = _largest_cosines(query.flatten(2), supports.pad()[0], lengths.flatten(1), shots)
        return stretch(found).view(-1, shots, *lengths.shape[1:])
    maps = torch.stack([
        _largest_cosine(query[i // shots : i // shots + 1], rows.values, lengths[i // shots])
        for i, rows in enumerate(supports.unbind())
    ])  # fmt: skip
    return stretch(maps.flatten(1)).view(-1, shots, *maps.shape[1:])


def _largest_cosine(query: Tensor, keys: Tensor, lengths: Tensor) -> Tensor:
    """Over keys (M, C), at each position of a query (1, C, h, w) with lengths (h, w): (h, w)."""
    best = torch.full_like(lengths, -torch.inf)
    for block in keys.split(BLOCK):
        block = block.to(query.dtype)
        products = inner_products(query, block)  # (M, h, w)
        norms = block.to(lengths.dtype).norm(dim=1)[:, None, None]
        best = torch.maximum(best, (products.to(lengths.dtype) / (norms * lengths + EPS)).amax(0))
    return best


def _largest_cosines(query: Tensor, keys: Tensor, lengths: Tensor, shots: int) -> Tensor:
    """As `_largest_cosine`, of queries (B, C, N) with lengths (B, N) and keys (B·K, M, C), all together: (B, K, N).

    Keys that only pad are 0, as masked-out positions are, of which each support that needs padding has one.
    """
    best: Tensor | None = None
    for block in keys.to(query.dtype).split(max(PRODUCTS_GPU // (len(keys) * query.shape[2]), 16), 1):
        block = block.unflatten(0, (-1, shots))  # (B, K, m, C)
        products = torch.bmm(block.flatten(1, 2), query).unflatten(1, block.shape[1:3])  # (B, K, m, N)
        norms = block.to(lengths.dtype).norm(dim=3)[..., None]
        found = (products.to(lengths.dtype) / (norms * lengths[:, None, None] + EPS)).amax(2)
        best = found if best is None else torch.maximum(best, found)
    assert best is not None
    return best
