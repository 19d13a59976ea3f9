"""Frozen encoders with declared channels and strides.

Every backbone returns three levels, named after the ResNet layers the paper uses: ``layer2`` and ``layer3`` (mid-level
features, Sec. 4.1) and ``layer4`` (the prior mask). Layers 3 and 4 keep the resolution of layer 2 by dilation, except
for VGG-16, whose layers 3 and 4 have stride 16.

Dimension letters: B batch, H W input pixels, C_l / h_l / w_l channels and size of level l.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.vgg import cfgs, make_layers


@dataclass(frozen=True)
class Level:
    """What one feature level looks like: its number of channels and its stride in input pixels."""

    channels: int
    stride: int


class Backbone(nn.Module):
    """An encoder cut into a stem and the parts up to layers 2, 3 and 4.

    Args:
        parts: Modules run one after the other; the outputs of the last three are the levels layer2, layer3, layer4.
        levels: Channels and stride of layer2, layer3, layer4.
    """

    def __init__(self, *, parts: list[nn.Module], levels: tuple[Level, Level, Level]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.levels = levels

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode pictures.

        Args:
            images: (B, 3, H, W) float, normalised.

        Returns:
            layer2, layer3, layer4: each (B, C_l, h_l, w_l) float.
        """
        outputs = []
        x = images
        for part in self.parts:
            x = part(x)
            outputs.append(x)
        layer2, layer3, layer4 = outputs[-3:]
        return layer2, layer3, layer4


