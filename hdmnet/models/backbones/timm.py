"""Every model of timm that gives features, as a backbone.

Dimension letters: B batch, H W input pixels, C_l h_l w_l channels and size of level l.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from hdmnet.models.backbones.base import Backbone, FeatureInfo
from hdmnet.models.backbones.module_outputs import ModuleOutputs, find_unneeded
from hdmnet.models.backbones.padding import pad_first
from hdmnet.models.backbones.weights import PACKAGES, find_file, read_package, read_state

HUB = "hf-hub:"  # in front of a repository of the Hugging Face hub


class TimmBackbone(Backbone):
    """A model of timm.

    A vision transformer gives the outputs of several blocks, all at one stride and through its last normalisation;
    class and register tokens are dropped, position embeddings resized to the picture.

    Args:
        model: As in `timm.list_models()`.
        name: What results call it.
        levels: Which features come out, finest first: numbers of timm's own levels (`feature_info`), or names of
            modules, e.g. `blocks.5` or `layer3.2`; None: the last three, of a ViT three spread evenly.
        weights: "default": timm's; one of its tags; `hf-hub:` and a repository of the hub; one of `PACKAGES`; a file in
            timm's keys or in those that timm converts, also safetensors; None: random.
        weights_dir: Folder where a relative path is looked for too, and where downloaded weights are kept.
        output_stride: 8 or 16: dilate where the model can; None: its own.
        img_size: The side of the pictures, of models that are made for one size and cannot change it.
        frozen: No weight learns, and normalisation and dropout stay as in evaluation, whatever `train()` says.

    Raises:
        ValueError: timm is missing, has no such model, weights, level or option, or the weights do not fit.
        FileNotFoundError: The file of the weights is not there, or the package is not installed.
        OSError: Weights could not be downloaded.
    """

    def __init__(
        self,
        model: str,
        *,
        name: str | None = None,
        levels: Sequence[int | str] | None = None,
        weights: str | Path | None = None,
        weights_dir: str | Path | None = None,
        output_stride: int | None = None,
        img_size: int | None = None,
        frozen: bool = True,
    ) -> None:
        super().__init__()
        self._indices: list[int] | None = None  # of timm's own levels; else positions of modules whose outputs are kept
        self._positions: list[int] = []
        timm = _import_timm()
        _check_name(timm, model, name)
        if levels is not None and not isinstance(levels, list | tuple):
            raise ValueError(f"backbone.levels={levels}: expected a list of numbers or names of levels, or null")
        try:
            with torch.device("meta"):
                skeleton = timm.create_model(model, output_stride=output_stride, img_size=img_size)
            known = inspect.signature(type(skeleton).__init__).parameters
            resizing = {"dynamic_img_size": True, "strict_img_size": False}  # ViTs; Swin of some versions
            arguments: dict[str, Any] = {key: value for key, value in resizing.items() if key in known}
            resizes = bool(arguments) or not skeleton.pretrained_cfg.get("fixed_input_size")
            side = img_size or skeleton.pretrained_cfg["input_size"][-1]
            arguments |= {"output_stride": output_stride, "img_size": img_size}
            net = _create(timm, model, skeleton, weights, weights_dir, arguments)
            found = [_find_level(net, level) for level in (_three_levels(net) if levels is None else levels)]
            if all(isinstance(level, int) for level in found):
                self._take_levels(net, cast("list[int]", found))
            else:
                names = [net.feature_info[one]["module"] if isinstance(one, int) else one for one in found]
                self._take_modules(net, skeleton, names, side)
        except (AssertionError, IndexError, NotImplementedError, RuntimeError, TypeError) as error:
            raise ValueError(f"timm cannot make {model!r} so: {' '.join(str(error).split())}") from error
        pad_first(self)
        self._side = side
        self.multiple_of = max(info.stride for info in self.feature_info) if resizes else side
        self.frozen = frozen
        if frozen:
            self.requires_grad_(False)
            self.train(False)

    def train(self, mode: bool = True) -> TimmBackbone:
        """Switch the mode; a frozen one stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) float, normalised → one (B, C_l, h_l, w_l) float a level."""
        levels = self._run(images)
        if not torch.compiler.is_compiling():  # an exported graph has sizes that are not known yet
            self._check_shapes(images, levels)
        return tuple(levels)

    def take(self, positions: Sequence[int]) -> None:
        """Give only some of the levels from now on, those at these positions of `feature_info`."""
        if self._indices is not None:
            self._take_levels(self.model, [self._indices[position] for position in positions])
        else:
            self._positions = [self._positions[position] for position in positions]
            self.feature_info = tuple(self.feature_info[position] for position in positions)

    def tap(self, layers: Sequence[int], *, before_relu: bool = False) -> None:
        """Give the features of every block of some layers from now on; a hierarchy's last four stages are 1 to 4.

        Args:
            layers: Of these, finest first.
            before_relu: Only where no ReLU closes a block: then there is nothing to do.

        Raises:
            ValueError: The network has no such layers or blocks, or a ReLU closes them.
        """
        net: Any = self.model
        name = type(net).__name__
        if self._indices is None:
            raise ValueError("every_block=True: backbone.levels names what comes out; expected null")
        if _is_flat(net):
            raise ValueError(
                f"every_block=True: all of {name} has one stride; expected a hierarchy, e.g. Swin or ConvNeXt"
            )
        stages = dict(zip((4, 3, 2, 1), reversed(list(net.feature_info)), strict=False))
        if not layers or list(layers) != sorted(set(layers)) or not set(layers) <= stages.keys():
            raise ValueError(f"layers={list(layers)}: {name} has {sorted(stages)}; expected some, in this order")
        blocks = [(layer, block) for layer in layers for block in _find_blocks(net, stages[layer]["module"])]
        closing = [block for _, block in blocks if any(type(x) is nn.ReLU for x in net.get_submodule(block).children())]
        if before_relu and closing:
            raise ValueError(
                f"before_relu=True: timm's {name} closes its blocks by a ReLU; expected torchvision's, e.g. resnet50"
            )
        skeleton = copy.deepcopy(net).to("meta")
        self._indices = None
        self._take_modules(net, skeleton, [block for _, block in blocks], self._side)
        pairs = zip(self.feature_info, blocks, strict=True)
        self.feature_info = tuple(replace(info, layer=layer) for info, (layer, _) in pairs)

    def _run(self, images: Tensor) -> list[Tensor]:
        net: Any = self.model
        if self._indices is not None:
            levels = net.forward_intermediates(images, indices=self._indices, norm=self._norm, intermediates_only=True)
            return cast("list[Tensor]", levels)
        outputs = net(images)
        levels = [outputs[position] for position in self._positions]
        return [level.permute(0, 3, 1, 2).contiguous() for level in levels] if self._channels_last else levels

    def _check_shapes(self, images: Tensor, levels: Sequence[Tensor]) -> None:
        """Some networks of timm cut or pad what they get: their features would lie elsewhere than those of others."""
        height, width = images.shape[2:]
        expected = [(info.channels, height // info.stride, width // info.stride) for info in self.feature_info]
        found = [tuple(level.shape[1:]) for level in levels]
        if found != expected:
            raise ValueError(
                f"timm's {type(self.model).__name__} turns {height}x{width} pixels into features {found}, which do not "
                f"fit its strides; expected {expected}: take another backbone.model"
            )

    def _take_levels(self, net: Any, indices: list[int]) -> None:
        """Keep what gives these of timm's own levels; sets model and feature_info."""
        if not indices or indices != sorted(set(indices)):
            names = [info["module"] for info in net.feature_info]
            raise ValueError(
                f"backbone.levels={[names[index] for index in indices]}: expected some, each once, in the order of the "
                f"network: {', '.join(names)}"
            )
        own = [net.feature_info[index] for index in indices]
        self._norm = _is_flat(net)
        key = "num_chs_norm" if self._norm and "num_chs_norm" in own[0] else "num_chs"  # SAM's norm is a projection
        self.feature_info = tuple(FeatureInfo(info[key], int(info["reduction"])) for info in own)
        self._indices = net.prune_intermediate_layers(indices, prune_norm=not self._norm, prune_head=True)
        self.model = net

    def _take_modules(self, net: Any, skeleton: nn.Module, names: list[str], side: int) -> None:
        """As `_take_levels`, of modules that timm does not count as levels; their shapes are seen on the skeleton."""
        self._positions = list(range(len(names)))
        self._channels_last = str(getattr(net, "output_fmt", "NCHW")) == "NHWC"
        try:
            with torch.device("meta"), torch.inference_mode(False), torch.no_grad():
                images = torch.empty(1, 3, side, side)
                unneeded = find_unneeded(skeleton, names, images)
                self.model = ModuleOutputs(skeleton, names, unneeded)
                levels = self._run(images)
            strides = [round(side / level.shape[-1]) if level.ndim == 4 else 0 for level in levels]
            if 0 in strides or strides != sorted(strides):
                shapes = [tuple(level.shape) for level in levels]
                raise ValueError(f"expected feature maps, the finest first; found {shapes}")
        except Exception as error:  # of whatever a network does
            own = ", ".join(info["module"] for info in net.feature_info)
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"backbone.levels={names}: {reason} (timm's own levels: {own})") from error
        self.feature_info = tuple(FeatureInfo(x.shape[1], stride) for x, stride in zip(levels, strides, strict=True))
        self.model = ModuleOutputs(net, names, unneeded)


