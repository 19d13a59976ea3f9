"""Several optimisers as one, for methods whose parts learn by different rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from functools import partial


class OptimizerPerGroup(Optimizer):
    """Optimisers that step together, each on parameter groups of its own; one state, one list of groups.

    Args:
        groups: Each with a ``name``.
        parts: Makers of the optimisers, by what the names of their groups begin with.
        weight_decay: Of makers that name none, and of groups without their own.

    Raises:
        ValueError: A group is of no part or of several, or a part has no group.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, parts: Mapping[str, partial[Optimizer]], weight_decay: float = 0.0
    ) -> None:
        names = [group["name"] for group in groups]
        owners = [[part for part in parts if name.startswith(part)] for name in names]
        if any(len(found) != 1 for found in owners) or {part for found in owners for part in found} != set(parts):
            raise ValueError(
                f"optim.optimizer.parts of {', '.join(parts)}: expected each of the groups {', '.join(names)} to begin "
                "with one of them, and each of them to have a group"
            )
        self._parts = {}
        for part, make in parts.items():
            own = [group for group in groups if group["name"].startswith(part)]
            self._parts[part] = make(own, **({"weight_decay": weight_decay} | make.keywords))  # fills in its defaults
        super().__init__(groups, {})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step all; `closure` computes loss and gradients once, as of torch's optimisers."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for name, part in self._parts.items():
            # Anew each time: state and groups are replaced when a checkpoint is loaded; the flags are of one step.
            part.state = self.state
            part.param_groups = [group for group in self.param_groups if group["name"].startswith(name)]
            vars(part).update({flag: getattr(self, flag, None) for flag in ("grad_scale", "found_inf")})
            part.step()
        return loss
