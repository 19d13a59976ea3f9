"""Batch normalisation folded into convolutions, which may still learn, and pyramid pooling that is never upsampled.

Dimension letters: B batch, C channels of layer 4, R channels of a branch, h w feature size, S cells of all branches
(50), C_5 channels of "feature 5".
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Collection
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import BasicBlock, Bottleneck

from hdmnet.models.backbones.module_outputs import Keep
from hdmnet.models.backbones.padding import PaddedFirst
from hdmnet.models.base_learner import PyramidPooling

KERNEL = 3  # of the convolution after the pyramid pooling
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# Where these run, a normalisation follows the convolution that is registered before it. Nothing is known of others.
_IN_ORDER = {nn.Sequential.forward, BasicBlock.forward, Bottleneck.forward}
_IN_ORDER_OF_TIMM = {"EfficientNet", "DepthwiseSeparableConv", "InvertedResidual"}


def fold_batch_norm(module: nn.Module) -> nn.Module:
    """Fold batch normalisation, in evaluation mode, into the convolution that it surely follows; in place."""
    for conv, norm in _find_folds(module):
        modules = [cast("Any", module.get_submodule(name)) for name in (conv, norm)]
        module.set_submodule(conv, fuse_conv_bn_eval(*modules))
        module.set_submodule(norm, nn.Sequential(OrderedDict(modules[1].named_children())))  # timm's hold an activation
    return module


def _find_folds(module: nn.Module) -> list[tuple[str, str]]:
    """Names of the convolutions, each with the batch normalisation that surely follows it."""
    found = []
    for path, owner in module.named_modules():
        if type(owner).forward in _IN_ORDER or _is_timms(owner, _IN_ORDER_OF_TIMM):
            for (name, conv), (norm_name, norm) in pairwise(list(owner.named_children())):
                # Exactly these types: what inherits from them may compute more.
                known = type(conv) in (nn.Conv2d, PaddedFirst) or _is_timms(conv, {"Conv2dSame"})
                known = known and (type(norm) is nn.BatchNorm2d or _is_timms(norm, {"BatchNormAct2d"}))
                hooks = [*conv._forward_hooks.values(), *norm._forward_hooks.values()]
                asked = any(isinstance(hook, Keep) for hook in hooks)  # for what just this one gives
                if known and not asked and norm.running_mean is not None:
                    found.append((f"{path}.{name}".lstrip("."), f"{path}.{norm_name}".lstrip(".")))
    return found


def _is_timms(module: nn.Module, names: Collection[str]) -> bool:
    """Whether a module's type is one of these of timm, which is not imported for that."""
    kind = type(module)
    return kind.__name__ in names and kind.__module__.startswith("timm.")