def _import_timm() -> Any:
    try:
        import timm
    except ModuleNotFoundError:
        raise ValueError("this backbone needs timm: pip install 'hdmnet[timm]'") from None
    return timm


def _check_name(timm: Any, model: str, name: str | None) -> None:
    if not timm.is_model(model):
        close = difflib.get_close_matches(model, timm.list_models(), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"backbone.model={model}: timm has no such model{hint}; timm.list_models() names them")
    if name is not None and name not in model and timm.is_model(name):
        raise ValueError(
            f"backbone.name={name} is only what results call the backbone, which is {model}; set backbone.model={name}"
        )


def _is_flat(net: Any) -> bool:
    """Whether all levels have one stride, as a ViT's."""
    return len({info["reduction"] for info in net.feature_info}) == 1


def _three_levels(net: Any) -> list[int]:
    """The last three of a hierarchy; of levels of one stride three spread evenly."""
    count = len(net.feature_info)
    return [count * i // 3 - 1 for i in (1, 2, 3)] if _is_flat(net) else list(range(count))[-3:]


def _find_blocks(net: nn.Module, stage: str) -> list[str]:
    """Names of a stage's blocks: its `blocks`, where it has some, else its children."""
    own = getattr(net.get_submodule(stage), "blocks", None)
    prefix = stage if own is None else f"{stage}.blocks"
    return [f"{prefix}.{name}" for name, _ in net.get_submodule(prefix).named_children()]


def _find_level(net: Any, level: int | str) -> int | str:
    """A level's number in timm's `feature_info`; else the name of a module."""
    names = [info["module"] for info in net.feature_info]
    if isinstance(level, int):
        if not -len(names) <= level < len(names):
            raise ValueError(f"backbone.levels: no level {level}; expected 0 to {len(names) - 1}: {', '.join(names)}")
        return level % len(names)
    if level in names:
        return names.index(level)
    modules = [name for name, _ in net.named_modules() if name]
    if level not in modules:
        close = difflib.get_close_matches(str(level), modules, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"backbone.levels: no module {level!r}{hint}; its levels are {', '.join(names)}")
    return level


def _create(
    timm: Any,
    model: str,
    skeleton: nn.Module,
    weights: str | Path | None,
    weights_dir: str | Path | None,
    arguments: dict[str, Any],
) -> Any:
    """The whole network with its weights; see `TimmBackbone` for the arguments, of timm the last one."""
    if weights is None:
        return timm.create_model(model, **arguments)
    state: dict[str, Tensor] | None = None
    file = find_file(weights, weights_dir)
    if str(weights) in PACKAGES:
        state = read_package(str(weights), skeleton.state_dict())
    elif file is not None:
        state = read_state(file, min(skeleton.state_dict()))
    if state is None:
        cache = None if weights_dir is None else os.path.expanduser(weights_dir)
        loading = {"cache_dir": cache, **_published(timm, model, str(weights))}
        try:
            return timm.create_model(model, pretrained=True, **loading, **arguments)
        except OSError as error:
            raise OSError(
                f"cannot download timm's weights for {model!r} ({type(error).__name__}); set backbone.weights=PATH, or "
                "backbone.weights=null to train from nothing"
            ) from error
    net = timm.create_model(model, num_classes=0, **arguments)
    own = net.state_dict()
    counters = {key for key in own if key.endswith("num_batches_tracked")}
    if all(key in state and state[key].shape == own[key].shape for key in own.keys() - counters):
        net.load_state_dict({key: state[key] for key in own.keys() - counters}, strict=False)
        return net
    # In another layout, or with position embeddings of another size: timm converts what it knows, and is strict.
    try:
        overlay = {"state_dict": state, "file": None}
        return timm.create_model(model, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
    except Exception as error:
        missing = sorted(own.keys() - counters - state.keys())
        found = f"{len(missing)} missing {missing[:3]}" if missing else " ".join(str(error).split())[:200]
        raise ValueError(f"weights {str(weights)!r} do not fit timm's {model!r}: {found}") from error


def _published(timm: Any, model: str, weights: str) -> dict[str, Any]:
    """Arguments of `timm.create_model` that choose weights which it downloads."""
    if weights.startswith(HUB):
        return {"pretrained_cfg_overlay": {"hf_hub_id": weights.removeprefix(HUB), "url": "", "hf_hub_filename": None}}
    if weights == "default":
        if not timm.models.is_model_pretrained(model):
            raise ValueError(f"timm has no weights for {model!r}; set backbone.weights=PATH, or null: random")
        return {}
    tags = [key.partition(".")[2] for key in timm.models.get_arch_pretrained_cfgs(model)]
    if weights not in tags:
        raise FileNotFoundError(
            f"backbone weights {weights!r} not found; expected default, null, a file, {HUB}REPOSITORY or a tag of "
            f"timm's {model!r}: {', '.join(tags)}"
        )
    return {"pretrained_cfg": weights}
