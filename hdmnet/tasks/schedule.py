"""The learning-rate schedule of both stages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.optim.lr_scheduler import LambdaLR

if TYPE_CHECKING:
    from torch.optim import Optimizer


def poly_factor(iteration: int, max_iterations: int, power: float, warmup_iterations: int = 0) -> float:
    """Factor on the learning rate: (1 - it / max) ^ power, counted from 1, so that the last step has 0.

    Before it, over `warmup_iterations`, the rate rises linearly from a tenth of its value.
    """
    if iteration < warmup_iterations:
        return 0.1 + 0.9 * iteration / warmup_iterations
    return float(max(1.0 - iteration / max_iterations, 0.0) ** power)


def poly_schedule(optimizer: Optimizer, max_iterations: int, power: float, warmup_iterations: int = 0) -> LambdaLR:
    """A scheduler, stepped every iteration, that applies `poly_factor` to every group."""
    return LambdaLR(optimizer, lambda step: poly_factor(step + 1, max_iterations, power, warmup_iterations))