class FoldedBackbone:
    """A backbone that learns, run with its batch normalisation folded: the same numbers and gradients for less.

    Folded weights are made at each call from those that learn, which get the gradients. In training nothing has to be
    kept of what went into a normalisation. No module of its own: it holds no weights.

    Args:
        backbone: Run as it is where nothing can be folded, or while a normalisation is in training mode.
    """

    def __init__(self, backbone: Any) -> None:
        self.backbone = backbone
        self.feature_info, self.multiple_of = backbone.feature_info, backbone.multiple_of
        self._folds = _find_folds(backbone)
        self._folded: Any = fold_batch_norm(copy.deepcopy(backbone).to("meta").eval()) if self._folds else None

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) float → one (B, C_l, h_l, w_l) float a level, as the backbone."""
        if not self._folds or any(self.backbone.get_submodule(norm).training for _, norm in self._folds):
            levels: tuple[Tensor, ...] = self.backbone(images)
            return levels
        weights = dict(self.backbone.named_parameters())
        for conv_name, norm_name in self._folds:
            conv, norm = (self.backbone.get_submodule(name) for name in (conv_name, norm_name))
            scale = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
            shift = (0 if conv.bias is None else conv.bias) - norm.running_mean
            weights[f"{conv_name}.weight"] = conv.weight * scale[:, None, None, None]
            weights[f"{conv_name}.bias"] = shift * scale + (0 if norm.bias is None else norm.bias)
        used = {name: weights[name] for name, _ in self._folded.named_parameters()}
        folded: tuple[Tensor, ...] = functional_call(self._folded, used, (images,))
        return folded


class FoldedPooling:
    """Pyramid pooling and the 3×3 convolution after it, without ever upsampling the pooled channels.

    Args:
        pooling: Its batch normalisations folded.
        reduce: The 3×3 convolution (padding 1), its normalisation folded; on C + 4·R channels.
    """

    def __init__(self, pooling: PyramidPooling, reduce: nn.Conv2d) -> None:
        self.bins = pooling.bins
        self.branches = [cast("nn.Conv2d", branch[1]) for branch in pooling.branches]  # type: ignore[index]
        widths = [branch.out_channels for branch in self.branches]
        weight, *pooled = reduce.weight.split([reduce.in_channels - sum(widths), *widths], dim=1)
        self.weight = weight.contiguous(memory_format=torch.channels_last)  # (C_5, C, 3, 3)
        self.pooled = [w.permute(1, 2, 3, 0).flatten(1).contiguous() for w in pooled]  # (R, 9·C_5) each
        self.bias = reduce.bias
        self._constants: dict[Any, tuple[Tensor, Tensor]] = {}

    def __call__(self, layer4: Tensor) -> Tensor:
        """(B, C, h, w) → feature 5 (B, C_5, h, w)."""
        size = (layer4.shape[2], layer4.shape[3])
        pool, spread = self._matrices(size, layer4)
        rows = layer4.flatten(2).transpose(1, 2)  # (B, h·w, C)
        cells = (pool @ rows).split([b * b for b in self.bins], dim=1)
        patches = [
            F.linear(part, branch.weight.flatten(1), branch.bias).relu() @ weight  # (B, b², 9·C_5)
            for part, branch, weight in zip(cells, self.branches, self.pooled, strict=True)
        ]
        patch = torch.cat(patches, dim=1).unflatten(2, (KERNEL**2, -1)).flatten(1, 2)  # (B, S·9, C_5)
        spread_out = (spread @ patch).transpose(1, 2).unflatten(2, size)
        result: Tensor = F.conv2d(layer4, self.weight, self.bias, padding=1).add_(spread_out)
        return result

    def _matrices(self, size: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
        """Constants of a map size: means over the cells (S, h·w), and what each cell and tap adds where (h·w, S·9)."""
        key = (size, like.device, like.dtype)
        if key not in self._constants:
            self._constants.clear()  # one at a time: sizes change seldom
            pool = torch.cat([torch.kron(bin_means(size[0], b), bin_means(size[1], b)) for b in self.bins])
            spread = []
            for b in self.bins:
                upsample = torch.kron(_interpolation(b, size[0]), _interpolation(b, size[1]))  # (h·w, b²)
                maps = upsample.T.unflatten(1, size)[:, None]
                spread.append(F.unfold(maps, KERNEL, padding=1))  # (b², 9, h·w)
            self._constants[key] = (pool.to(like), torch.cat(spread).flatten(0, 1).T.contiguous().to(like))
        return self._constants[key]


def bin_means(size: int, bins: int, device: torch.device | None = None) -> Tensor:
    """(bins, size) float64: row i averages what adaptive average pooling puts into bin i; exporters can follow it."""
    number = torch.arange(bins, device=device)[:, None]
    position = torch.arange(size, device=device)
    start, end = number * size // bins, ((number + 1) * size + bins - 1) // bins
    return ((position >= start) & (position < end)).double() / (end - start)


def _interpolation(bins: int, size: int) -> Tensor:
    """(size, bins) float64: linear interpolation from `bins` values to `size`, corners aligned."""
    values = torch.eye(bins, dtype=torch.float64)[:, None]
    return F.interpolate(values, size, mode="linear", align_corners=True)[:, 0].T
