"""A backbone that stays as it is: features of several levels, for methods that learn nothing of it.

Dimension letters: B pictures, H W input pixels, C_l channels of level l, h w feature size.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from itertools import groupby, islice
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from hdmnet.models.backbones.base import Backbone, FeatureInfo, encode
from hdmnet.models.checks import check_integer
from hdmnet.models.folding import BATCH_NORMS, fold_batch_norm
from hdmnet.models.trunk import CHUNK_CPU, CHUNK_GPU, FrozenTrunk

T = TypeVar("T")


class FrozenBackbone(nn.Module):
    """No gradient, no running statistic that moves, whatever ``train()`` says; batch normalisation is folded in.

    Args:
        encoder: A backbone, a base learner that has trained one, or a frozen trunk of such; its parameters are set to
            need no gradient.
        levels: Which of its levels, as indices of `feature_info`; a number: the last so many, or all where it has
            fewer; None: all.
        cache_gb: Memory, 10^9 bytes, for what `forward` is told to keep.
        one_size: All levels come out at the size of the finest; else each keeps its own.

    Attributes:
        feature_info: Channels and stride of each level as it comes out.

    Raises:
        ValueError: There is no such level, or none; or some of the backbone was meant to learn.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        levels: Sequence[int] | int | None = None,
        cache_gb: float = 0.0,
        one_size: bool = True,
    ) -> None:
        super().__init__()
        # In a list: no part of the state dict.
        self._owner: list[Any] = [encoder] if isinstance(encoder, FrozenTrunk | FrozenBackbone) else []
        encoder = encoder.base_learner if isinstance(encoder, FrozenTrunk) else encoder
        backbone = cast("Backbone", getattr(encoder, "backbone", encoder))
        if getattr(backbone, "stays_in_eval", False) and any(
            parameter.requires_grad for parameter in backbone.parameters()
        ):
            raise ValueError("model.trunk.trainable: nothing of this method's trunk learns; expected [] or null")
        self.levels = _choose_levels(levels, len(backbone.feature_info))
        self.backbone = backbone.requires_grad_(False)
        chosen = [backbone.feature_info[level] for level in self.levels]
        same = tuple(FeatureInfo(info.channels, chosen[0].stride) for info in chosen)
        self.feature_info = same if one_size else tuple(chosen)
        self.cache_gb, self.one_size = cache_gb, one_size
        self._prepared: list[tuple[Any, Backbone]] = []  # in a list: no part of the state dict
        self._kept: dict[bytes, list[Tensor]] = {}
        self._kept_bytes = 0
        self.train(False)

    @property
    def stages(self) -> list[list[FeatureInfo]]:
        """The levels of each layer, finest first."""
        found = groupby(self.feature_info, lambda level: level.layer or level.stride)
        return [list(levels) for _, levels in found]

    def by_stage(self, levels: Sequence[T]) -> list[list[T]]:
        """What there is of each level, by stage."""
        remaining = iter(levels)
        return [list(islice(remaining, len(stage))) for stage in self.stages]

    def train(self, mode: bool = True) -> FrozenBackbone:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor, *, keep: bool = False) -> list[Tensor]:
        """Encode pictures.

        Args:
            images: (B, 3, H, W) float, normalised.
            keep: On a CPU, keep the features as long as there is room, for when a picture comes again unchanged.

        Returns:
            A level each, finest first: (B, C_l, h, w) float, in the precision of the call; h and w are the finest's, or
            each level's own.
        """
        if keep and self.cache_gb and images.is_cpu:
            # One by one: a picture's features must not depend on those that are encoded beside it.
            found = [self._look_up(image) for image in images.split(1)]
        else:
            pixels = images.shape[2] * images.shape[3]
            number = max((CHUNK_CPU if images.is_cpu else CHUNK_GPU) // pixels, 1)
            found = [self._encode(chunk) for chunk in images.split(number)]
        return [several[0] if len(several) == 1 else torch.cat(several) for several in zip(*found, strict=True)]

    def _look_up(self, image: Tensor) -> list[Tensor]:
        """Features of one picture (1, 3, H, W), found by its pixels or encoded now."""
        dtype, _ = self._prepare(image.device)
        content = image.numpy()
        key = hashlib.blake2b(f"{dtype} {content.shape}".encode() + content.tobytes(), digest_size=16).digest()
        if key not in self._kept:
            features = self._encode(image)
            num_bytes = sum(level.numel() * level.element_size() for level in features)
            if self._kept_bytes + num_bytes > 1e9 * self.cache_gb:
                return features
            self._kept[key] = features
            self._kept_bytes += num_bytes
        return self._kept[key]

    def _encode(self, images: Tensor) -> list[Tensor]:
        dtype, backbone = self._prepare(images.device)
        with torch.autocast(images.device.type, enabled=False):
            images = images.to(dtype=dtype, memory_format=torch.channels_last)
            found = encode(backbone, images, size_of=self.levels[0] if self.one_size else None)
        return [found[level] for level in self.levels]

    def _prepare(self, device: torch.device) -> tuple[torch.dtype, Backbone]:
        """A copy for the precision of the call, and that precision; made again when the weights changed or moved."""
        if self._owner:
            if isinstance(self._owner[0], FrozenBackbone):
                return self._owner[0]._prepare(device)
            prepared_trunk = self._owner[0].prepare(device)
            return prepared_trunk.dtype, prepared_trunk.backbone
        weights = [*self.backbone.parameters(), *self.backbone.buffers()]
        mixed = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if mixed else weights[0].dtype
        key = (dtype, [(w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights])
        if not self._prepared or self._prepared[0][0] != key:
            self._prepared.clear()  # first: two copies need not fit
            self._kept.clear()
            self._kept_bytes = 0
            # A copy made in inference mode could not be used in training.
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
                self._prepared.append((key, self._fold(dtype)))
        return dtype, self._prepared[0][1]

    def _fold(self, dtype: torch.dtype) -> Backbone:
        """A copy in a precision, or the backbone itself where nothing of it would be another."""
        same = dtype == next(self.backbone.parameters()).dtype
        if same and not any(isinstance(module, BATCH_NORMS) for module in self.backbone.modules()):
            return self.backbone
        folded = fold_batch_norm(copy.deepcopy(self.backbone).double().eval())  # rounded only once
        return cast("Backbone", folded.to(dtype).to(memory_format=torch.channels_last).requires_grad_(False))

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenBackbone:
        """Copy without what is prepared or kept."""
        backbone = copy.deepcopy(self.backbone, memo)
        return FrozenBackbone(backbone, levels=self.levels, cache_gb=self.cache_gb, one_size=self.one_size)

    def __getstate__(self) -> dict[str, Any]:
        """State for pickling, without what is prepared or kept."""
        return {**self.__dict__, "_owner": [], "_prepared": [], "_kept": {}, "_kept_bytes": 0}


def _choose_levels(levels: Sequence[int] | int | None, number: int) -> tuple[int, ...]:
    """Indices of levels, from 0, ascending."""
    if levels is None:
        return tuple(range(number))
    if isinstance(levels, int):
        check_integer("model.levels", levels, 1, 10_000)
        return tuple(range(max(number - levels, 0), number))
    whole = [level for level in levels if type(level) is int and -number <= level < number]
    chosen = tuple(level % number for level in whole)
    if not chosen or len(whole) != len(levels) or list(chosen) != sorted(set(chosen)):
        raise ValueError(
            f"model.levels={list(levels)}: the backbone has {number} levels; expected some of them, finest first, e.g. "
            f"{list(range(-min(number, 3), 0))}, a number for the last so many, or null for all"
        )
    return chosen
