"""One-line refusals of a constructor's values; `instantiate` puts the config's key in front where it lacks it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import Any


def check_choice(name: str, value: Any, known: Sequence[str]) -> None:
    """Refuse what is not in a list.

    Args:
        name: Of the argument, as a user would set it.
        value: What was given.
        known: What may be given.

    Raises:
        ValueError: It is none of them.
    """
    if value not in known:
        close = difflib.get_close_matches(str(value), known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{name}={value}: expected {' or '.join(known)}{hint}")


def check_integer(name: str, value: Any, least: int, most: int) -> None:
    """Refuse what is no integer in [least, most]; arguments and refusal as of `check_choice`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name}={value}: expected an integer of {least} to {most}")


def check_number(name: str, value: Any, *, above: float = -math.inf, below: float = math.inf) -> None:
    """Refuse what is no number in (above, below); arguments and refusal as of `check_choice`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < below:
        limits = [f"{word} {limit:g}" for word, limit in (("above", above), ("below", below)) if math.isfinite(limit)]
        raise ValueError(f"{name}={value}: expected a number {' and '.join(limits)}".rstrip())


def check_share(name: str, value: Any) -> None:
    """Refuse what is no number in [0, 1), e.g. of a dropout; arguments and refusal as of `check_choice`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"{name}={value}: expected a number in [0, 1)")


def check_switch(name: str, value: Any) -> None:
    """Refuse what is neither true nor false; arguments and refusal as of `check_choice`."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value}: expected true or false")
