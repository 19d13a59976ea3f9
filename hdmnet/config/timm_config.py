"""What timm knows of its models, for conf/backbone."""

from __future__ import annotations

import contextlib
from typing import Any

from omegaconf import ListConfig

_IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}  # of RGB in 0..1


def timm_pretrained_cfg(key: str, model: str, weights: Any) -> ListConfig:
    """The colours that weights of timm's were trained with: what `${timm_pretrained_cfg:…}` stands for in conf/.

    Args:
        key: "mean" or "std".
        model: As timm names it.
        weights: One of its tags; of all else what the model's default weights have.

    Returns:
        Red, green, blue, of colours in 0..1; ImageNet's where timm is missing or does not know the model, which whoever
        builds it then refuses.
    """
    try:
        from timm.models import get_pretrained_cfg
    except ModuleNotFoundError:
        return ListConfig(_IMAGENET[key])
    for name in (f"{model}.{weights}", model):
        with contextlib.suppress(RuntimeError):  # no such model or tag
            return ListConfig(list(getattr(get_pretrained_cfg(name, allow_unregistered=False), key)))
    return ListConfig(_IMAGENET[key])