def _conv_bn_relu(in_channels: int, out_channels: int, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


def _dilate(module: nn.Module, dilation: int) -> nn.Module:
    """Give every 3×3 convolution stride 1 and the dilation, every 1×1 convolution stride 1 (in place)."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            conv.stride = (1, 1)
            if conv.kernel_size == (3, 3):
                conv.dilation = conv.padding = (dilation, dilation)
    return module


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


def _resnet(
    block: type[BasicBlock] | type[Bottleneck],
    depths: tuple[int, int, int, int],
    *,
    widths: tuple[int, int, int, int] = (64, 128, 256, 512),
    stem_channels: tuple[int, ...] = (64,),
) -> Backbone:
    """A ResNet at stride 8: a stem of 7×7 (one channel count) or of 3×3 convolutions (several), then four layers."""
    if len(stem_channels) == 1:
        conv = nn.Conv2d(3, stem_channels[0], 7, stride=2, padding=3, bias=False)
        stem: list[nn.Module] = [conv, nn.BatchNorm2d(stem_channels[0]), nn.ReLU(inplace=True)]
    else:
        stem = []
        for i, (in_channels, out_channels) in enumerate(pairwise((3, *stem_channels))):
            stem += _conv_bn_relu(in_channels, out_channels, stride=2 if i == 0 else 1)
    stem.append(nn.MaxPool2d(3, stride=2, padding=1))
    parts: list[nn.Module] = [nn.Sequential(*stem)]
    channels = stem_channels[-1]
    for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        parts.append(_resnet_layer(block, channels, width, depth, stride=1 if i == 0 else 2))
        channels = width * block.expansion
    # All of layers 3 and 4 dilated, also their first block: as in the release (torchvision's own switch differs there).
    _dilate(parts[3], 2)
    _dilate(parts[4], 4)
    for module in parts:
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    c2, c3, c4 = (w * block.expansion for w in widths[1:])
    return Backbone(parts=parts, levels=(Level(c2, 8), Level(c3, 8), Level(c4, 8)))


_VGG16_BOUNDS = (0, 7, 14, 24, 34, 43)  # after each pool; the last pool is dropped
# Strides of the groups: 0-1 /2, 2-3 /4, 4-6 /8, 7-13 /16, 14-17 /32 (the 1280-channel head, 18, is left out).
_MOBILENET_BOUNDS = (0, 2, 4, 7, 14, 18)


def _cut(features: nn.Sequential, bounds: tuple[int, ...]) -> list[nn.Module]:
    """Cut a Sequential into parts, each numbered from 0 (a slice of a Sequential would keep the old numbers)."""
    layers = list(features)
    return [nn.Sequential(*layers[low:high]) for low, high in pairwise(bounds)]


def _vgg16() -> Backbone:
    # Not by `vgg16_bn()`: its classifier alone would be 124 million parameters to initialise and throw away.
    features = make_layers(cfgs["D"], batch_norm=True)
    for module in features:
        if isinstance(module, nn.MaxPool2d):
            module.ceil_mode = True
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.constant_(module.bias, 0.0)  # type: ignore[arg-type]  # a Conv2d's bias may be None; these have one
    return Backbone(parts=_cut(features, _VGG16_BOUNDS), levels=(Level(256, 8), Level(512, 16), Level(512, 16)))


def _mobilenet_v2() -> Backbone:
    features = torchvision.models.mobilenet_v2(weights=None).features
    parts = _cut(features, _MOBILENET_BOUNDS)
    _dilate(parts[3], 2)
    _dilate(parts[4], 4)
    return Backbone(parts=parts, levels=(Level(32, 8), Level(96, 8), Level(320, 8)))


_BUILDERS: dict[str, Callable[[], Backbone]] = {
    "resnet18": lambda: _resnet(BasicBlock, (2, 2, 2, 2)),
    "resnet50": lambda: _resnet(Bottleneck, (3, 4, 6, 3)),
    "resnet101": lambda: _resnet(Bottleneck, (3, 4, 23, 3)),
    "resnet50_v2": lambda: _resnet(Bottleneck, (3, 4, 6, 3), stem_channels=(64, 64, 128)),
    "resnet_narrow": lambda: _resnet(BasicBlock, (1, 1, 1, 1), widths=(32, 64, 96, 128), stem_channels=(16, 32)),
    "vgg16": _vgg16,
    "mobilenet_v2": _mobilenet_v2,
}
_TORCHVISION = {
    "resnet18": "resnet18",
    "resnet50": "resnet50",
    "resnet101": "resnet101",
    "vgg16": "vgg16_bn",
    "mobilenet_v2": "mobilenet_v2",
}
BACKBONES = tuple(_BUILDERS)


def build_backbone(name: str, *, weights: str | Path | None = None, weights_dir: str | Path | None = None) -> Backbone:
    """Build a backbone by name.

    Args:
        name: One of `BACKBONES`.
        weights: The name of torchvision weights (``IMAGENET1K_V1``), the path of a state dict in torchvision's keys (or
            in the release's deep-stem keys for ``resnet50_v2``), or None for random initialisation.
        weights_dir: Folder where a relative path is looked for too, and where torchvision's weights are kept; None =
            torch's own cache.

    Returns:
        The backbone, in training mode.

    Raises:
        ValueError: The name is unknown, or the weights do not fit it.
        FileNotFoundError: The weights are neither a torchvision name nor a file.
        OSError: Weights could not be downloaded.
    """
    if name not in _BUILDERS:
        raise ValueError(f"unknown backbone {name!r}; expected one of {', '.join(BACKBONES)}")
    backbone = _BUILDERS[name]()
    if weights is not None:
        load_weights(backbone, name, weights, weights_dir)
    return backbone


def load_weights(backbone: Backbone, name: str, weights: str | Path, weights_dir: str | Path | None = None) -> None:
    """Fill a backbone from torchvision weights or a file; every parameter must be found.

    Args:
        backbone: What `build_backbone` returned for the name.
        name: The backbone's name.
        weights: As in `build_backbone`.
        weights_dir: As in `build_backbone`.

    Raises:
        ValueError: Keys or shapes do not fit; the message names the first few.
        FileNotFoundError: Neither a file nor a torchvision name.
        OSError: The download failed.
    """
    state = {k: v for k, v in _read_state(name, weights, weights_dir).items() if not k.endswith("num_batches_tracked")}
    own = {k: v for k, v in backbone.state_dict().items() if not k.endswith("num_batches_tracked")}
    renamed = {_own_key(name, key): value for key, value in state.items()}
    missing = sorted(own.keys() - renamed.keys())
    wrong = sorted(k for k in own.keys() & renamed.keys() if own[k].shape != renamed[k].shape)
    if missing or wrong:
        found = f"missing {missing[:3]}" if missing else f"misshapen {wrong[:3]}"
        raise ValueError(
            f"weights {str(weights)!r} do not fit backbone {name!r}: {found} ({len(missing)} missing, {len(wrong)} "
            "misshapen); expected an ImageNet state dict of that architecture"
        )
    # Files may hold half precision (the released MobileNetV2 does): the parameters stay float32.
    backbone.load_state_dict({k: renamed[k].to(own[k].dtype) for k in own}, strict=False)


def _read_state(name: str, weights: str | Path, weights_dir: str | Path | None) -> dict[str, Tensor]:
    """The tensors that `weights` stand for: a file here, a file in `weights_dir`, or torchvision's, in this order."""
    path = Path(weights).expanduser()
    for candidate in [path] if weights_dir is None else [path, Path(weights_dir) / path]:
        if candidate.is_file():
            return _read_file(candidate)
    if name not in _TORCHVISION or path.suffix or path.parent != Path():
        raise FileNotFoundError(
            f"backbone weights {str(weights)!r} not found"
            + ("" if weights_dir is None else f", nor in {str(weights_dir)!r} (paths.weights_dir)")
            + "; expected a file"
            + (
                f" or a torchvision weights name for {name!r}"
                if name in _TORCHVISION
                else f" (torchvision has no {name!r})"
            )
            + "; set backbone.weights to a path, or to null to train from nothing"
        )
    try:
        entry = torchvision.models.get_model_weights(_TORCHVISION[name])[str(weights)]
    except KeyError:
        names = ", ".join(w.name for w in torchvision.models.get_model_weights(_TORCHVISION[name]))
        raise ValueError(
            f"unknown torchvision weights {str(weights)!r} for {name!r}; expected {names}, a file or null"
        ) from None
    try:
        # model_dir=None is torch's own cache.
        folder = None if weights_dir is None else str(weights_dir)
        return dict(entry.get_state_dict(model_dir=folder, map_location="cpu", check_hash=True, weights_only=True))
    except (OSError, RuntimeError) as error:  # RuntimeError: what came has another hash
        raise OSError(
            f"cannot download torchvision weights {weights} for {name!r} ({error}); fetch {entry.url} elsewhere and "
            "set backbone.weights=PATH, or backbone.weights=null to train from nothing"
        ) from error


def _read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict on disk, unwrapped, DDP's prefix removed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on odd files before it refuses them
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"cannot read weights {str(path)!r}: not a torch state dict ({type(error).__name__})"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"weights {str(path)!r} hold no state dict; expected a mapping of names to tensors")
    return {str(k).removeprefix("module."): v for k, v in state.items()}


