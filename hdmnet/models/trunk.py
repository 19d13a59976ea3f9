"""The frozen trunk: backbone and base learner, computing the same function of the same weights in fewer operations.

* Batch normalisation is folded into the convolutions; weights lie channels-last, in the precision of the call.
* The four branches of the pyramid pooling are upsampled from 1, 4, 9 and 36 cells and then convolved 3×3 with half of
  that layer's weights. Both are linear, so the weights are applied to the 50 cells, and one product with a constant
  matrix spreads the result: a fortieth of the operations, and the pooled channels never exist at full size.
* On a CPU, pictures go through a few at a time: their activations stay in its cache. The features of pictures that come
  again can be kept there (`FrozenTrunk.keep_features`).

Results differ from the plain modules' by rounding only.

Dimension letters: B batch, H W input pixels, C channels of layer 4, R channels of a branch, h w feature size, S cells
of all branches (50), C_5 channels of "feature 5", N base classes.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from hdmnet.models.backbones.base import LAYER3, FeatureInfo, encode
from hdmnet.models.base_learner import BaseLearner
from hdmnet.models.folding import FoldedPooling, fold_batch_norm
from hdmnet.models.masked_trunk import run_cut

# Input pixels encoded at once: one picture of 473² on a CPU; on a GPU what bounds its memory.
CHUNK_CPU, CHUNK_GPU = 2**18, 2**24


@dataclass
class TrunkFeatures:
    """What the frozen trunk says of B pictures; all float.

    Attributes:
        layer2: (B, C_2, h, w), at the size of layer 3 (VGG-16: resized down to it), as are the others.
        layer3: (B, C_3, h, w).
        layer4: (B, C_4, h, w).
        base_feature: (B, C_5, h, w), "feature 5": before the base learner's ReLU.
    """

    layer2: Tensor
    layer3: Tensor
    layer4: Tensor
    base_feature: Tensor

    def split(self, first: int) -> tuple[TrunkFeatures, TrunkFeatures]:
        """The features of the first pictures, and of the others."""
        parts = [(value[:first], value[first:]) for value in vars(self).values()]
        return TrunkFeatures(*(head for head, _ in parts)), TrunkFeatures(*(tail for _, tail in parts))


@dataclass
class MaskedFeatures:
    """What the frozen trunk says of B supports that are masked before layer 4 and after it (BAM); all float.

    Attributes:
        layer2: (B, C_2, h, w), of the whole picture, at the size of layer 3.
        layer3: (B, C_3, h, w), of the whole picture.
        layer4: (B, C_4, h_4, w_4), 0 outside of the object.
        mask: (B, 1, H, W), as it was given.
    """

    layer2: Tensor
    layer3: Tensor
    layer4: Tensor
    mask: Tensor


class FrozenTrunk(nn.Module):
    """Backbone and base learner, frozen: no gradient, no running statistic that moves, whatever ``train()`` says.

    Args:
        base_learner: The trained base learner; its parameters are set to need no gradient.

    Raises:
        ValueError: The backbone has fewer than three levels.
    """

    def __init__(self, base_learner: BaseLearner) -> None:
        super().__init__()
        if len(base_learner.backbone.feature_info) < 3:
            raise ValueError(f"the backbone has {len(base_learner.backbone.feature_info)} levels; expected three")
        self.base_learner = base_learner.requires_grad_(False)
        self._prepared: list[tuple[Any, PreparedTrunk]] = []  # in a list: no part of the state dict
        self._kept: KeptFeatures | None = None
        self.train(False)

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Channels and stride of layer2, layer3 and layer4 as they come out: all at the size of layer 3."""
        levels = self.base_learner.backbone.feature_info[-3:]
        return tuple(FeatureInfo(level.channels, levels[LAYER3].stride) for level in levels)

    def train(self, mode: bool = True) -> FrozenTrunk:
        """Stay in evaluation mode: the trunk's batch normalisation and dropout never switch on."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor, prepared: PreparedTrunk | None = None) -> TrunkFeatures:
        """Encode pictures.

        Args:
            images: (B, 3, H, W) float, normalised.
            prepared: From `prepare`, for who has it already.

        Returns:
            The features, none of which needs a gradient.
        """
        parts = list(map(prepared or self.prepare(images.device), _chunks(images)))
        if len(parts) == 1:
            return parts[0]
        return TrunkFeatures(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(parts[0])))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Iterator[TrunkFeatures]:
        """As `forward`, some of the pictures (B, 3, H, W) after the other, as many as are best encoded at once."""
        prepared = self.prepare(images.device)
        if self._kept is not None and images.is_cpu:
            yield from (self._kept(prepared, picture) for picture in images.split(1))
            return
        for chunk in _chunks(images):
            yield prepared(chunk)

    @torch.no_grad()
    def encode_masked(self, images: Tensor, masks: Tensor) -> Iterator[MaskedFeatures]:
        """As `encode`, of supports (S, 3, H, W) with masks (S, 1, H, W) float: layer 4 sees the object alone."""
        prepared = self.prepare(images.device)
        for chunk, mask in zip(_chunks(images), _chunks(masks), strict=True):
            yield prepared.encode_masked(chunk, mask)

    def keep_features(self, num_bytes: float) -> None:
        """Keep the features of the pictures that come first, on a CPU, and give them when the very same come again.

        Pictures are encoded one by one then, so that what is kept changes no bit of a result.

        Args:
            num_bytes: Memory for it.
        """
        self._kept = KeptFeatures(num_bytes)

    @torch.no_grad()
    def classify(self, base_feature: Tensor) -> Tensor:
        """Base-class logits (B, 1 + N, h, w) of feature 5 (B, C_5, h, w)."""
        logits: Tensor = self.base_learner.classifier(base_feature)
        return logits

    def prepare(self, device: torch.device) -> PreparedTrunk:
        """The prepared copy for the precision of the call; made again when the weights have changed or moved."""
        weights = [*self.base_learner.parameters(), *self.base_learner.buffers()]
        mixed = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if mixed else weights[0].dtype
        key = (dtype, [(w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights])
        if not self._prepared or self._prepared[0][0] != key:
            self._prepared.clear()  # first: two copies need not fit
            # A copy made in inference mode could not be used in training.
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
                self._prepared.append((key, PreparedTrunk(self.base_learner, dtype)))
        return self._prepared[0][1]

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenTrunk:
        """Copy without the prepared weights."""
        return FrozenTrunk(copy.deepcopy(self.base_learner, memo))


def _chunks(images: Tensor) -> tuple[Tensor, ...]:
    """Pictures (B, 3, H, W) by as many as are best encoded at once."""
    pixels = images.shape[2] * images.shape[3]
    chunks: tuple[Tensor, ...] = images.split(max((CHUNK_CPU if images.is_cpu else CHUNK_GPU) // pixels, 1))
    return chunks


class PreparedTrunk:
    """Folded weights of backbone and base learner in one precision."""

    def __init__(self, learner: BaseLearner, dtype: torch.dtype) -> None:
        def prepare(module: nn.Module) -> Any:
            folded = fold_batch_norm(copy.deepcopy(module).double().eval())  # folded weights are rounded only once
            return folded.to(dtype).to(memory_format=torch.channels_last).requires_grad_(False)

        self.dtype = dtype
        self.backbone = prepare(learner.backbone)
        self.pooling = FoldedPooling(prepare(learner.pyramid_pooling), prepare(learner.reduce)[0])

    def __call__(self, images: Tensor) -> TrunkFeatures:
        """Encode pictures (B, 3, H, W) float, all at once."""
        with torch.autocast(images.device.type, enabled=False):
            images = images.to(dtype=self.dtype, memory_format=torch.channels_last)
            layer2, layer3, layer4 = encode(self.backbone, images, size_of=LAYER3)[-3:]
            return TrunkFeatures(layer2, layer3, layer4, self.pooling(layer4))

    def encode_masked(self, images: Tensor, masks: Tensor) -> MaskedFeatures:
        """Encode supports (B, 3, H, W) float with masks (B, 1, H, W) float, all at once."""
        with torch.autocast(images.device.type, enabled=False):
            images = images.to(dtype=self.dtype, memory_format=torch.channels_last)
            layer2, layer3, layer4, _ = run_cut(self.backbone.parts, images, masks)
            return MaskedFeatures(layer2, layer3, layer4, masks)


class KeptFeatures:
    """Features of single pictures by their content, up to so many bytes.

    Attributes:
        num_bytes: Memory of what is kept.
    """

    def __init__(self, limit: float) -> None:
        self.num_bytes = 0
        self._limit = limit
        self._prepared: PreparedTrunk | None = None
        self._features: dict[bytes, TrunkFeatures] = {}

    def __call__(self, prepared: PreparedTrunk, picture: Tensor) -> TrunkFeatures:
        """The features of a picture (1, 3, H, W) float."""
        if self._prepared is not prepared:  # other weights, or another precision
            self._prepared, self.num_bytes = prepared, 0
            self._features.clear()
        key = hashlib.blake2b(picture.numpy().tobytes() + repr(picture.shape).encode(), digest_size=16).digest()
        if key in self._features:
            return self._features[key]
        features = prepared(picture)
        size = sum(value.numel() * value.element_size() for value in vars(features).values())
        if self.num_bytes + size <= self._limit:
            self._features[key] = features
            self.num_bytes += size
        return features
