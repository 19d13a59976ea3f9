"""HDMNet whole: frozen trunk, prior masks, pyramid, matching, decoder, ensemble (paper Fig. 3).

Dimension letters: B batch, K shots, H W input pixels, C channels, h_1 w_1 feature size, h_l w_l size of stage l, N base
classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdmnet.models.base_learner import BaseLearner, FrozenTrunk, TrunkFeatures
from hdmnet.models.decoder import Decoder
from hdmnet.models.ensemble import Ensemble, gram_distance
from hdmnet.models.matching import CorrelationMatching
from hdmnet.models.prior import prior_mask
from hdmnet.models.pyramid import Pyramid

PRIOR_WEIGHT = 10.0  # of the prior masks where they join the query's features; the release uses it only there
PROTOTYPE_EPS = 5e-4
NORMS = ("fixed", "bn", "syncbn")


@dataclass
class SegmentationOutput:
    """What a few-shot segmenter answers to a batch of episodes.

    Attributes:
        final_scores: (B, 2, h, w) float, the fused prediction at feature resolution (probabilities, used as logits).
        meta_scores: (B, 2, h, w) float, logits of the meta learner alone.
        base_scores: (B, 1 + N, h, w) float, logits of the base learner; None for methods without one.
        size: (H, W) in input pixels, of the full-resolution logits.
        correlation_maps: One (B, h_l, w_l) float a stage, finest first, before the distillation's softmax.
        prior_masks: (B, 2, h_1, w_1) float: from the base learner's feature, then from backbone layer 4.
        final_is_probability: Whether `final_scores` are probabilities (fused) or logits.
    """

    final_scores: Tensor
    meta_scores: Tensor
    base_scores: Tensor | None
    size: tuple[int, int]
    correlation_maps: list[Tensor] = field(default_factory=list)
    prior_masks: Tensor | None = None
    final_is_probability: bool = False

    # Full resolution is made only when asked for: 61 base classes at 633² are 98 MB a picture.
    @property
    def final_logits(self) -> Tensor:
        """(B, 2, H, W) float, the fused prediction."""
        return _upsample(self.final_scores, self.size)

    @property
    def meta_logits(self) -> Tensor:
        """(B, 2, H, W) float, the meta learner's own prediction."""
        return _upsample(self.meta_scores, self.size)

    @property
    def base_logits(self) -> Tensor | None:
        """(B, 1 + N, H, W) float, the base learner's prediction."""
        return None if self.base_scores is None else _upsample(self.base_scores, self.size)


def _upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


def masked_average(features: Tensor, mask: Tensor) -> Tensor:
    """Prototype: mean of the features (B, C, h, w) under a soft mask (B, 1, h, w) → (B, C, 1, 1)."""
    return (features * mask).sum((2, 3), keepdim=True) / (mask.sum((2, 3), keepdim=True) + PROTOTYPE_EPS)


def _reduce(in_channels: int, out_channels: int, dropout: float = 0.0) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Dropout2d(dropout)) if dropout else nn.Sequential(*layers)


