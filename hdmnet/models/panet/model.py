"""PANet whole (Wang et al., ICCV 2019): prototypes of the supports, cosine similarity; only the trunk learns.

Dimension letters: B episodes, K shots, S supports (B·K), H W input pixels, C channels, h w feature size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdmnet.models.class_prototypes import (
    ClassPrototypes,
    PrototypeMethod,
    QueryMap,
    cosines,
    weighted_means,
    without_autocast,
)
from hdmnet.models.method import Segmentation

SCALE = 20.0  # α of Eq. 3


@dataclass
class PANetSegmentation(Segmentation):
    """An answer, with what the loss needs beside it in training (else None).

    Attributes:
        support_scores: (B, K, 2, h, w) float, logits of the supports by the query's prototypes (Sec. 3.4).
        support_masks: (B, K, H, W), 0/1/255.
        aligned: (B,) bool, whether any of the query was taken for foreground.
    """

    support_scores: Tensor | None = None
    support_masks: Tensor | None = None
    aligned: Tensor | None = None


class PANet(PrototypeMethod):
    """Few-shot segmenter whose trunk is all that learns; any number of supports.

    Args:
        encoder: As of `PrototypeMethod`.
        num_shots: K of the training episodes, of which nothing here depends.
    """

    def __init__(self, *, encoder: nn.Module, num_shots: int = 1) -> None:
        super().__init__(encoder)

    def forward(
        self, query_image: Tensor, support_images: Tensor, support_masks: Tensor, class_index: Tensor | None = None
    ) -> PANetSegmentation:
        """Segment query pictures (B, 3, H, W), as `FewShotMethod.forward` says; `class_index` is not used."""
        shots = support_images.shape[1]
        query = self.encode_query(query_image)
        features = self.encode(support_images.flatten(0, 1))
        support = ClassPrototypes(self.pool(features, support_masks.flatten(0, 1)))
        output = self.match(query, support, shots=shots)
        if self.training:
            # The query's prototypes, of what it has been taken for at the features' size, segment the supports.
            foreground = output.scores[:, 1] > output.scores[:, 0]  # (B, h, w)
            taken = torch.stack([~foreground, foreground], dim=1).to(features.dtype)
            vectors = weighted_means(query.features, taken, taken.sum((2, 3))).repeat_interleave(shots, 0)
            output.support_scores = (SCALE * cosines(features, vectors)).unflatten(0, (-1, shots))
            output.support_masks, output.aligned = support_masks, foreground.flatten(1).any(1)
        return output

    def pool(self, features: Tensor, masks: Tensor) -> Tensor:
        """As of `PrototypeMethod`; 255 is background."""
        return pool(features, masks)

    def match(self, query: QueryMap, support: ClassPrototypes, *, shots: int) -> PANetSegmentation:
        """Segment B encoded queries by B·K encoded supports, those of query 0 first."""
        scores = SCALE * cosines(query.features, support.average(shots))
        return PANetSegmentation(scores, query.size, align_corners=False)


@without_autocast
def pool(features: Tensor, masks: Tensor) -> Tensor:
    """Mean features of background and foreground (S, 2, C) at the masks' size ("late fusion", Sec. 3.2).

    Features that are upsampled bilinearly and summed under a mask are the features summed under the transposed
    upsampling of the mask: nothing of the pictures' size has C channels.

    Args:
        features: (S, C, h, w) float.
        masks: (S, H, W): 1 foreground, all else, 255 too, background.
    """
    classes = torch.stack([masks != 1, masks == 1], dim=1).to(features.dtype)
    rows, columns = (
        _upsampling(cells, pixels, features) for cells, pixels in zip(features.shape[2:], masks.shape[1:], strict=True)
    )
    return weighted_means(features, rows @ classes @ columns.T, classes.sum((2, 3)))


def _upsampling(cells: int, pixels: int, like: Tensor) -> Tensor:
    """(cells, pixels): what each cell adds to each pixel, bilinear in one direction, corners not aligned."""
    single = torch.eye(cells, dtype=like.dtype, device=like.device)[:, None]
    return F.interpolate(single, pixels, mode="linear", align_corners=False)[:, 0]