_RESNET_STEM = {"conv1": "parts.0.0", "bn1": "parts.0.1"}
_RESNET_DEEP_STEM = {
    "conv1": "parts.0.0", "bn1": "parts.0.1", "conv2": "parts.0.3",
    "bn2": "parts.0.4", "conv3": "parts.0.6", "bn3": "parts.0.7",
}  # fmt: skip


def _own_key(name: str, key: str) -> str:
    """Our key for a key of torchvision (or of the ImageNet deep-stem ResNet-50 the release starts from)."""
    head, _, rest = key.partition(".")
    if name.startswith("resnet"):
        stem = _RESNET_DEEP_STEM if name == "resnet50_v2" else _RESNET_STEM
        if head in stem:
            return f"{stem[head]}.{rest}"
        if head.startswith("layer") and head[5:].isdigit():
            # The release counts its stem as layer0; torchvision's layers are 1..4.
            return f"parts.{head[5:]}.{rest}"
        return key
    if head != "features":
        return key
    index, _, rest = rest.partition(".")
    for part, (low, high) in enumerate(pairwise(_VGG16_BOUNDS if name == "vgg16" else _MOBILENET_BOUNDS)):
        if low <= int(index) < high:
            return f"parts.{part}.{int(index) - low}.{rest}"
    return key
