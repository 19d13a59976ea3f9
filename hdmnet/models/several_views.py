"""Test-time augmentation: a method's mean answer over scales of the pictures, and over the query and its mirror image.

Dimension letters: B queries, S supports, K shots, V views, H W input pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hdmnet.models.batch import Batch
from hdmnet.models.checks import check_positive, check_switch
from hdmnet.models.method import ApartMethod, Features, FewShotMethod, Segmentation, encodes_apart, upsample

GRID = 8  # a scaled side is one more than a multiple, as the sizes of the field are (257, 473, 641)


@dataclass
class SeveralViews(Batch):
    """B pictures, as a method's features.

    Attributes:
        views: V features, scale by scale; of a query each scale also mirrored, if asked for.
        size: (H, W) of the pictures as they came.
    """

    views: list[Features]
    size: tuple[int, int]


class ViewAverage(ApartMethod):
    """A trained method that answers with its mean probability over several views of each picture.

    Args:
        method: The method.
        scales: Of height and width; query and supports are matched at the same scale.
        flip: Whether the query's mirror image is a view too.

    Raises:
        ValueError: A scale is not above 0, or there is none.
    """

    def __init__(self, method: FewShotMethod, *, scales: Sequence[float] = (1.0,), flip: bool = False) -> None:
        super().__init__()
        if not scales:
            raise ValueError("test_scales=[]: expected numbers above 0, e.g. [1.0]")
        for scale in scales:
            check_positive("test_scales", scale)
        check_switch("test_flip", flip)
        self.method, self.scales, self.flip = method, tuple(map(float, scales)), flip
        self._apart = encodes_apart(method)

    @property
    def trunk(self) -> Any:
        """The method's."""
        return getattr(self.method, "trunk", None)

    def encode_query(self, images: Tensor) -> SeveralViews:
        """Encode query pictures (B, 3, H, W) float, normalised."""
        views = []
        for scale in self.scales:
            scaled = _resize(images, scale)
            views += [self._apart.encode_query(view) for view in ([scaled, scaled.flip(3)] if self.flip else [scaled])]
        return SeveralViews(views, (images.shape[2], images.shape[3]))

    def encode_support(self, images: Tensor, masks: Tensor) -> SeveralViews:
        """Encode supports (S, 3, H, W) with masks (S, H, W), 0/1/255."""
        views = []
        for scale in self.scales:
            scaled = _resize(images, scale)
            size = (scaled.shape[2], scaled.shape[3])
            # The nearest of the finer mask: where it is refined, and where it is not, its values stay 0, 1 and 255.
            mask = F.interpolate(masks[:, None].float(), size, mode="nearest-exact")[:, 0].to(masks.dtype)
            views.append(self._apart.encode_support(scaled, mask))
        return SeveralViews(views, (images.shape[2], images.shape[3]))

    @torch.no_grad()
    def match(self, query: SeveralViews, support: SeveralViews, *, shots: int) -> Segmentation:
        """Segment B encoded queries by B·K encoded supports, those of query 0 first: probabilities (B, 2, H, W)."""
        per_scale = 2 if self.flip else 1
        total: Tensor | None = None
        likest: list[Tensor | None] = []
        for index, view in enumerate(query.views):
            answer = self._apart.match(view, support.views[index // per_scale], shots=shots)
            likest.append(answer.likeness)
            found = upsample(answer.scores.float(), query.size, align_corners=answer.align_corners)
            if answer.decided is not None:
                found = F.one_hot(answer.decided.long(), 2).permute(0, 3, 1, 2).float()
                found = upsample(found, query.size, align_corners=answer.align_corners)
            elif not answer.is_probability:
                found = found.softmax(1)
            found = found.flip(3) if index % per_scale else found
            total = found if total is None else total + found
        assert total is not None
        told = [one for one in likest if one is not None]
        mean = torch.stack(told).mean(0) if len(told) == len(likest) else None
        return Segmentation(total / len(query.views), query.size, is_probability=True, likeness=mean)


def add_views(method: FewShotMethod, scales: Sequence[float], flip: bool) -> FewShotMethod:
    """The method itself where one view is asked for, as it is; else its `ViewAverage`."""
    return method if list(scales) == [1.0] and flip is False else ViewAverage(method, scales=scales, flip=flip)


def _resize(images: Tensor, scale: float) -> Tensor:
    """Pictures (B, 3, H, W) at a scale, the sides one more than a multiple of `GRID`."""
    if scale == 1:
        return images
    size = [max(round((side * scale - 1) / GRID), 1) * GRID + 1 for side in images.shape[2:]]
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=scale < 1)
