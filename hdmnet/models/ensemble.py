"""The ensemble of meta learner and base learner: BAM's, which HDMNet takes over (its paper's Sec. 4.3 "Ens.").

It works on probabilities at feature resolution: where the base learner sees a base class, foreground is unlikely. How
far the meta learner is trusted depends on how alike query and support are, measured by the Gram matrices of layer 2.

Dimension letters: B batch, K shots, C channels, h w feature size, N base classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hdmnet.models.checks import check_choice

EPS = 1e-7


def gram_matrix(features: Tensor) -> Tensor:
    """Channel-by-channel cosine over the positions: (B, C, h, w) → (B, C, C)."""
    flat = features.flatten(2)
    products = flat @ flat.transpose(1, 2)
    norms = products.diagonal(dim1=1, dim2=2).sqrt()
    result: Tensor = products / (norms[:, :, None] * norms[:, None] + EPS)
    return result


def gram_distance(query: Tensor, supports: Tensor) -> Tensor:
    """How unlike each support is to the query, from Gram matrices (B, C, C) and (B, K, C, C) → (B, K)."""
    result: Tensor = (query[:, None] - supports).flatten(2).norm(dim=2) / query.shape[1]
    return result


class Ensemble(nn.Module):
    """Fuse the meta learner's prediction with the base learner's.

    Args:
        num_shots: K the shot weights are made for; with another number of supports at run time the distances are
            averaged.
        shot_weighting: "intended": the weights meet the distances they were computed for. "official": as the release
            does it, weights in sorted order meet unsorted distances (its checkpoints were trained so).

    Raises:
        ValueError: Unknown `shot_weighting`.
    """

    def __init__(self, *, num_shots: int = 1, shot_weighting: str = "intended") -> None:
        super().__init__()
        check_choice("model.shot_weighting", shot_weighting, ("intended", "official"))
        self.num_shots = num_shots
        self.shot_weighting = shot_weighting
        self.gram_merge = nn.Conv2d(2, 1, 1, bias=False)
        self.base_merge = nn.Conv2d(2, 1, 1, bias=False)
        for merge in (self.gram_merge, self.base_merge):
            merge.weight.data = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
        if num_shots > 1:
            self.shot_weights = nn.Sequential(
                nn.Conv2d(num_shots, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(2, num_shots, 1)
            )

    def pool_distances(self, distances: Tensor) -> Tensor:
        """Pool the Gram distances of the shots: (B, K) → (B,)."""
        ranked = self._rank(distances)
        if ranked is None:
            return distances.mean(1)
        weights, order = ranked
        values = distances.gather(1, order) if self.shot_weighting == "intended" else distances
        result: Tensor = (weights * values).sum(1)
        return result

    def weigh_shots(self, distances: Tensor) -> Tensor:
        """How much each shot counts, by its Gram distance as `pool_distances` intends it: (B, K) → (B, K), sum 1."""
        ranked = self._rank(distances)
        if ranked is None:
            return torch.full_like(distances, 1 / distances.shape[1])
        weights, order = ranked
        return weights.gather(1, order.argsort(1))

    def _rank(self, distances: Tensor) -> tuple[Tensor, Tensor] | None:
        """Weights (B, K) of the shots from the nearest to the farthest, and which shots these are.

        None where there are no weights for this number of shots: all count alike.
        """
        if distances.shape[1] != self.num_shots or self.num_shots == 1:
            return None
        ascending, order = distances.sort(dim=1)
        weights: Tensor = self.shot_weights(ascending[..., None, None])[..., 0, 0].softmax(dim=1)
        return weights, order

    def forward(
        self, meta_logits: Tensor, base_logits: Tensor, distances: Tensor, class_index: Tensor | None = None
    ) -> Tensor:
        """Fuse.

        Args:
            meta_logits: (B, 2, h, w) float.
            base_logits: (B, 1 + N, h, w) float.
            distances: (B, K) float, from `gram_distance`.
            class_index: (B,) int64 in [0, N), in training: the episode's own base class, which must not be suppressed.

        Returns:
            (B, 2, h, w) float: fused background and foreground *probabilities*, used as logits (as in the release).
        """
        meta = meta_logits.softmax(1)
        base_map = base_foreground(base_logits, class_index)
        estimate = self.pool_distances(distances)[:, None, None, None].expand_as(meta[:, :1])
        background = self.gram_merge(torch.cat([meta[:, :1], estimate], dim=1))
        foreground = self.gram_merge(torch.cat([meta[:, 1:], estimate], dim=1))
        background = self.base_merge(torch.cat([background, base_map], dim=1))
        return torch.cat([background, foreground], dim=1)


def base_foreground(base_logits: Tensor, class_index: Tensor | None = None) -> Tensor:
    """Summed probability of the base classes, background left out.

    Args:
        base_logits: (B, 1 + N, h, w) float.
        class_index: (B,) int64 in [0, N): a base class to leave out of each item; None = none.

    Returns:
        (B, 1, h, w) float in [0, 1].
    """
    probabilities = base_logits.softmax(1)
    total = probabilities[:, 1:].sum(1, keepdim=True)
    if class_index is None:
        return total
    own = (class_index + 1).view(-1, 1, 1, 1).expand(-1, 1, *base_logits.shape[-2:])
    return total - probabilities.gather(1, own)
