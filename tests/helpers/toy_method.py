"""A method and a base learner of a few parameters, whose answers can be told in advance, and episodes for them."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import nn

from hdmnet.data.types import Episode
from hdmnet.models.losses import SegmentationLoss
from hdmnet.models.method import FewShotMethod, Segmentation
from hdmnet.tasks.few_shot import FewShotTask


class Painter(FewShotMethod):
    """Calls foreground what is bright in the query's first channel, and its "meta" prediction everything.

    Args:
        maps: Also give two correlation maps.
        alone: Give the final prediction only.

    Attributes:
        calls: The class indices of each call.
    """

    def __init__(self, *, maps=False, alone=False):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.head = nn.Parameter(torch.tensor(0.5))
        self.maps, self.reported = maps, ("final",) if alone else ("final", "meta")
        self.calls = []

    def forward(self, query_image, support_images, support_masks, class_index=None):
        self.calls.append(None if class_index is None else class_index.tolist())
        bright = query_image[:, 0] * self.scale
        meta = torch.stack([torch.zeros_like(bright), torch.ones_like(bright) * self.head], dim=1)
        return Segmentation(
            torch.stack([-bright, bright], dim=1),
            tuple(query_image.shape[-2:]),
            auxiliary={"meta": meta} if "meta" in self.reported else {},
            maps={"correlation": [bright[:, ::2, ::2], bright[:, ::4, ::4]]} if self.maps else {},
        )

    def parameter_groups(self, lr, *, head_lr_factor=1.0):
        return [
            {"params": [self.scale], "lr": lr, "name": "transformer"},
            {"params": [self.head], "lr": lr * head_lr_factor, "name": "head"},
        ]


def make_batch(masks, predictions, classes, *, originals=None, seeds=None):
    """Episodes of (H, W) masks, where the Painter predicts the (H, W) 0/1 predictions."""
    predictions = torch.stack([torch.as_tensor(one).float() * 2 - 1 for one in predictions])
    masks = torch.stack([torch.as_tensor(one, dtype=torch.uint8) for one in masks])
    count = len(masks)
    return Episode(
        query_image=predictions[:, None].expand(-1, 3, -1, -1).clone(),
        query_mask=masks,
        support_images=torch.zeros(count, 1, 3, *masks.shape[1:]),
        support_masks=torch.zeros(count, 1, *masks.shape[1:], dtype=torch.uint8),
        class_index=torch.tensor(classes),
        query_id=[str(i) for i in range(count)],
        support_ids=[["s"]] * count,
        index=torch.arange(count),
        seed_index=torch.tensor(seeds or [0] * count),
        query_mask_original=originals,
    )


def random_episode(index, *, spoilt=False):
    """Two episodes; spoilt: the second one's query holds a NaN."""
    image = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(index))
    if spoilt:
        image[1, 0, 0, 0] = math.nan
    mask = (torch.arange(32).view(2, 4, 4) % 3 == 0).to(torch.uint8)
    return Episode(
        query_image=image, query_mask=mask, support_images=image[:, None],
        support_masks=mask[:, None], class_index=torch.tensor([0, 1]), query_id=[f"q{index}", f"q{index}b"],
        support_ids=[["s1"], ["s2"]], index=torch.tensor([10 * index, 10 * index + 1]),
        seed_index=torch.zeros(2, dtype=torch.long),
    )  # fmt: skip


def toy_task(model=None, **options):
    """A task that can be trained; `options` are of its optimiser."""
    optimizer = partial(torch.optim.AdamW, weight_decay=0.01, **options)
    arguments = {"loss": SegmentationLoss(), "optimizer": optimizer, "groups": {"lr": 1e-4}}
    return FewShotTask(model=model or Painter(), class_names=["one", "two"], **arguments)


class TinyLearner(nn.Module):
    """The parts that the task knows, each a 1x1 convolution."""

    num_base = 2

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.pyramid_pooling, self.reduce = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.classifier = nn.Conv2d(4, 3, 1)

    def forward(self, image):
        return self.classifier(self.reduce(self.pyramid_pooling(self.backbone(image))))
