"""ClassPrototypes of background and foreground, and the cosine similarity to them: PANet's and SSP's common part.

Dimension letters: B queries, S supports, C channels, h w feature size, N = h·w, M prototypes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from hdmnet.models.batch import Batch

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
