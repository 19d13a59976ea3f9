"""What a few-shot method answers to a batch of episodes.

Dimension letters: B batch, H W input pixels, h w feature size, N base classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch.nn.functional as F
from torch import Tensor


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
    @cached_property
    def final_logits(self) -> Tensor:
        """(B, 2, H, W) float, the fused prediction."""
        return _upsample(self.final_scores, self.size)

    @cached_property
    def meta_logits(self) -> Tensor:
        """(B, 2, H, W) float, the meta learner's own prediction; `final_logits` itself where nothing is fused."""
        alone = self.meta_scores is self.final_scores
        return self.final_logits if alone else _upsample(self.meta_scores, self.size)

    @property
    def base_logits(self) -> Tensor | None:
        """(B, 1 + N, H, W) float, the base learner's prediction."""
        return None if self.base_scores is None else _upsample(self.base_scores, self.size)


def _upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=True)
