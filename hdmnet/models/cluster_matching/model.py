"""Segment by clusters of the query that match the supports' object, and that the object matches: nothing is trained.

In the manner of INSID3 (training-free segmentation with a frozen DINOv3); README.md says what differs.

Dimension letters: B episodes, K shots, S supports (B·K), C channels of all levels, H W input pixels, h w feature size,
N = h·w positions, n clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdmnet.models.batch import Batch
from hdmnet.models.checks import check_integer, check_share, check_weight
from hdmnet.models.cluster_matching.clusters import cluster, cluster_means
from hdmnet.models.cluster_matching.position import position_directions, take_away
from hdmnet.models.frozen_backbone import FrozenBackbone
from hdmnet.models.method import ApartMethod, Segmentation
from hdmnet.models.similarity import (
    cell_side,
    cells_of,
    foreground_share,
    level_cosines,
    masked_means,
    stretch_maps,
    threshold_scores,
    unit_levels,
)
from hdmnet.models.thresholds import choose_thresholds


@dataclass
class ClusteredPicture(Batch):
    """Queries or supports, B each.

    Attributes:
        units: (B, C, h, w) float, see `unit_levels`: without what they say of the place, for matching.
        labels: (B, h, w) int64, the cluster of each position.
        foreground: (B, h, w) float in [0, 1], share of each position; None of queries.
        size: (H, W) of the pictures.
    """

    units: Tensor
    labels: Tensor
    foreground: Tensor | None
    size: tuple[int, int]


class ClusterMatching(ApartMethod):
    """Few-shot segmenter without parameters that learn, for any number of supports.

    Args:
        encoder: A backbone with weights, or a base learner that has trained one; frozen here.
        num_shots: K of training episodes, which there are none of.
        levels: Which levels of the trunk, see `FrozenBackbone`.
        num_clusters: Fewest clusters of a picture, see `cluster`.
        position_rank: Directions of the features that tell of the place, taken away for matching; 0: none.
        backward_share: Share of a cluster's positions whose best match must be on the supports' objects.
        threshold: Of the map, in [0, 1), as far as the supports do not say otherwise.
        threshold_weight: How many supports `threshold` counts as, beside the one that suits K > 1 supports best.

    Raises:
        ValueError: A value is out of range, or the trunk has no such level.
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        num_shots: int = 1,
        levels: Sequence[int] | int | None = 3,
        num_clusters: int = 12,
        position_rank: int = 4,
        backward_share: float = 0.05,
        threshold: float = 0.6,
        threshold_weight: float = 3.0,
    ) -> None:
        super().__init__()
        check_integer("model.num_clusters", num_clusters, 2, 10_000)
        check_integer("model.position_rank", position_rank, 0, 10_000)
        check_share("model.backward_share", backward_share)
        check_share("model.threshold", threshold)
        check_weight("model.threshold_weight", threshold_weight)
        self.trunk = FrozenBackbone(encoder, levels=levels)
        self.widths = [info.channels for info in self.trunk.feature_info]
        self.num_clusters, self.position_rank, self.backward_share = num_clusters, position_rank, backward_share
        self.threshold, self.threshold_weight = threshold, threshold_weight
        self._directions: list[tuple[Any, list[Tensor]]] = []  # of the latest picture size; no part of the state dict

    def encode_query(self, images: Tensor) -> ClusteredPicture:
        """Encode query pictures (B, 3, H, W) float, normalised."""
        return self._encode(images, None)

    def encode_support(self, images: Tensor, masks: Tensor) -> ClusteredPicture:
        """Encode supports (S, 3, H, W) with masks (S, H, W), 0/1/255; the pictures themselves are not masked."""
        return self._encode(images, masks)

    @torch.no_grad()
    def _encode(self, images: Tensor, masks: Tensor | None) -> ClusteredPicture:
        size = (images.shape[2], images.shape[3])
        levels = self.trunk(images)
        units = unit_levels(take_away(levels, self._position(size, levels[0])))
        small = (units.shape[2], units.shape[3])
        return ClusteredPicture(
            units=units,
            labels=self._cluster(levels),
            foreground=None if masks is None else foreground_share(masks, small),
            size=size,
        )

    def _position(self, size: tuple[int, int], like: Tensor) -> list[Tensor]:
        """The directions that tell of the place in pictures of a size, a level each; computed once for a size."""
        first = next(iter(self.trunk.backbone.parameters()), like)
        key = (size, like.device, like.dtype, first.data_ptr(), 0 if first.is_inference() else first._version)
        if not self._directions or self._directions[0][0] != key:
            found = position_directions(self.trunk, size, self.position_rank, like.device)
            self._directions[:] = [(key, found)]
        return self._directions[0][1]

    def _cluster(self, levels: Sequence[Tensor]) -> Tensor:
        """Clusters (B, h, w) of levels (B, C_l, h, w), each about the mean of its picture; of cells of large ones."""
        centred = [level.float() - level.float().mean((2, 3), keepdim=True) for level in levels]
        size = (levels[0].shape[2], levels[0].shape[3])
        side = cell_side(size)
        units = unit_levels([F.avg_pool2d(level, side, ceil_mode=True) if side > 1 else level for level in centred])
        rows = F.normalize(units.flatten(2).transpose(1, 2), dim=2)  # (B, cells, C)
        labels = torch.stack([cluster(one, self.num_clusters) for one in rows]).unflatten(1, units.shape[2:])
        return _enlarge(labels, side, size)

    @torch.no_grad()
    def match(self, query: ClusteredPicture, support: ClusteredPicture, *, shots: int) -> Segmentation:
        """Segment B encoded queries by B·K encoded supports, those of query 0 first.

        Returns:
            Scores, and the map that the threshold is of, as "prior".
        """
        assert support.foreground is not None
        units = support.units.unflatten(0, (-1, shots))  # (B, K, C, h, w)
        foreground = support.foreground.unflatten(0, (-1, shots))
        found = torch.stack([
            self._find(query.units[i], query.labels[i], units[i], foreground[i]) for i in range(len(units))
        ])  # (B, h, w)  # fmt: skip
        thresholds = self._thresholds(support, units, foreground)[:, None, None]
        return Segmentation(threshold_scores(found, thresholds), query.size, maps={"prior": [found]})

    def _thresholds(self, support: ClusteredPicture, units: Tensor, foreground: Tensor) -> Tensor:
        """The threshold (B,) of each episode; each of several supports (B, K, …) is segmented by the others."""
        episodes, shots = foreground.shape[:2]
        if shots == 1:  # by itself it would be found wherever it is
            return foreground.new_full((episodes,), self.threshold)
        labels = support.labels.unflatten(0, (-1, shots))
        others = [[k for k in range(shots) if k != left] for left in range(shots)]
        found = torch.stack([
            self._find(units[i, k], labels[i, k], units[i, others[k]], foreground[i, others[k]])
            for i in range(episodes)
            for k in range(shots)
        ])  # fmt: skip
        return choose_thresholds(
            found,
            foreground.flatten(0, 1),
            shots=shots,
            default=self.threshold,
            default_weight=self.threshold_weight,
        )

    def _find(self, query: Tensor, labels: Tensor, units: Tensor, foreground: Tensor) -> Tensor:
        """The map (h, w) in [0, 1] of one query.

        Args:
            query: (C, h, w) float, its units.
            labels: (h, w) int64, its clusters.
            units: (K, C, h, w) float, of the supports.
            foreground: (K, h, w) float.
        """
        # Forward: how much more like the object than like the rest of the supports is each position?
        means = (masked_means(units, share).mean(0, keepdim=True) for share in (foreground, 1 - foreground))
        near, other = (level_cosines(query[None], mean, self.widths)[0] for mean in means)  # (L, h, w)
        contrast = stretch_maps(near - other).mean(0)
        # Backward: does the support's position that it matches best lie on the object? Of large pictures by cells.
        side = cell_side((query.shape[1], query.shape[2]))
        ours, theirs = cells_of(query[None], self.widths, side)[0], cells_of(units, self.widths, side)
        best = (theirs.transpose(0, 1).flatten(1).T @ ours.flatten(1)).argmax(0)
        share = F.avg_pool2d(foreground[:, None], side, ceil_mode=True) if side > 1 else foreground
        back = _enlarge(share.flatten()[best].unflatten(0, ours.shape[1:])[None], side, contrast.shape).flatten()
        # By cluster; a cluster that is not matched back is none of the object's.
        flat = labels.flatten()
        by_cluster = cluster_means(torch.stack([contrast.flatten(), back], dim=1), flat)
        forward, backward = by_cluster.unbind(1)
        kept = backward >= backward.amax().clamp(max=self.backward_share)
        found = (contrast.flatten() + forward[flat]) / 2 * kept[flat]
        return found.view_as(contrast)


def _enlarge(cells: Tensor, side: int, size: Sequence[int]) -> Tensor:
    """Values of square cells (B, ⌈h/side⌉, ⌈w/side⌉) at their positions, (B, h, w)."""
    whole: Tensor = cells.repeat_interleave(side, 1).repeat_interleave(side, 2)
    return whole[:, : size[0], : size[1]]
