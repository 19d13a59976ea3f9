"""Batches of features: dataclasses whose fields all hold one entry an item, which can be taken apart and put together.

What a method keeps of a picture, as query or as support, is such a batch: made once and matched many times, in batches
put together at will.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any, Self

import torch
from torch import Tensor

from hdmnet.models.packed import PackedRows


class Batch:
    """Base of a dataclass whose fields hold tensors (B, …), `PackedRows`, batches, lists, None or what all share."""

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


def _split(value: Any) -> Any:
    """The entries of the items; what all share (a size, None) is returned as it is."""
    if isinstance(value, Tensor):
        return [part.clone(memory_format=torch.preserve_format) for part in value.split(1)]
    if isinstance(value, PackedRows):
        return [PackedRows(part.values.clone(), part.counts) for part in value.unbind()]
    if isinstance(value, Batch):
        return value.unbind()
    if isinstance(value, list):
        return [list(parts) for parts in zip(*(_split(entry) for entry in value), strict=True)]
    return value


def _join(values: list[Any]) -> Any:
    """The inverse of `_split`."""
    if isinstance(values[0], Tensor):
        return values[0] if len(values) == 1 else torch.cat(values)
    if isinstance(values[0], PackedRows):
        return PackedRows.cat(values)
    if isinstance(values[0], Batch):
        return type(values[0]).stack(values)
    if isinstance(values[0], list):
        return [_join(list(entries)) for entries in zip(*values, strict=True)]
    return values[0]


def _num_bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, PackedRows):
        return _num_bytes(value.values)
    if isinstance(value, Batch):
        return value.num_bytes
    return sum(_num_bytes(entry) for entry in value) if isinstance(value, list) else 0
