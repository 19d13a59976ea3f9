"""What is kept of a picture, as query and as support: all that the matching needs, and no more.

Both can be made once and matched many times (`HDMNet.encode_query`, `encode_support`, `match`), in batches put together
at will. Of a support only the foreground is kept.

Dimension letters: B queries, S supports, C width of the meta learner, C_2 C_4 C_5 channels of layer 2, layer 4 and
"feature 5", h w feature size, N base classes, M foreground positions of a support.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor

from hdmnet.models.packed import PackedRows


class _Batch:
    """A dataclass whose fields all hold one entry an item: tensors, `PackedRows`, lists of these, None, or a size."""

    def _items(self) -> Iterator[tuple[str, Any]]:
        return ((field.name, getattr(self, field.name)) for field in fields(self))  # type: ignore[arg-type]

    def unbind(self) -> list[Self]:
        """One item each, in memory of their own."""
        split = {name: _split(value) for name, value in self._items()}
        count = max(len(parts) for parts in split.values() if isinstance(parts, list))
        return [
            type(self)(**{n: parts[i] if isinstance(parts, list) else parts for n, parts in split.items()})
            for i in range(count)
        ]

    @classmethod
    def stack(cls, items: Sequence[Self]) -> Self:
        """One batch of the items of all, in order; they must be of pictures of one size."""
        names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        return cls(**{name: _join([getattr(item, name) for item in items]) for name in names})

    @property
    def num_bytes(self) -> int:
        """Memory of the tensors."""
        return sum(_num_bytes(value) for _, value in self._items())


@dataclass
class QueryFeatures(_Batch):
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
class SupportFeatures(_Batch):
    """S supports, of their foreground only.

    Attributes:
        stages: One a matching stage, finest first: S items (M_l, C), the pyramid's features.
        prototype: (S, C_r) float, masked mean of the reduced mid-level features.
        base_feature: S items (M, C_5).
        layer4: S items (M, C_4).
        gram: (S, C_2, C_2) float; None without an ensemble.
    """

    stages: list[PackedRows]
    prototype: Tensor
    base_feature: PackedRows
    layer4: PackedRows
    gram: Tensor | None


def _split(value: Any) -> Any:
    """The entries of the items; what all share (a size, None) is returned as it is."""
    if isinstance(value, Tensor):
        return [part.clone(memory_format=torch.preserve_format) for part in value.split(1)]
    if isinstance(value, PackedRows):
        return [PackedRows(part.values.clone(), part.counts) for part in value.unbind()]
    if isinstance(value, list):
        return [list(parts) for parts in zip(*(_split(entry) for entry in value), strict=True)]
    return value


def _join(values: list[Any]) -> Any:
    """The inverse of `_split`."""
    if isinstance(values[0], Tensor):
        return values[0] if len(values) == 1 else torch.cat(values)
    if isinstance(values[0], PackedRows):
        return PackedRows.cat(values)
    if isinstance(values[0], list):
        return [PackedRows.cat(entries) for entries in zip(*values, strict=True)]
    return values[0]


def _num_bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, PackedRows):
        return _num_bytes(value.values)
    return sum(_num_bytes(entry) for entry in value) if isinstance(value, list) else 0
