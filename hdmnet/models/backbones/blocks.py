"""The blocks of a backbone's layer: a ResNet's or a MobileNet's own, of a VGG each convolution with what follows it.

Dimension letters: B batch, C C' channels, h w h' w' feature size, before and after a block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

_INSIDE = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.Identity)  # what does not end a block


def split_blocks(layer: nn.Module) -> list[list[nn.Module]]:
    """The blocks of a layer (a Sequential), each as modules that run one after the other.

    A pool in front of the first convolution belongs to the first block, one at the end to the last.
    """
    blocks: list[list[nn.Module]] = []
    block: list[nn.Module] = []
    for module in layer.children():
        block.append(module)
        if not isinstance(module, _INSIDE):
            blocks.append(block)
            block = []
    if block and blocks:
        blocks[-1] = blocks[-1] + block
    elif block:
        blocks = [block]
    return blocks


def run_block(block: Sequence[nn.Module], x: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, h, w) → two (B, C', h', w'): before the ReLU that closes the block, and after it.

    They are the same where no ReLU comes last.
    """
    *inner, last = block
    for module in inner:
        x = module(x)
    if isinstance(last, BasicBlock | Bottleneck):
        x = _residual_sum(last, x)
    elif not isinstance(last, nn.ReLU):
        x = last(x)
        return x, x
    return x, F.relu(x)


def _residual_sum(block: BasicBlock | Bottleneck, x: Tensor) -> Tensor:
    """What torchvision's block computes before its last ReLU, (B, C, h, w) → (B, C', h', w')."""
    shortcut = x if block.downsample is None else block.downsample(x)
    x = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(x)))))
    if isinstance(block, Bottleneck):
        x = block.bn3(block.conv3(block.relu(x)))
    return x + shortcut


def block_channels(block: Sequence[nn.Module], before: int) -> int:
    """C' of a block; `before` where it holds no convolution."""
    convs = [m for module in block for m in module.modules() if isinstance(m, nn.Conv2d)]
    return convs[-1].out_channels if convs else before
