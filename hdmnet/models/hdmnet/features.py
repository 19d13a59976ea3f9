"""What the matching needs of a picture, as query and as support.

Both can be made once and matched many times (`HDMNet.encode_query`, `encode_support`, `match`), in batches put together
at will. Of a support only the foreground is kept.

Dimension letters: B queries, S supports, C width of the meta learner, C_2 C_4 C_5 channels of layer 2, layer 4 and
"feature 5", h w feature size, N base classes, M foreground positions of a support.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hdmnet.models.batch import Batch
from hdmnet.models.hdmnet.meta_learner import SupportMaps
from hdmnet.models.packed import PackedRows, Rows


@dataclass
class QueryFeatures(Batch):
    """B queries.

    Attributes:
        share: (B, C, h_1, w_1) float, the reduced mid-level features' share in the query's merge.
        base_feature: (B, C_5, h, w) float.
        layer4: (B, C_4, h, w) float.
        gram: (B, C_2, C_2) float, Gram matrix of layer 2; None without an ensemble.
        base_scores: (B, 1 + N, h, w) float, logits of the base learner.
        size: (H, W) of the pictures.
    """

    share: Tensor
    base_feature: Tensor
    layer4: Tensor
    gram: Tensor | None
    base_scores: Tensor
    size: tuple[int, int]


@dataclass
class SupportFeatures(Batch):
    """S supports, of their foreground only.

    Attributes:
        stages: One a matching stage, finest first: S items (M_l, C), the pyramid's features. `SupportMaps` in a
            forward pass that goes over query and supports together.
        prototype: (S, C_r) float, masked mean of the reduced mid-level features.
        base_feature: S items (M, C_5).
        layer4: S items (M, C_4).
        gram: (S, C_2, C_2) float; None without an ensemble.
    """

    stages: list[PackedRows] | SupportMaps
    prototype: Tensor
    base_feature: Rows
    layer4: Rows
    gram: Tensor | None
