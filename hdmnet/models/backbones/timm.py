"""Every model of timm that gives features, as a backbone."""

from __future__ import annotations

import difflib
import inspect
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hdmnet.models.backbones.base import IMAGENET_MEAN, Backbone, FeatureInfo
from hdmnet.models.backbones.weights import find_file, read_state

log = logging.getLogger(__name__)


class TimmBackbone(Backbone):
    """A model of timm.

    Args:
        name: As in `timm.list_models()`.
        out_indices: Which of the model's levels come out; None: the last three, of a ViT three spread evenly.
        weights: "default": timm's, none where it has none; a tag of timm's; a state dict in timm's keys; None: random.
        weights_dir: Folder where a relative path is looked for too, and where timm's weights are kept.
        output_stride: 8 or 16: dilate where the model can; None: its own.
        img_size: The side of the pictures, of models that are made for one size and cannot change it.

    Raises:
        ValueError: timm is missing, has no such model, weights or option, or the file does not fit.
        FileNotFoundError: The file of the weights is not there.
        OSError: Weights could not be downloaded.
    """

    def __init__(
        self,
        name: str,
        *,
        out_indices: Sequence[int] | None = None,
        weights: str | Path | None = None,
        weights_dir: str | Path | None = None,
        output_stride: int | None = None,
        img_size: int | None = None,
    ) -> None:
        super().__init__()
        timm = _import_timm()
        if not timm.is_model(name):
            close = difflib.get_close_matches(name, timm.list_models(), n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"timm has no model {name!r}{hint}; timm.list_models() names them")
        arguments: dict[str, Any] = {"output_stride": output_stride, "img_size": img_size}
        try:
            with torch.device("meta"):
                skeleton = timm.create_model(name, num_classes=0, **arguments)
            known = inspect.signature(type(skeleton).__init__).parameters
            resizing = {"dynamic_img_size": True, "strict_img_size": False}  # ViTs; Swin of some versions
            arguments = {key: value for key, value in resizing.items() if key in known} | arguments
            if out_indices is None:
                out_indices = _three_levels([level["reduction"] for level in skeleton.feature_info])
            arguments |= {"features_only": True, "out_indices": tuple(out_indices)}
            loading = _weight_arguments(timm, name, skeleton, weights, weights_dir)
            self.model = _create(timm, name, **arguments, **loading)
        except (AssertionError, IndexError, NotImplementedError, RuntimeError, TypeError) as error:
            raise ValueError(f"timm cannot make {name!r} so: {' '.join(str(error).split())}") from error
        colours = self.model.pretrained_cfg
        if loading and tuple(colours["mean"]) != IMAGENET_MEAN:
            mean, std = list(colours["mean"]), list(colours["std"])
            log.warning("the weights of %s were trained with backbone.mean=%s backbone.std=%s", name, mean, std)
        info = self.model.feature_info
        strides = [int(stride) for stride in info.reduction()]
        self.feature_info = tuple(map(FeatureInfo, info.channels(), strides))
        self.multiple_of = max(strides)
        if skeleton.pretrained_cfg.get("fixed_input_size") and not resizing.keys() & arguments.keys():
            self.multiple_of = img_size or skeleton.pretrained_cfg["input_size"][-1]
        self._channels_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) float, normalised → one (B, C_l, h_l, w_l) float a level."""
        levels = self.model(images)
        return tuple(level.permute(0, 3, 1, 2).contiguous() if self._channels_last else level for level in levels)


def _import_timm() -> Any:
    try:
        import timm
    except ModuleNotFoundError:
        raise ValueError("backbone=timm needs timm: pip install 'hdmnet[timm]'") from None
    return timm


def _create(timm: Any, name: str, **arguments: Any) -> Any:
    try:
        return timm.create_model(name, **arguments)
    except OSError as error:
        raise OSError(
            f"cannot download timm's weights for {name!r} ({type(error).__name__}); set backbone.weights=PATH, or "
            "backbone.weights=null to train from nothing"
        ) from error


def _three_levels(strides: Sequence[int]) -> list[int]:
    """The last three of a hierarchy; of levels of one stride, as a ViT's, three spread evenly."""
    count = len(strides)
    return [count * i // 3 - 1 for i in (1, 2, 3)] if len(set(strides)) == 1 else list(range(count))[-3:]


def _weight_arguments(
    timm: Any, name: str, skeleton: Any, weights: str | Path | None, weights_dir: str | Path | None
) -> dict[str, Any]:
    """Arguments of `timm.create_model` that load the weights; see `TimmBackbone`."""
    if weights is None or (weights == "default" and not timm.models.is_model_pretrained(name)):
        return {}
    file = find_file(weights, weights_dir)
    if file is not None:
        state = read_state(file, min(skeleton.state_dict()))
        missing = sorted(skeleton.state_dict().keys() - state.keys())
        if missing:
            raise ValueError(
                f"weights {str(weights)!r} do not fit timm's {name!r}: {len(missing)} missing {missing[:3]}"
            )
        return {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": state}}
    arguments = {"pretrained": True, "cache_dir": None if weights_dir is None else os.path.expanduser(weights_dir)}
    if weights == "default":
        return arguments
    tags = [key.partition(".")[2] for key in timm.models.get_arch_pretrained_cfgs(name)]
    if weights not in tags:
        raise FileNotFoundError(
            f"backbone weights {str(weights)!r} not found; expected default, null, a file or a tag of timm's {name!r}: "
            + ", ".join(tags)
        )
    return arguments | {"pretrained_cfg": weights}
