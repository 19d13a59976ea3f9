"""Okabe and Ito's palette: told apart with any of the common colour-vision deficiencies."""

from __future__ import annotations

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
YELLOW = "#F0E442"

# RGB in 0..255.
TRUTH = (0, 158, 115)  # green
PREDICTION = (213, 94, 0)  # vermilion
#: Of classes 1, 2, …: those that lie far apart come first.
CLASS_COLOURS = tuple(
    (int(code[1:3], 16), int(code[3:5], 16), int(code[5:], 16))
    for code in (VERMILION, BLUE, YELLOW, GREEN, PURPLE, SKY, ORANGE)
)


def class_colour(value: int) -> tuple[int, int, int]:
    """Colour of class `value`, from 1 on, RGB; they come again after the last, so show a class's number beside it."""
    return CLASS_COLOURS[(value - 1) % len(CLASS_COLOURS)]
