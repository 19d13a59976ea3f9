"""The rules of an evaluation: how episodes are drawn, how pictures get to the network's size, where they are scored.

Dimension letters:
    H, W: network's size.  H0, W0: original size.  h, w: size of a picture on the network's canvas, where it is padded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args, get_type_hints

import numpy as np

from hdmnet.data.io.arrays import IGNORE
from hdmnet.data.transforms import padded_size, resize_image, resize_mask
from hdmnet.runtime.errors import DatasetError

if TYPE_CHECKING:
    from hdmnet.data.transforms import UInt8

Queries = Literal["uniform", "official", "pairs", "classes", "turns"]
Supports = Literal["distinct", "repeated"]


@dataclass(frozen=True)
class EvaluationRules:
    """One of the field's protocols, by its parts (conf/protocol).

    Attributes:
        queries: See `EpisodeManifest`.
        supports: See `EpisodeManifest`.
        resize: `square`: straight to the network's size; `pad`: aspect kept, at the top left of a black canvas.
        padding: Label of the canvas outside of a padded picture: `ignore` or `background`.
        score_at: Predictions meet the truth at the query's `original` size or at the `network`'s.

    Raises:
        ValueError: Another value.
    """

    queries: Queries = "uniform"
    supports: Supports = "distinct"
    resize: Literal["square", "pad"] = "square"
    padding: Literal["ignore", "background"] = "ignore"
    score_at: Literal["original", "network"] = "original"

    def __post_init__(self) -> None:
        """Refuse other values."""
        for name, choices in get_type_hints(type(self)).items():
            if getattr(self, name) not in get_args(choices):
                raise DatasetError(f"{name}={getattr(self, name)!r}; expected one of {', '.join(get_args(choices))}")

    def image(self, image: UInt8, size: tuple[int, int]) -> UInt8:
        """A picture (H0, W0, 3) uint8 as the network sees it, (H, W, 3): `size`."""
        if self.resize == "square":
            return resize_image(image, size)
        return _on_canvas(resize_image(image, padded_size(image.shape[:2], size)), size, 0)

    def mask(self, mask: UInt8, size: tuple[int, int]) -> UInt8:
        """Its mask (H0, W0) uint8 in the same frame, (H, W): `size`."""
        if self.resize == "square":
            return resize_mask(mask, size)
        return _on_canvas(resize_mask(mask, padded_size(mask.shape, size)), size, self._outside)

    def target(self, mask: UInt8, size: tuple[int, int]) -> UInt8:
        """What the prediction is compared with, once it is brought to this size.

        Args:
            mask: (H0, W0) uint8, of the query.
            size: (H, W) of the network's input.

        Returns:
            uint8: the mask itself; the mask at the network's size; or, padded, on the canvas that the network's whole
            input is taken for, as PFENet does: for a square input one of the longer side.
        """
        if self.score_at == "network":
            return self.mask(mask, size)
        if self.resize == "square":
            return mask
        (rows, columns), (height, width) = mask.shape, size
        if height * columns <= width * rows:  # the height is what fits
            canvas = (rows, round(width * rows / height))
        else:
            canvas = (round(height * columns / width), columns)
        return _on_canvas(mask, canvas, self._outside)

    @property
    def _outside(self) -> int:
        return IGNORE if self.padding == "ignore" else 0


def _on_canvas(content: UInt8, size: tuple[int, int], fill: int) -> UInt8:
    """Put a picture (h, w, …) uint8 at the top left of one of a size (H, W)."""
    canvas = np.full((*size, *content.shape[2:]), fill, dtype=np.uint8)
    canvas[: content.shape[0], : content.shape[1]] = content
    return canvas
