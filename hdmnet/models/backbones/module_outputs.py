"""A network that gives what some of its modules compute, and does without those that run later.

Dimension letters: B batch, H W input pixels, C_l h_l w_l channels and size of level l.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class ModuleOutputs(nn.Module):
    """The outputs of named modules, in the order in which they run.

    Args:
        net: Has a method `forward_features`, as timm's networks; changed in place.
        names: Of the modules, e.g. `layer3.2`.
        unneeded: Of modules that run after the last of these, or never (`find_unneeded`): they become identities.
    """

    def __init__(self, net: nn.Module, names: Sequence[str], unneeded: Sequence[str]) -> None:
        super().__init__()
        self.net: Any = net
        self._kept = _Kept()
        for name in names:
            net.get_submodule(name).register_forward_hook(Keep(self._kept))
        for name in unneeded:
            net.set_submodule(name, nn.Identity())

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) → what each module gives, mostly (B, C_l, h_l, w_l)."""
        self._kept.outputs = []
        self.net.forward_features(images)
        outputs, self._kept.outputs = self._kept.outputs, []
        return outputs


class _Kept(threading.local):
    """What the hooks have seen in a thread; a copy, with its network, starts anew."""

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []

    def __reduce__(self) -> tuple[type[_Kept], tuple[()]]:
        return _Kept, ()


class Keep:
    """A forward hook that keeps the module's output, which is one of those asked for."""

    def __init__(self, kept: _Kept) -> None:
        self.kept = kept

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        """Keep the output."""
        self.kept.outputs.append(output)


@torch.no_grad()
def find_unneeded(net: nn.Module, names: Sequence[str], images: Tensor) -> list[str]:
    """What a network need not run for the outputs of some of its modules.

    Args:
        net: As of `ModuleOutputs`; left as it is. It is run once.
        names: Of the modules.
        images: (B, 3, H, W), may be without memory.

    Returns:
        Names of the modules that start after the last output, and of the network's own children that never run.

    Raises:
        ValueError: The modules do not run once each in this order, or what one gives is changed in place later.
    """
    started: list[str] = []
    outputs: list[tuple[str, Tensor, int, int]] = []  # with the version and the number of modules started till then

    def kept(name: str, output: Tensor) -> None:
        outputs.append((name, output, output._version, len(started)))

    hooks: list[Any] = []
    for name, module in net.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda _, __, name=name: started.append(name)))
        if name in names:
            hooks.append(module.register_forward_hook(lambda _, __, output, name=name: kept(name, output)))
    try:
        net.forward_features(images)  # type: ignore[operator]
    finally:
        for hook in hooks:
            hook.remove()
    order = [name for name, *_ in outputs]
    if order != list(names):
        raise ValueError(f"expected modules that run once each, in their order; found {order}")
    for name, output, version, _ in outputs:
        if output._version != version:
            raise ValueError(f"what {name} gives is changed in place by the next module; expected a whole block")
    later = started[outputs[-1][3] :]
    unneeded = [name for name in later if not any(name.startswith(f"{other}.") for other in later)]
    never = [name for name, _ in net.named_children() if not any(f"{one}.".startswith(f"{name}.") for one in started)]
    return unneeded + never
