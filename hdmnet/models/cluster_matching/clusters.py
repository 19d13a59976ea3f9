"""Clusters of a picture's positions by first neighbours (Sarfraz et al., CVPR 2019, FINCH).

Dimension letters: N positions, C channels, n clusters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cluster(units: Tensor, fewest: int) -> Tensor:
    """Join positions with their nearest neighbours, then clusters with theirs, as long as enough are left.

    Args:
        units: (N, C) float, of length 1.
        fewest: Clusters that must be left; fewer only where N is less.

    Returns:
        (N,) int64, the cluster of each position: 0 to n - 1.
    """
    labels = torch.arange(len(units), device=units.device)
    means = units
    while len(means) > fewest:
        alike = means @ means.T
        alike.fill_diagonal_(-torch.inf)
        joined = _join(alike.argmax(1))
        if int(joined.max()) + 1 < fewest:
            break
        labels = joined[labels]
        means = F.normalize(cluster_means(units, labels), dim=1)
    return labels


def cluster_means(values: Tensor, labels: Tensor) -> Tensor:
    """Means (n, C) of values (N, C) over the clusters (N,)."""
    sums = values.new_zeros(int(labels.max()) + 1, values.shape[1]).index_add_(0, labels, values)
    return sums / labels.bincount()[:, None]


def _join(neighbour: Tensor) -> Tensor:
    """Number, from 0, the components that links from each of n items to one other (n,) make."""
    root = torch.arange(len(neighbour), device=neighbour.device)
    while True:
        # The smallest number along each link, in both directions; then that one's own.
        least = torch.minimum(root, root[neighbour]).scatter_reduce(0, neighbour, root, "amin")
        least = least[least]
        if torch.equal(least, root):
            numbered: Tensor = root.unique(return_inverse=True)[1]
            return numbered
        root = least
