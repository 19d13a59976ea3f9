"""A segmenter that can reuse features and whose answers do not depend on the batch, to the last bit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hdmnet.models.batch import Batch
from hdmnet.models.method import ApartMethod, Segmentation


@dataclass
class Codes(Batch):
    """One tensor with an entry an item."""

    values: Tensor


class ColourMatcher(ApartMethod):
    """Foreground is what is nearer to the supports' mean foreground colour than a threshold.

    Attributes:
        encoded: How many queries and supports were encoded in each call.
    """

    reported = ("final", "meta")

    def __init__(self, threshold: float = 0.6) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(threshold))
        self.encoded: list[tuple[str, int]] = []

    def encode_query(self, images: Tensor) -> Codes:
        self.encoded.append(("query", len(images)))
        return Codes(images.clone())

    def encode_support(self, images: Tensor, masks: Tensor) -> Codes:
        self.encoded.append(("support", len(images)))
        pairs = zip(images, masks == 1, strict=True)
        return Codes(torch.stack([image[:, mask].double().sum(1) / max(int(mask.sum()), 1) for image, mask in pairs]))

    def match(self, query: Codes, support: Codes, *, shots: int, class_index: Tensor | None = None) -> Segmentation:
        answers = []
        for picture, colours in zip(query.values, support.values.unflatten(0, (-1, shots)), strict=True):
            distance = (picture.double() - colours.mean(0)[:, None, None]).abs().sum(0).float()
            answers.append(torch.stack([distance, self.threshold.expand_as(distance)]))
        final = torch.stack(answers)
        meta = final * torch.tensor([1.0, 1.5])[:, None, None]
        return Segmentation(final, tuple(final.shape[-2:]), auxiliary={"meta": meta})