class MetaLearner(nn.Module):
    """HDMNet proper: from mid-level features and prior masks to foreground logits and correlation maps.

    Args:
        mid_channels: Channels of layer 2 and layer 3 together.
        num_stages: L, matching stages (1 to 4).
        channels: Width of pyramid, matching and decoder.
        reduced_channels: Width of the reduced mid-level features.
        dropout: In pyramid and matching.
        mid_dropout: Of whole channels of the reduced mid-level features.
        matching: Keyword arguments of `CorrelationMatching` (heads, t of Eq. 4, kernel of the merge).
    """

    def __init__(
        self,
        *,
        mid_channels: int,
        num_stages: int = 3,
        channels: int = 64,
        reduced_channels: int = 256,
        dropout: float = 0.1,
        mid_dropout: float = 0.5,
        matching: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        num_priors = 2
        self.down_query = _reduce(mid_channels, reduced_channels, mid_dropout)
        self.down_support = _reduce(mid_channels, reduced_channels, mid_dropout)
        self.query_merge = _reduce(2 * reduced_channels + num_priors, channels)
        self.support_merge = _reduce(2 * reduced_channels, channels)
        self.pyramid = Pyramid(channels, num_stages=num_stages, dropout=dropout)
        self.matching = nn.ModuleList(
            CorrelationMatching(channels, num_priors=num_priors, dropout=dropout, **(matching or {}))
            for _ in range(num_stages)
        )
        self.decoder = Decoder(channels, num_stages=num_stages)

    def forward(
        self, query: Tensor, support: Tensor, support_mask: Tensor, prior: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Segment the query.

        Args:
            query: (B, C_mid, h_1, w_1) float, layer 3 and layer 2 concatenated.
            support: (B, K, C_mid, h_1, w_1) float, of the masked support pictures.
            support_mask: (B, K, H, W) float, 1 on foreground, 0 elsewhere.
            prior: (B, 2, h, w) float.

        Returns:
            Logits (B, 2, h_1, w_1) and correlation maps, finest first, each (B, h_l, w_l).
        """
        merged_query, merged_support = self.embed(query, support, support_mask, prior)
        return self.match(merged_query, merged_support, support_mask, prior)

    def embed(self, query: Tensor, support: Tensor, support_mask: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """Reduce the features and merge prototype and prior in: (B, 64, h_1, w_1) and (B, K, 64, h_1, w_1)."""
        batch, shots = support.shape[:2]
        size = query.shape[-2:]
        query = self.down_query(query)
        support = self.down_support(support.flatten(0, 1))  # (B·K, 256, h, w)
        soft_mask = F.interpolate(support_mask.flatten(0, 1)[:, None], size, mode="bilinear", align_corners=True)
        prototypes = masked_average(support, soft_mask)  # (B·K, 256, 1, 1)
        mean_prototype = prototypes.unflatten(0, (batch, shots)).mean(1)
        prior = F.interpolate(prior, size, mode="bilinear", align_corners=True)
        merged_query = self.query_merge(
            torch.cat([query, mean_prototype.expand_as(query), PRIOR_WEIGHT * prior], dim=1)
        )
        merged_support = self.support_merge(torch.cat([support, prototypes.expand_as(support)], dim=1))
        return merged_query, merged_support.unflatten(0, (batch, shots))

    def match(self, query: Tensor, support: Tensor, support_mask: Tensor, prior: Tensor) -> tuple[Tensor, list[Tensor]]:
        """As `forward`, from merged features: query (B, 64, h_1, w_1), support (B, K, 64, h_1, w_1)."""
        query_stages = self.pyramid(query)
        support_stages = [s.unflatten(0, support.shape[:2]) for s in self.pyramid(support.flatten(0, 1))]
        matched, maps = [], []
        for match, q, s in zip(self.matching, query_stages, support_stages, strict=True):
            enriched, correlation = match(q, s, support_mask, prior)
            matched.append(enriched)
            maps.append(correlation)
        return self.decoder(matched), maps


class HDMNet(nn.Module):
    """Few-shot segmenter: trunk, meta learner, ensemble.

    Args:
        base_learner: The trained base learner; it is frozen here.
        meta_learner: HDMNet proper.
        ensemble: Fusion with the base learner; None = the meta learner's prediction is final.
        norm: "fixed": batch normalisation of the new modules stays in evaluation mode, as in the release (`fix_bn`);
            "bn" or "syncbn": it learns its statistics (the paper's text), on each GPU apart or over all.
        prior_norm: Stretch the priors to [0, 1] (PFENet; the release does not).

    Raises:
        ValueError: Unknown `norm`.
    """

    def __init__(
        self,
        *,
        base_learner: BaseLearner,
        meta_learner: MetaLearner,
        ensemble: Ensemble | None,
        norm: str = "fixed",
        prior_norm: bool = False,
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"model.norm={norm!r}: expected one of {', '.join(NORMS)}")
        self.norm = norm
        self.prior_norm = prior_norm
        self.trunk = FrozenTrunk(base_learner)
        self.meta_learner = meta_learner
        self.ensemble = ensemble
        if norm == "syncbn":
            nn.SyncBatchNorm.convert_sync_batchnorm(self.meta_learner)
        self.train(self.training)

    def train(self, mode: bool = True) -> HDMNet:
        """Switch the mode; the trunk, and with ``norm="fixed"`` every batch normalisation, stays in evaluation mode."""
        super().train(mode)
        if self.norm == "fixed":
            for module in self.meta_learner.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.train(False)
        return self

    def forward(
        self, query_image: Tensor, support_images: Tensor, support_masks: Tensor, class_index: Tensor | None = None
    ) -> SegmentationOutput:
        """Segment the query pictures.

        Args:
            query_image: (B, 3, H, W) float, normalised.
            support_images: (B, K, 3, H, W) float, normalised.
            support_masks: (B, K, H, W) any dtype: 1 foreground, 0 background, 255 ignore (counts as background).
            class_index: (B,) int64 in [0, N), only in training on base classes: the class the base learner must not
                suppress.

        Returns:
            Scores, correlation maps and prior masks.
        """
        mask = (support_masks == 1).to(query_image.dtype)
        query = self.trunk(query_image)
        # The supports are masked pictures: what is not foreground is the mean colour (0 after normalisation).
        supports = self.trunk((support_images * mask[:, :, None]).flatten(0, 1))
        return self.segment(query, supports, mask, class_index, size=(query_image.shape[2], query_image.shape[3]))

    def segment(
        self,
        query: TrunkFeatures,
        supports: TrunkFeatures,
        support_mask: Tensor,
        class_index: Tensor | None,
        *,
        size: tuple[int, int],
    ) -> SegmentationOutput:
        """As `forward`, from trunk features of B queries and B·K masked supports, with masks (B, K, H, W) of 0/1."""
        shots = support_mask.shape[:2]
        with torch.no_grad():
            layer2 = supports.layer2.unflatten(0, shots)
            pairs = ((query.base_feature, supports.base_feature), (query.layer4, supports.layer4))
            priors = [prior_mask(q, s.unflatten(0, shots), support_mask, normalise=self.prior_norm) for q, s in pairs]
            prior = torch.cat(priors, dim=1)  # (B, 2, h, w)
            base_scores = self.trunk.classify(query.base_feature)
        query_mid = torch.cat([query.layer3, query.layer2], dim=1)
        support_mid = torch.cat([supports.layer3, supports.layer2], dim=1).unflatten(0, shots)
        meta_scores, maps = self.meta_learner(query_mid, support_mid, support_mask, prior)
        final_scores = meta_scores
        if self.ensemble is not None:
            with torch.no_grad():
                distances = gram_distance(query.layer2, layer2)
            final_scores = self.ensemble(meta_scores, base_scores, distances, class_index)
        fused = self.ensemble is not None
        return SegmentationOutput(final_scores, meta_scores, base_scores, size, maps, prior, fused)

    def parameter_groups(self, *, lr: float, head_lr_factor: float = 10.0) -> list[dict[str, object]]:
        """Optimiser groups of the release: the transformer at `lr`, reductions, merges and ensemble at ten times it.

        Args:
            lr: Base learning rate.
            head_lr_factor: Factor of the second group.

        Returns:
            One group for the transformer, then one a head module, as dicts with ``params``, ``lr`` and ``name``.
        """
        meta = self.meta_learner
        transformer = [*meta.pyramid.parameters(), *meta.matching.parameters(), *meta.decoder.parameters()]
        heads: dict[str, nn.Module] = {
            "down_support": meta.down_support,
            "down_query": meta.down_query,
            "support_merge": meta.support_merge,
            "query_merge": meta.query_merge,
        }
        if self.ensemble is not None:
            heads |= {"gram_merge": self.ensemble.gram_merge, "base_merge": self.ensemble.base_merge}
            # The release leaves its shot weights out of the optimiser, at their random start.
            if self.ensemble.num_shots > 1 and self.ensemble.shot_weighting == "intended":
                heads["shot_weights"] = self.ensemble.shot_weights
        groups: list[dict[str, object]] = [{"params": transformer, "lr": lr, "name": "transformer"}]
        groups += [{"params": list(m.parameters()), "lr": lr * head_lr_factor, "name": n} for n, m in heads.items()]
        return groups


def build_hdmnet(
    base_learner: BaseLearner,
    *,
    num_shots: int = 1,
    num_stages: int = 3,
    ensemble: bool = True,
    norm: str = "fixed",
    prior_norm: bool = False,
    shot_weighting: str = "intended",
    dropout: float = 0.1,
    mid_dropout: float = 0.5,
    matching: Mapping[str, Any] | None = None,
) -> HDMNet:
    """Put an HDMNet together on a base learner (the `model=hdmnet` config).

    Args:
        base_learner: Trained on the fold's base classes.
        num_shots: K of the training episodes.
        num_stages: L, matching stages (1 to 4).
        ensemble: Fuse with the base learner.
        norm: See `HDMNet`.
        prior_norm: See `HDMNet`.
        shot_weighting: See `Ensemble`.
        dropout: In pyramid and matching.
        mid_dropout: Of the reduced mid-level features.
        matching: See `CorrelationMatching`.

    Returns:
        The network.

    Raises:
        ValueError: A switch has an unknown value.
    """
    levels = base_learner.backbone.levels
    meta_learner = MetaLearner(
        mid_channels=levels[0].channels + levels[1].channels,
        num_stages=num_stages,
        dropout=dropout,
        mid_dropout=mid_dropout,
        matching={"num_shots": num_shots, **(matching or {})},
    )
    return HDMNet(
        base_learner=base_learner,
        meta_learner=meta_learner,
        ensemble=Ensemble(num_shots=num_shots, shot_weighting=shot_weighting) if ensemble else None,
        norm=norm,
        prior_norm=prior_norm,
    )
