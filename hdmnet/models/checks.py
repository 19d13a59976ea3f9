"""One-line refusals of a constructor's values: ValueErrors that name the argument as a user would set it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any


def check_choice(name: str, value: Any, known: Sequence[str]) -> None:
    """Refuse what is none of the known values."""
    if value not in known:
        close = difflib.get_close_matches(str(value), known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{name}={value}: expected {' or '.join(known)}{hint}")


def check_integer(name: str, value: Any, least: int, most: int) -> None:
    """Refuse what is no integer in [least, most]."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name}={value}: expected an integer of {least} to {most}")


def check_positive(name: str, value: Any) -> None:
    """Refuse what is no number above 0."""
    _check_number(name, value, lambda number: number > 0, "a number above 0")


def check_weight(name: str, value: Any) -> None:
    """Refuse what is no number of at least 0."""
    _check_number(name, value, lambda number: number >= 0, "a number of at least 0")


def check_share(name: str, value: Any) -> None:
    """Refuse what is no number in [0, 1), e.g. of a dropout."""
    _check_number(name, value, lambda number: 0 <= number < 1, "a number in [0, 1)")


def check_switch(name: str, value: Any) -> None:
    """Refuse what is neither true nor false."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value}: expected true or false")


def _check_number(name: str, value: Any, fits: Callable[[float], bool], expected: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not fits(value):
        raise ValueError(f"{name}={value}: expected {expected}")
