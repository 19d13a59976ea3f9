"""Okabe and Ito's palette: told apart with any of the common colour-vision deficiencies."""

from __future__ import annotations

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"

# RGB in 0..255.
TRUTH = (0, 158, 115)  # green
PREDICTION = (213, 94, 0)  # vermilion
