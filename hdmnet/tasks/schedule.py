"""Learning-rate schedules: of both stages, and in steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.optim.lr_scheduler import LambdaLR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.optim import Optimizer


def poly_factor(iteration: int, max_iterations: int, power: float, warmup_iterations: int = 0) -> float:
    """Factor on the learning rate: (1 - it / max) ^ power, counted from 1, so that the last step has 0.

    Before it, over `warmup_iterations`, the rate rises linearly from a tenth of its value.
    """
    if iteration < warmup_iterations:
        return 0.1 + 0.9 * iteration / warmup_iterations
    return float(max(1.0 - iteration / max_iterations, 0.0) ** power)


def poly_schedule(
    optimizer: Optimizer, max_iterations: int, power: float, warmup_iterations: int = 0, constant: Sequence[str] = ()
) -> LambdaLR:
    """A scheduler, stepped every iteration, that applies `poly_factor` to every group.

    Those whose name begins with one of `constant` keep their rate.
    """

    def factor(step: int) -> float:
        return poly_factor(step + 1, max_iterations, power, warmup_iterations)

    if not constant:
        return LambdaLR(optimizer, factor)
    kept = [group["name"].startswith(tuple(constant)) for group in optimizer.param_groups]
    return LambdaLR(optimizer, [(lambda step: 1.0) if keep else factor for keep in kept])


def step_schedule(
    optimizer: Optimizer,
    max_iterations: int,
    parts: int,
    factor: float = 0.1,
    power: None = None,
    warmup_iterations: int = 0,
) -> LambdaLR:
    """A scheduler, stepped every iteration, that lowers every rate by `factor` from one part of the run to the next.

    Args:
        optimizer: Its rates are of the first part.
        max_iterations: Of the run, which falls into equal parts.
        parts: Their number.
        factor: Of the rate.
        power: Of the polynomial schedule, which this is not.
        warmup_iterations: As of `poly_factor`.
    """

    def rate(step: int) -> float:
        decay = factor ** min(step * parts // max_iterations, parts - 1)
        return decay * poly_factor(step, max_iterations, 0.0, warmup_iterations)

    return LambdaLR(optimizer, rate)
