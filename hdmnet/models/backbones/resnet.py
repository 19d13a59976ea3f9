"""ResNets, by default at stride 8 as the release has them."""

from __future__ import annotations

from itertools import pairwise

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from hdmnet.models.backbones.base import FeatureInfo, SequentialBackbone

# Layers 3 and 4 keep the size of layer 2 by dilation. "release": of every 3×3 convolution, as in BAM, PFENet and
# HDMNet; "torchvision": the first block keeps the dilation of the layer before, as its `replace_stride_with_dilation`
# does (CyCTR, SSP); None: no dilation, strides 16 and 32 (HSNet, DCAMA).
DILATIONS = ("release", "torchvision", None)


def _stem(channels: tuple[int, ...]) -> nn.Sequential:
    """One 7×7 convolution, or several 3×3 of which the first halves the size; then the pool."""
    kernel = 7 if len(channels) == 1 else 3
    layers: list[nn.Module] = []
    for i, (ins, outs) in enumerate(pairwise((3, *channels))):
        conv = nn.Conv2d(ins, outs, kernel, stride=2 if i == 0 else 1, padding=kernel // 2, bias=False)
        layers += [conv, nn.BatchNorm2d(outs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.MaxPool2d(3, stride=2, padding=1))


def dilate_layers(layer3: nn.Module, layer4: nn.Module, rule: str | None) -> tuple[int, int]:
    """Dilate two layers in place by a rule of `DILATIONS`; returns their strides in input pixels."""
    if rule is None:
        return 16, 32
    for layer, dilation in ((layer3, 2), (layer4, 4)):
        _dilate(layer, dilation)
        if rule == "torchvision":
            _dilate(next(layer.children()), dilation // 2)
    return 8, 8


def _dilate(module: nn.Module, dilation: int) -> None:
    """Give every 3×3 convolution stride 1 and the dilation, every 1×1 convolution stride 1 (in place)."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            conv.stride = (1, 1)
            if conv.kernel_size == (3, 3):
                conv.dilation = conv.padding = (dilation, dilation)


def _resnet_layer(
    block: type[BasicBlock] | type[Bottleneck], in_channels: int, channels: int, depth: int, stride: int
) -> nn.Sequential:
    out_channels = channels * block.expansion
    downsample = None
    if stride != 1 or in_channels != out_channels:
        shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
        downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out_channels))
    blocks = [block(in_channels, channels, stride, downsample)]
    blocks += [block(out_channels, channels) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)


def build_resnet(
    block: type[BasicBlock] | type[Bottleneck],
    depths: tuple[int, int, int, int],
    *,
    widths: tuple[int, int, int, int] = (64, 128, 256, 512),
    stem_channels: tuple[int, ...] = (64,),
    dilation: str | None = "release",
) -> SequentialBackbone:
    """A ResNet: a stem of 7×7 (one channel count) or of 3×3 convolutions (several), then four layers.

    Args:
        block: Of torchvision.
        depths: Blocks of each layer.
        widths: Channels of each layer, before the block's expansion.
        stem_channels: Of the stem's convolutions.
        dilation: One of `DILATIONS`.
    """
    parts: list[nn.Module] = [_stem(stem_channels)]
    channels = stem_channels[-1]
    for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        parts.append(_resnet_layer(block, channels, width, depth, stride=1 if i == 0 else 2))
        channels = width * block.expansion
    strides = (4, 8, *dilate_layers(parts[3], parts[4], dilation))
    for module in parts:
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    levels = [FeatureInfo(w * block.expansion, stride) for w, stride in zip(widths, strides, strict=True)]
    return SequentialBackbone(parts, levels)
