"""Prototypes of background and foreground, and the cosine similarity to them: PANet's and SSP's common part.

Dimension letters: B queries, S supports, C channels, H W input pixels, h w feature size, N = h·w, M prototypes.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdmnet.models.backbones.base import encode
from hdmnet.models.batch import Batch
from hdmnet.models.folding import FoldedBackbone
from hdmnet.models.method import FewShotMethod

POOL_EPS = 1e-5  # added to the weight of a mask
LENGTH_EPS = 1e-8  # least length of a vector, as of torch's own cosine similarity
R = TypeVar("R")


@dataclass
class QueryMap(Batch):
    """B queries.

    Attributes:
        features: (B, C, h, w) float.
        size: (H, W) of the pictures.
    """

    features: Tensor
    size: tuple[int, int]


@dataclass
class ClassPrototypes(Batch):
    """S supports.

    Attributes:
        vectors: (S, 2, C) float, mean features of background and foreground; 0 where there is none.
    """

    vectors: Tensor

    def average(self, shots: int) -> Tensor:
        """(B, 2, C): the mean over the `shots` supports of each of B queries, those of query 0 first."""
        mean: Tensor = self.vectors.unflatten(0, (-1, shots)).mean(1)
        return mean


def without_autocast(function: Callable[..., R]) -> Callable[..., R]:
    """Let a function of tensors compute in their own precision: sums over a picture overflow 16 bits."""

    @functools.wraps(function)
    def call(first: Tensor, *others: Any) -> R:
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *others)

    return call


def to_rows(features: Tensor) -> Tensor:
    """(B, C, h, w) → (B, N, C)."""
    return features.flatten(2).transpose(1, 2)


def unit(vectors: Tensor) -> Tensor:
    """Vectors (…, C) of length 1; 0 stays 0."""
    return F.normalize(vectors, dim=-1, eps=LENGTH_EPS)


@without_autocast
def cosines(features: Tensor, vectors: Tensor) -> Tensor:
    """Of features (B, C, h, w) and vectors (B, M, C): (B, M, h, w)."""
    products: Tensor = unit(vectors) @ unit(to_rows(features)).transpose(1, 2)
    return torch.unflatten(products, 2, features.shape[2:])


@without_autocast
def weighted_means(features: Tensor, weights: Tensor, totals: Tensor) -> Tensor:
    """Means of features (S, C, h, w) by weights (S, M, h, w), whose sums are given (S, M): (S, M, C)."""
    return (weights.flatten(2) / (totals[..., None] + POOL_EPS)) @ to_rows(features)


class PrototypeMethod(FewShotMethod):
    """A method whose trunk is all that learns, and that keeps of a support its two prototypes.

    Args:
        encoder: A backbone of one level, or a base learner that has trained one. Which layers learn was decided before
            (`prepare_trunk`).
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.backbone = cast("nn.Module", getattr(encoder, "backbone", encoder))
        self.backbone.to(memory_format=torch.channels_last)
        self.trunk: Any = FoldedBackbone(self.backbone)

    @abstractmethod
    def pool(self, features: Tensor, masks: Tensor) -> Tensor:
        """Prototypes (S, 2, C) of features (S, C, h, w) and masks (S, H, W), 0/1/255: each method's own."""

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float, normalised → (B, C, h, w), in 32 bits at least."""
        features = encode(self.trunk, images)[-1]
        return features.to(torch.promote_types(features.dtype, torch.float32))

    def encode_query(self, images: Tensor) -> QueryMap:
        """Encode query pictures (B, 3, H, W) float, normalised."""
        return QueryMap(self.encode(images), (images.shape[2], images.shape[3]))

    def encode_support(self, images: Tensor, masks: Tensor) -> ClassPrototypes:
        """Encode supports (S, 3, H, W), not masked, with masks (S, H, W), 0/1/255: all that is kept is prototypes."""
        return ClassPrototypes(self.pool(self.encode(images), masks))
