"""CyCTR whole (Zhang et al., NeurIPS 2021): prior, prototypes, the cycle-consistent transformer and a decoder.

Dimension letters: B episodes, K shots, S supports (B·K), H W input pixels, C width (256), C_4 channels of layer 4, h w
feature size, N = h·w.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hdmnet.models.attention import to_tokens
from hdmnet.models.batch import Batch
from hdmnet.models.checks import check_choice, check_integer, check_share
from hdmnet.models.cyctr.support import SupportTokens, at_features, find_object
from hdmnet.models.cyctr.transformer import CycleTransformer
from hdmnet.models.decoding import classifier, conv_relu, refinement
from hdmnet.models.frozen_backbone import FrozenBackbone
from hdmnet.models.masked_prior import pack_masked, prior_masks
from hdmnet.models.method import FewShotMethod, Segmentation, upsample
from hdmnet.models.mid_level import Reduction, masked_average
from hdmnet.models.packed import PackedRows

IGNORE = 255  # in masks: neither class; in paddings: not valid


@dataclass
class QueryFeatures(Batch):
    """B queries.

    Attributes:
        reduced: (B, C, h, w) float, mid-level features.
        layer4: (B, C_4, h, w) float.
        invalid: (B, h, w) bool, padding.
        size: (H, W) of the pictures.
    """

    reduced: Tensor
    layer4: Tensor
    invalid: Tensor
    size: tuple[int, int]


@dataclass
class SupportFeatures(Batch):
    """S supports.

    Attributes:
        merged: (S, N, C) float, mid-level features with their prototype.
        prototype: (S, C, 1, 1) float.
        layer4: S items (M, C_4), masked; see `pack_masked`.
        is_object: (S, N) bool.
        invalid: (S, N) bool, padding and ignored pixels.
        reduced: (S, C, h, w) float, mid-level features alone; only in training.
    """

    merged: Tensor
    prototype: Tensor
    layer4: PackedRows
    is_object: Tensor
    invalid: Tensor
    reduced: Tensor | None = None


@dataclass
class CyCTRSegmentation(Segmentation):
    """An answer, with what the loss needs beside it in training (else None).

    Attributes:
        score_supports: Makes logits (B·K, 2, h, w) of the supports out of the queries' masks (B, H, W), 0/1/255.
        support_masks: (B·K, H, W), 0/1/255.
    """

    score_supports: Callable[[Tensor], Tensor] | None = None
    support_masks: Tensor | None = None


class SupportHead(nn.Module):
    """Segments the supports by the query, in training only.

    Args:
        channels: C.
        dropout: Of the classifier.
    """

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.project = nn.Sequential(*conv_relu(channels, channels))
        self.merge = Reduction(2 * channels, channels)
        self.refine = refinement(channels)
        self.classify = classifier(channels, dropout)

    def forward(self, decoded: Tensor, query: Tensor, supports: Tensor, query_mask: Tensor) -> Tensor:
        """Features of queries, decoded and mid-level (B, C, h, w), and of supports (B·K, C, h, w) → (B·K, 2, h, w)."""
        mask = (query_mask == 1).to(query.dtype)[:, None]
        prototype = masked_average(self.project(decoded) + query, upsample(mask, (query.shape[2], query.shape[3])))
        prototype = prototype.repeat_interleave(len(supports) // len(query), dim=0)
        x = self.merge.convolve(supports, prototype).relu_()
        x = x + self.refine(x)
        scores: Tensor = self.classify(x)
        return scores


class CyCTR(FewShotMethod):
    """Few-shot segmenter; the same weights serve any number of supports.

    Args:
        encoder: A backbone of three levels, or a base learner that has trained one; frozen here.
        num_shots: K of the training episodes, of which nothing here depends.
        channels: C.
        num_layers: Of the transformer.
        num_heads: Of its attentions.
        num_points: Of its self-attention, a head.
        num_taken: Support positions that are attended to, a shot: of the object, and of the rest.
        flags: Of support positions that were drawn: "release", as its code has them, or "own", as the paper's text.
        dropout: Of the transformer, and of the classifiers' channels.
        mid_dropout: Of the reduced mid-level features, whole channels.

    Raises:
        ValueError: A switch has an unknown value, or the backbone has no three levels.
    """

    takes_padding = True

    def __init__(
        self,
        *,
        encoder: nn.Module,
        num_shots: int = 1,
        channels: int = 256,
        num_layers: int = 2,
        num_heads: int = 8,
        num_points: int = 9,
        num_taken: int = 300,
        flags: str = "release",
        dropout: float = 0.1,
        mid_dropout: float = 0.5,
    ) -> None:
        super().__init__()
        for name, number in (("num_layers", num_layers), ("num_points", num_points), ("num_taken", num_taken)):
            check_integer(f"model.{name}", number, 1, 10_000)
        check_choice("model.flags", flags, ("release", "own"))
        check_share("model.dropout", dropout)
        check_share("model.mid_dropout", mid_dropout)
        if channels % (4 * num_heads):
            raise ValueError(f"model.channels={channels}: expected a multiple of 4 · model.num_heads={4 * num_heads}")
        self.trunk = FrozenBackbone(encoder, levels=3)
        if len(self.trunk.feature_info) != 3:
            raise ValueError(f"CyCTR: the backbone has {len(self.trunk.feature_info)} levels; expected three")
        mid = sum(level.channels for level in self.trunk.feature_info[:2])
        self.reduce_query = Reduction(mid, channels, mid_dropout)
        self.reduce_support = Reduction(mid, channels, mid_dropout)
        self.merge_query = Reduction(2 * channels + 1, channels)
        self.merge_support = Reduction(2 * channels, channels)
        self.transformer = CycleTransformer(
            channels,
            num_layers=num_layers,
            num_heads=num_heads,
            num_points=num_points,
            num_taken=num_taken,
            own_flags=flags == "own",
            dropout=dropout,
        )
        self.project = nn.Sequential(*conv_relu(channels, channels))
        self.refine = refinement(channels)
        self.classify = classifier(channels, dropout)
        self.support_head = SupportHead(channels, dropout)

    def forward(
        self,
        query_image: Tensor,
        support_images: Tensor,
        support_masks: Tensor,
        class_index: Tensor | None = None,
        *,
        query_padding: Tensor | None = None,
        support_padding: Tensor | None = None,
    ) -> CyCTRSegmentation:
        """Segment query pictures (B, 3, H, W), as `FewShotMethod.forward` says; `class_index` is not used.

        Args:
            query_image: See there, as for the next three.
            support_images: (B, K, 3, H, W) float.
            support_masks: (B, K, H, W), 0/1/255.
            class_index: (B,) int64.
            query_padding: (B, H, W), 255 where a pixel is not valid; None: all are.
            support_padding: (B, K, H, W) likewise; None: pixels of 255 in the masks are not.
        """
        shots, masks = support_images.shape[1], support_masks.flatten(0, 1)
        padding = None if support_padding is None else support_padding.flatten(0, 1)
        query = self.encode_query(query_image, query_padding)
        output = self.match(query, self.encode_support(support_images.flatten(0, 1), masks, padding), shots=shots)
        output.support_masks = masks if self.training else None
        return output

    def encode_query(self, images: Tensor, padding: Tensor | None = None) -> QueryFeatures:
        """Encode query pictures (B, 3, H, W) float, normalised, with their padding (B, H, W) as of `forward`."""
        *mid, layer4 = self.trunk(images)
        reduced = self.reduce_query.dropout(self.reduce_query.convolve(*mid).relu_())
        size = (layer4.shape[2], layer4.shape[3])
        if padding is None:
            invalid = torch.zeros(len(images), *size, dtype=torch.bool, device=images.device)
        else:
            invalid = at_features(padding == IGNORE, size)
        return QueryFeatures(reduced, layer4, invalid, (images.shape[2], images.shape[3]))

    def encode_support(self, images: Tensor, masks: Tensor, padding: Tensor | None = None) -> SupportFeatures:
        """Encode supports (S, 3, H, W) with masks (S, H, W), 0/1/255, and padding; the pictures are not masked."""
        *mid, layer4 = self.trunk(images)
        reduced = self.reduce_support.dropout(self.reduce_support.convolve(*mid).relu_())
        size = (layer4.shape[2], layer4.shape[3])
        mask = upsample((masks == 1).to(layer4.dtype)[:, None], size)  # soft
        prototype = masked_average(reduced, mask)
        merged = self.merge_support.convolve(reduced, prototype).relu_()
        return SupportFeatures(
            to_tokens(merged),
            prototype,
            pack_masked(layer4 * mask, mask, whole=self.training and not layer4.is_cpu),
            find_object(masks, size).flatten(1),
            at_features((masks if padding is None else padding) == IGNORE, size).flatten(1),
            reduced if self.training else None,
        )

    def match(self, query: QueryFeatures, support: SupportFeatures, *, shots: int) -> CyCTRSegmentation:
        """Segment B encoded queries by B·K encoded supports, those of query 0 first; the map is the prior mask."""
        prior = prior_masks(query.layer4, support.layer4, shots=shots).mean(1, keepdim=True)  # (B, 1, h, w)
        prior = prior.to(query.reduced.dtype)
        prototype = support.prototype.unflatten(0, (-1, shots)).mean(1)  # (B, C, 1, 1)
        merged = self.merge_query.convolve(query.reduced, prototype, prior).relu_()
        by_episode = (support.merged, support.is_object, support.invalid)
        tokens = SupportTokens(*(one.unflatten(0, (-1, shots)).flatten(1, 2) for one in by_episode))
        decoded = self.project(self.transformer(merged, query.invalid, tokens, shots=shots))
        decoded = decoded + self.refine(decoded)
        output = CyCTRSegmentation(self.classify(decoded), query.size, maps={"prior": [prior[:, 0]]})
        if support.reduced is not None:
            output.score_supports = partial(self.support_head, decoded, query.reduced, support.reduced)
        return output

    def parameter_groups(
        self, lr: float, *, lr_factor: float = 1.0, transformer_lr: float | None = None
    ) -> list[dict[str, Any]]:
        """Optimiser groups: "head" at `lr_factor` times `lr` (the release: 15), the transformer at a rate of its own.

        The group "transformer_bias" has no weight decay.
        """
        transformer = list(self.transformer.named_parameters())
        inside = {parameter for _, parameter in transformer}
        rate = lr if transformer_lr is None else transformer_lr
        head = [p for p in self.parameters() if p.requires_grad and p not in inside]
        weights, biases = ([p for name, p in transformer if name.endswith("bias") is end] for end in (False, True))
        return [
            {"params": head, "lr": lr * lr_factor, "name": "head"},
            {"params": weights, "lr": rate, "name": "transformer"},
            {"params": biases, "lr": rate, "weight_decay": 0.0, "name": "transformer_bias"},
        ]
