"""PFENet whole (Tian et al., TPAMI 2020): prior mask, prototype, feature enrichment.

Dimension letters: B episodes, K shots, S supports (B·K), H W input pixels, C width (256), C_4 channels of layer 4, h w
feature size, M positions of a support.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from hdmnet.models.batch import Batch
from hdmnet.models.decoding import classifier, conv_relu
from hdmnet.models.masked_prior import pack_masked, prior_masks
from hdmnet.models.masked_trunk import MaskedTrunk
from hdmnet.models.method import FewShotMethod, Segmentation, upsample
from hdmnet.models.mid_level import masked_average
from hdmnet.models.packed import PackedRows
from hdmnet.models.pfenet.enrichment import FeatureEnrichment, Scale


@dataclass
class QueryFeatures(Batch):
    """B queries.

    Attributes:
        reduced: (B, C, h, w) float, mid-level features.
        layer4: (B, C_4, h_4, w_4) float.
        size: (H, W) of the pictures.
    """

    reduced: Tensor
    layer4: Tensor
    size: tuple[int, int]


@dataclass
class SupportFeatures(Batch):
    """S supports.

    Attributes:
        prototype: (S, C) float, masked mean of the mid-level features.
        layer4: S items (M, C_4), masked; see `pack_masked`.
    """

    prototype: Tensor
    layer4: PackedRows


class PFENet(FewShotMethod):
    """Few-shot segmenter; the same weights serve any number of supports.

    Args:
        encoder: A backbone that can be cut before its last layer, or a base learner that has trained one; frozen here.
        num_shots: K of the training episodes, of which nothing here depends.
        ppm_scales: Sides in feature cells or fractions of the feature's size, finest first.
        channels: C.
        trunk_bn: The trunk's batch normalisation in training: "batch" or "frozen", see `MaskedTrunk`.
        mid_dropout: Of the reduced mid-level features, whole channels.
        dropout: Of the classifiers, whole channels.

    Raises:
        ValueError: A switch has an unknown value, or the backbone cannot be cut.
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        num_shots: int = 1,
        ppm_scales: Sequence[float] = (1.0, 0.5, 0.25, 0.125),
        channels: int = 256,
        trunk_bn: str = "batch",
        mid_dropout: float = 0.5,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.trunk = MaskedTrunk(encoder, norm=trunk_bn)
        mid = self.trunk.mid_channels
        self.down_query = nn.Sequential(*conv_relu(mid, channels), nn.Dropout2d(mid_dropout))
        self.down_support = nn.Sequential(*conv_relu(mid, channels), nn.Dropout2d(mid_dropout))
        self.enrichment = FeatureEnrichment(scales=ppm_scales, channels=channels, dropout=dropout)
        self.classify = classifier(channels, dropout)

    def forward(
        self, query_image: Tensor, support_images: Tensor, support_masks: Tensor, class_index: Tensor | None = None
    ) -> Segmentation:
        """Segment query pictures (B, 3, H, W), as `FewShotMethod.forward` says; `class_index` is not used."""
        shots = support_images.shape[1]
        # The query first, then one pass a shot: batch normalisation that learns its statistics sees the same batches in
        # the same order as in the release.
        query = self.encode_query(query_image)
        passes = [
            self.encode_support(images, masks).unbind()
            for images, masks in zip(support_images.unbind(1), support_masks.unbind(1), strict=True)
        ]
        supports = [item for episode in zip(*passes, strict=True) for item in episode]  # those of query 0 first
        return self.match(query, SupportFeatures.stack(supports), shots=shots)

    def encode_query(self, images: Tensor) -> QueryFeatures:
        """Encode query pictures (B, 3, H, W) float, normalised."""
        mid, layer4, _ = self.trunk(images)
        return QueryFeatures(self.down_query(mid), layer4, (images.shape[2], images.shape[3]))

    def encode_support(self, images: Tensor, masks: Tensor) -> SupportFeatures:
        """Encode supports (S, 3, H, W) with masks (S, H, W), 0/1/255; the pictures themselves are not masked."""
        mask = (masks == 1).to(images.dtype)[:, None]
        mid, layer4, mask4 = self.trunk(images, mask)
        reduced = self.down_support(mid)
        mask = upsample(mask, (reduced.shape[2], reduced.shape[3]))  # soft
        prototype = masked_average(reduced, mask).flatten(1)
        return SupportFeatures(prototype, pack_masked(layer4, mask4, whole=self.training and not layer4.is_cpu))

    def match(self, query: QueryFeatures, support: SupportFeatures, *, shots: int) -> Segmentation:
        """Segment B encoded queries by B·K encoded supports, those of query 0 first.

        Returns:
            Scores, one auxiliary prediction a scale ("scale1" is the finest), and the prior mask.
        """
        # Each shot's map is stretched to [0, 1] first: their mean need not reach 0 and 1.
        prior = prior_masks(query.layer4, support.layer4, shots=shots).mean(1, keepdim=True)
        prior = upsample(prior, (query.reduced.shape[2], query.reduced.shape[3]))  # (B, 1, h, w)
        prototype = support.prototype.unflatten(0, (-1, shots)).mean(1)  # (B, C)
        enriched, sides = self.enrichment(query.reduced, prototype, prior)
        return Segmentation(
            self.classify(enriched),
            query.size,
            auxiliary={f"scale{k}": side for k, side in enumerate(sides, start=1)},
            maps={"prior": [prior[:, 0]]},
        )

    def parameter_groups(self, lr: float, *, lr_factor: float = 1.0) -> list[dict[str, Any]]:
        """Optimiser groups of the release, under its names; all learn at `lr_factor` times `lr` (the release: 10)."""
        enrichment = self.enrichment
        scales = [cast("Scale", scale) for scale in enrichment.scales]
        parts: dict[str, list[Any]] = {
            "down_query": [self.down_query],
            "down_supp": [self.down_support],
            "init_merge": [scale.merge for scale in scales],
            "alpha_conv": [scale.inter for scale in scales if scale.inter is not None],
            "beta_conv": [scale.refine for scale in scales],
            "inner_cls": [scale.classify for scale in scales],
            "res1": [enrichment.reduce],
            "res2": [enrichment.refine],
            "cls": [self.classify],
        }
        return [
            {"params": [p for module in modules for p in module.parameters()], "lr": lr * lr_factor, "name": name}
            for name, modules in parts.items()
            if modules
        ]
