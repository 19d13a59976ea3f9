"""BAM whole (Lang et al., CVPR 2022): a meta learner beside a base learner, which says where no novel object is.

Dimension letters: B episodes, K shots, S supports (B·K), H W input pixels, C width (256), C_2 C_4 channels of layers 2
and 4, h w feature size, M positions of a support, N base classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hdmnet.models.bam.aspp import ASPP
from hdmnet.models.base_learner import BaseLearner
from hdmnet.models.batch import Batch
from hdmnet.models.checks import check_share
from hdmnet.models.decoding import classifier, refinement
from hdmnet.models.ensemble import Ensemble, gram_distance, gram_matrix
from hdmnet.models.masked_prior import pack_masked, prior_masks
from hdmnet.models.masked_trunk import check_cut
from hdmnet.models.method import FINAL, FewShotMethod, Segmentation, upsample
from hdmnet.models.mid_level import Reduction, masked_average
from hdmnet.models.packed import PackedRows
from hdmnet.models.trunk import FrozenTrunk, MaskedFeatures, TrunkFeatures


@dataclass
class QueryFeatures(Batch):
    """B queries.

    Attributes:
        reduced: (B, C, h, w) float, mid-level features.
        layer4: (B, C_4, h, w) float.
        gram: (B, C_2, C_2) float, Gram matrix of layer 2.
        base_scores: (B, 1 + N, h, w) float, logits of the base learner.
        size: (H, W) of the pictures.
    """

    reduced: Tensor
    layer4: Tensor
    gram: Tensor
    base_scores: Tensor
    size: tuple[int, int]


@dataclass
class SupportFeatures(Batch):
    """S supports.

    Attributes:
        prototype: (S, C) float, masked mean of the mid-level features.
        layer4: S items (M, C_4), masked; see `pack_masked`.
        gram: (S, C_2, C_2) float, Gram matrix of layer 2, of the whole picture.
    """

    prototype: Tensor
    layer4: PackedRows
    gram: Tensor


class BAM(FewShotMethod):
    """Few-shot segmenter: frozen trunk and base learner, meta learner (Sec. 4.2), ensemble (Sec. 4.3).

    Args:
        encoder: The trained base learner, frozen here; its backbone can be cut before its last layer.
        num_shots: K of the training episodes: the weights of the shots are made for it. With another number at run time
            all shots count alike.
        channels: C.
        mid_dropout: Of the reduced mid-level features, whole channels.
        dropout: Of the classifier, whole channels.

    Raises:
        ValueError: The encoder is no base learner, its backbone cannot be cut, or a switch is out of range.
    """

    reported = (FINAL, "meta")
    segments_base = True

    def __init__(
        self,
        *,
        encoder: nn.Module,
        num_shots: int = 1,
        channels: int = 256,
        mid_dropout: float = 0.5,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not isinstance(encoder, BaseLearner):
            raise ValueError(f"model.encoder={type(encoder).__name__}: expected base_learner")
        check_share("model.mid_dropout", mid_dropout)
        check_share("model.dropout", dropout)
        mid_channels = check_cut(encoder.backbone)
        self.trunk = FrozenTrunk(encoder)
        self.down_query = Reduction(mid_channels, channels, mid_dropout)
        self.down_support = Reduction(mid_channels, channels, mid_dropout)
        self.merge = Reduction(2 * channels + 1, channels)
        self.aspp = ASPP(channels)
        self.reduce = Reduction(5 * channels, channels)
        self.refine = refinement(channels)
        self.classify = classifier(channels, dropout)
        self.ensemble = Ensemble(num_shots=num_shots)
        self.to(memory_format=torch.channels_last)  # as the trunk's features are: nothing is rearranged on the way
        self.train(self.training)

    def train(self, mode: bool = True) -> BAM:
        """Switch the mode; of the frozen parts the base learner's dropout follows, as in the release."""
        super().train(mode)
        self.trunk.base_learner.classifier.train(mode)
        return self

    def forward(
        self, query_image: Tensor, support_images: Tensor, support_masks: Tensor, class_index: Tensor | None = None
    ) -> Segmentation:
        """Segment query pictures (B, 3, H, W), as `FewShotMethod.forward` says.

        The class that `class_index` names must not be suppressed by the base learner.
        """
        query = self.encode_query(query_image)
        supports = self.encode_support(support_images.flatten(0, 1), support_masks.flatten(0, 1))
        return self.match(query, supports, shots=support_images.shape[1], class_index=class_index)

    def encode_query(self, images: Tensor) -> QueryFeatures:
        """Encode query pictures (B, 3, H, W) float, normalised."""
        size = (images.shape[2], images.shape[3])
        return QueryFeatures.stack([self._describe_query(features, size) for features in self.trunk.encode(images)])

    def _describe_query(self, features: TrunkFeatures, size: tuple[int, int]) -> QueryFeatures:
        """From what the trunk says of pictures of a size (H, W)."""
        return QueryFeatures(
            reduced=self.down_query(features.layer3, features.layer2),
            layer4=features.layer4,
            gram=gram_matrix(features.layer2),
            base_scores=self.trunk.classify(features.base_feature),
            size=size,
        )

    def encode_support(self, images: Tensor, masks: Tensor) -> SupportFeatures:
        """Encode supports (S, 3, H, W) with masks (S, H, W), 0/1/255; the pictures themselves are not masked."""
        mask = (masks == 1).to(images.dtype)[:, None]
        return SupportFeatures.stack(list(map(self._describe_support, self.trunk.encode_masked(images, mask))))

    def _describe_support(self, features: MaskedFeatures) -> SupportFeatures:
        """From what the trunk says of supports."""
        reduced = self.down_support(features.layer3, features.layer2)
        # Soft masks, at the sizes of the features.
        mask, mask4 = (upsample(features.mask, (f.shape[2], f.shape[3])) for f in (reduced, features.layer4))
        return SupportFeatures(
            prototype=masked_average(reduced, mask).flatten(1),
            layer4=pack_masked(features.layer4, mask4, whole=self.training and not mask.is_cpu),
            gram=gram_matrix(features.layer2),
        )

    def match(
        self, query: QueryFeatures, support: SupportFeatures, *, shots: int, class_index: Tensor | None = None
    ) -> Segmentation:
        """Segment B encoded queries by B·K encoded supports, those of query 0 first; `class_index` as in `forward`.

        Returns:
            Fused scores; the predictions "meta" and "base"; the prior mask.
        """
        # Weigh the shots by how alike they are to the query.
        distances = gram_distance(query.gram, support.gram.unflatten(0, (-1, shots)))  # (B, K)
        weights = self.ensemble.weigh_shots(distances)
        priors = prior_masks(query.layer4, support.layer4, shots=shots)  # (B, K, h, w)
        prior = (weights[:, :, None, None] * priors).sum(1, keepdim=True)
        prior = upsample(prior, (query.reduced.shape[2], query.reduced.shape[3]))
        prototype = (weights[:, :, None] * support.prototype.unflatten(0, (-1, shots))).sum(1)  # (B, C)
        # Meta learner: merge prototype and prior into the query, look around, classify.
        x = self.merge(query.reduced, prototype[:, :, None, None], prior)
        x = self.reduce(*self.aspp(x))
        scores = self.classify(x + self.refine(x))
        return Segmentation(
            self.ensemble(scores, query.base_scores, distances, class_index),
            query.size,
            auxiliary={"meta": scores, "base": query.base_scores},
            maps={"prior": [prior[:, 0]]},
            is_probability=True,
        )

    def parameter_groups(self, lr: float, *, lr_factor: float = 1.0) -> list[dict[str, Any]]:
        """Optimiser groups of the release, under its names; all learn at `lr_factor` times `lr` (the release: 10)."""
        parts: dict[str, nn.Module] = {
            "down_query": self.down_query,
            "down_supp": self.down_support,
            "init_merge": self.merge,
            "ASPP_meta": self.aspp,
            "res1_meta": self.reduce,
            "res2_meta": self.refine,
            "cls_meta": self.classify,
            "gram_merge": self.ensemble.gram_merge,
            "cls_merge": self.ensemble.base_merge,
        }
        if self.ensemble.num_shots > 1:
            parts["kshot_rw"] = self.ensemble.shot_weights
        return [{"params": list(m.parameters()), "lr": lr * lr_factor, "name": name} for name, m in parts.items()]
