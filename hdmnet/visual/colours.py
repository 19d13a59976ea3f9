"""Colours told apart with any of the common colour-vision deficiencies, RGB in 0..255."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)


TRUTH = (0, 158, 115)  # #009E73


PREDICTION = (213, 94, 0)  # #D55E00
