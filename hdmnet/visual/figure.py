"""Makes and writes matplotlib figures, all in one way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hdmnet.runtime.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """An empty drawing of (width, height) inches; not pyplot: no window system, no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a drawing as PNG, whole or not at all; its folder is made if needed."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
    return Path(path)
