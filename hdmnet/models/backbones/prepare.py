"""What a method asks of its backbone, `model.trunk` in its YAML."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from hdmnet.models.backbones.base import Backbone, SequentialBackbone
from hdmnet.models.checks import check_switch
from hdmnet.models.folding import BATCH_NORMS

ALL = "all"


def prepare_trunk(
    backbone: Backbone,
    *,
    layers: Sequence[int] | None = None,
    every_block: bool = False,
    before_relu: bool = False,
    trainable: Sequence[int] | str | None = None,
) -> Backbone:
    """Make a backbone give what a method asks for, and learn what it lets learn.

    The dilation is not set here: it is an argument of whoever builds the backbone.

    Args:
        backbone: Changed in place.
        layers: Whose features come out, finest first; None: the backbone's own three levels (of a ResNet [2, 3, 4]).
            Layers after the last one are thrown away. Of a backbone without numbered layers (timm): as many levels, or
            some of its last three, which then stand for layers 2, 3 and 4; of every block, the last four stages are
            1 to 4.
        every_block: Each block's features, not the last one's of a layer only.
        before_relu: Features before the ReLU that closes a block.
        trainable: Layers whose weights learn, 0 being the stem; [] for none, "all". Batch normalisation learns nothing,
            and the backbone stays in evaluation mode. None: all is left as it is, to the method.

    Returns:
        The backbone.

    Raises:
        ValueError: The backbone cannot give that; one line with the key as in the YAML.
    """
    check_switch("every_block", every_block)
    check_switch("before_relu", before_relu)
    layers = None if layers is None else _numbers("layers", layers)
    own, tap = type(backbone).__name__, getattr(backbone, "tap", None)
    if isinstance(backbone, SequentialBackbone):
        backbone.tap(backbone.layers if layers is None else layers, every_block=every_block, before_relu=before_relu)
    elif every_block and tap is not None:
        tap([2, 3, 4] if layers is None else layers, before_relu=before_relu)
    elif every_block or before_relu:
        key = "every_block" if every_block else "before_relu"
        raise ValueError(f"{key}=True: {own} gives whole levels; expected a ResNet, VGG or MobileNetV2")
    elif layers is not None and len(layers) != len(backbone.feature_info):
        _take_levels(backbone, layers)
    if trainable is not None:
        _let_learn(backbone, trainable)
    return backbone


def _take_levels(backbone: Backbone, layers: Sequence[int]) -> None:
    """Of the last three levels those that stand for these layers; see `prepare_trunk`."""
    own, given, take = type(backbone).__name__, len(backbone.feature_info), getattr(backbone, "take", None)
    if given < 3 or not set(layers) <= {2, 3, 4} or take is None:
        raise ValueError(
            f"layers={list(layers)}: {own} gives {given} levels; expected {len(layers)} (of timm: backbone.levels)"
        )
    take([given - 5 + layer for layer in layers])


def _let_learn(backbone: Backbone, trainable: Sequence[int] | str) -> None:
    if trainable == ALL:
        learning: list[nn.Module] = [backbone]
    else:
        layers = _numbers("trainable", trainable)
        parts = list(backbone.parts) if isinstance(backbone, SequentialBackbone) else []
        if any(layer >= len(parts) for layer in layers):
            expected = f"some of {list(range(len(parts)))}" if parts else "[]"
            raise ValueError(f"trainable={layers}: expected {expected} or {ALL}")
        learning = [parts[layer] for layer in layers]
    backbone.requires_grad_(False)
    for part in learning:
        part.requires_grad_(True)
    for module in backbone.modules():
        if isinstance(module, BATCH_NORMS):
            module.requires_grad_(False)
    backbone.stays_in_eval = True
    backbone.eval()


def _numbers(key: str, layers: object) -> list[int]:
    if not isinstance(layers, list | tuple) or not all(type(layer) is int and layer >= 0 for layer in layers):
        raise ValueError(f"{key}={layers}: expected numbers of layers, e.g. [2,3]")
    return list(layers)
