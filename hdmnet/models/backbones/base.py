"""What a backbone is: features of several levels, with declared channels and strides.

By default there are three, which stand for the ResNet layers that the paper uses: `layer2` and `layer3` (mid-level
features, Sec. 4.1) and `layer4` (the prior mask); `prepare_trunk` gives a method others.

Dimension letters: B batch, H W input pixels, C_l h_l w_l channels and size of level l.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdmnet.models.backbones.blocks import block_channels, run_block, split_blocks

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in 0..1
LAYER3 = -2  # of the levels: the one whose size HDMNet's features have

_encoded: ContextVar[list[tuple[nn.Module, Tensor, tuple[Tensor, ...]]] | None] = ContextVar("_encoded", default=None)


@dataclass(frozen=True)
class FeatureInfo:
    """What the features of one level look like.

    Attributes:
        channels: C_l.
        stride: In input pixels.
        layer: Which layer it comes from, counted as a ResNet's: 1 to 4; None where that is not known.
    """

    channels: int
    stride: int
    layer: int | None = None


class Backbone(nn.Module):
    """An encoder of pictures. Any module with these attributes and this `forward` is one; inheriting is not needed.

    Attributes:
        feature_info: Channels and stride of each level, finest first.
        multiple_of: What height and width of the pictures must be a multiple of; `encode` pads them.
        stays_in_eval: Whether it stays in evaluation mode while the method trains; `prepare_trunk` sets it.
    """

    feature_info: tuple[FeatureInfo, ...]
    multiple_of: int = 1
    stays_in_eval: bool = False

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Encode pictures.

        Args:
            images: (B, 3, H, W) float, normalised; H and W multiples of `multiple_of`.

        Returns:
            One (B, C_l, h_l, w_l) float a level, finest first; h_l is H divided by the stride, rounded up (down by
            torchvision's VGG-16).
        """
        raise NotImplementedError


class SequentialBackbone(Backbone):
    """A backbone cut into parts that run one after the other; the levels are outputs of some, as `tap` says.

    Args:
        parts: The stem, then layers 1, 2 …
        feature_info: Channels and stride of what the last parts give; those of the last three come out.
    """

    def __init__(self, parts: Sequence[nn.Module], feature_info: Sequence[FeatureInfo]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        first = len(parts) - len(feature_info)
        self.layer_info = {first + i: replace(info, layer=first + i) for i, info in enumerate(feature_info)}
        self.tap(sorted(self.layer_info)[-3:])

    def tap(self, layers: Sequence[int], *, every_block: bool = False, before_relu: bool = False) -> None:
        """Choose what comes out.

        Args:
            layers: Whose features are the levels, e.g. (2, 3, 4); layers after the last one are thrown away.
            every_block: One level a block of these layers (of a VGG: a convolution); else one a layer, its last.
            before_relu: As they are before the ReLU that closes a block, where one does; the next block gets it after.

        Raises:
            ValueError: There is no such layer, or its blocks differ in size.
        """
        layers = tuple(layers)
        if not layers or list(layers) != sorted(set(layers)) or not set(layers) <= self.layer_info.keys():
            known = ", ".join(map(str, self.layer_info))
            raise ValueError(f"layers={list(layers)}: expected some of [{known}], in this order")
        self.layers, self.every_block, self.before_relu = layers, every_block, before_relu
        levels = []
        for layer in layers:
            info = self.layer_info[layer]
            blocks = split_blocks(self.parts[layer]) if every_block else []
            if len(blocks) > 1 and isinstance(blocks[-1][-1], nn.MaxPool2d):
                raise ValueError("every_block=True: a layer of this backbone ends in a pool, its blocks differ in size")
            levels += [replace(info, channels=block_channels(b, info.channels)) for b in blocks] or [info]
        self.feature_info = tuple(levels)
        del self.parts[layers[-1] + 1 :]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) float, normalised → one (B, C_l, h_l, w_l) float a level."""
        levels: list[Tensor] = []
        x = images
        for layer, part in enumerate(self.parts):
            if layer not in self.layers or not (self.every_block or self.before_relu):
                x = part(x)
                levels += [x] if layer in self.layers else []
                continue
            tapped = []
            for block in split_blocks(part):
                before, x = run_block(block, x)
                tapped.append(before if self.before_relu else x)
            levels += tapped if self.every_block else tapped[-1:]
        return tuple(levels)


def encode(backbone: Backbone, images: Tensor, *, size_of: int | None = None) -> tuple[Tensor, ...]:
    """Encode pictures of any size.

    Pictures are padded at the right and the bottom with the mean colour up to a multiple of `multiple_of`; of the
    features, what lies wholly in the padding is cut off.

    Args:
        backbone: The encoder.
        images: (B, 3, H, W) float, normalised.
        size_of: The level to whose size levels of another stride are brought; None: each keeps its own.

    Returns:
        One (B, C_l, h_l, w_l) float a level, finest first.
    """
    height, width = images.shape[-2:]
    bottom, right = -height % backbone.multiple_of, -width % backbone.multiple_of
    if bottom or right:
        images = F.pad(images, (0, right, 0, bottom))
    levels = list(_run(backbone, images))
    strides = [info.stride for info in backbone.feature_info]
    if size_of is not None:
        # Before cutting: the levels cover the same pixels only while they are whole.
        for i, level in enumerate(levels):
            if strides[i] != strides[size_of]:
                size = levels[size_of].shape[-2:]
                levels[i] = F.interpolate(level, size, mode="bilinear", align_corners=True)
        strides = [strides[size_of]] * len(levels)
    if bottom or right:
        for i, (level, stride) in enumerate(zip(levels, strides, strict=True)):
            levels[i] = level[..., : -(-height // stride), : -(-width // stride)]
    return tuple(levels)


@contextmanager
def encoding_once() -> Iterator[None]:
    """Within it pictures that come to `encode` again, with the same backbone, are not computed again.

    For several methods on one backbone. What they are given is the same tensors: none may write into them.
    """
    token = _encoded.set([])
    try:
        yield
    finally:
        _encoded.reset(token)


def _run(backbone: Backbone, images: Tensor) -> tuple[Tensor, ...]:
    """The backbone's levels of pictures (B, 3, H, W), computed or, within `encoding_once`, remembered."""
    seen = _encoded.get()
    if seen is None:
        return tuple(backbone(images))
    for known, pictures, levels in seen:
        if known is backbone and pictures.shape == images.shape and torch.equal(pictures, images):
            return levels
    found = tuple(backbone(images))
    seen.append((backbone, images, found))
    return found
