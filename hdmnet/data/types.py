"""The types that pass from the data sets to the models: an episode, a stage-1 sample, and their collation.

Dimension letters:
    B: episodes in a batch.  K: shots.  H, W: height and width of the network's square.  H0, W0: original size.
    Q, S: pictures that a batch of evaluation with reuse brings along, as queries and as supports; may be 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

import torch
from torch.utils.data import default_collate  # as torch.stack; in a worker straight into shared memory

from hdmnet.runtime.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_SingleT = TypeVar("_SingleT", "Episode", "SegmentationSample")


@dataclass
class _Pinnable:
    """A batch that the DataLoader can put in page-locked memory, though it does not look into dataclasses."""

    def pin_memory(self) -> Self:
        """Return a copy with every tensor, also those in lists, in page-locked memory."""

        def pin(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return value.pin_memory()
            return [pin(item) for item in value] if isinstance(value, list) else value

        return replace(self, **{field.name: pin(getattr(self, field.name)) for field in fields(self)})


@dataclass
class Episode(_Pinnable):
    """One episode (no B), or a collated batch of them (leading B); the same keys in training and evaluation.

    Images are uint8 RGB until the DataModule normalises them on the device to float32.

    Attributes:
        query_image: (B, 3, H, W) uint8 RGB; after the transfer float32, normalised.
        query_mask: (B, H, W) uint8; 0 background, 1 the episode's class, 255 ignore.
        support_images: (B, K, 3, H, W) uint8 RGB; after the transfer float32, normalised.
        support_masks: (B, K, H, W) uint8; 0, 1 or 255.
        class_index: (B,) int64; place of the class among the split's classes (training: base, evaluation: novel).
        query_id: Image id; collated: B of them.
        support_ids: K image ids; collated: B lists of K.
        index: (B,) int64; place of the episode in its manifest.
        seed_index: (B,) int64; which of the test seeds the episode belongs to, 0 elsewhere.
        query_mask_original: (H0, W0) uint8, 0, 1 or 255, at original size; collated: B of them, of unequal sizes.
            None in training.
        query_padding: (B, H, W) uint8; 255 where augmentation has padded the query, else 0. Only in training, and only
            for a method that takes it.
    """

    query_image: Tensor
    query_mask: Tensor
    support_images: Tensor
    support_masks: Tensor
    class_index: Tensor
    query_id: str | list[str]
    support_ids: list[str] | list[list[str]]
    index: Tensor
    seed_index: Tensor
    query_mask_original: Tensor | list[Tensor] | None = None
    query_padding: Tensor | None = None


class FeatureKey(NamedTuple):
    """What is encoded once and then reused: a picture as query, or a picture with the mask of a class as support.

    Attributes:
        image_id: The picture.
        class_value: Class (1..C) that is foreground; 0: the picture is a query.
    """

    image_id: str
    class_value: int = 0


@dataclass
class EvaluationBatch(_Pinnable):
    """Episodes of an evaluation with reuse: the pictures to encode first, then B episodes by what they are made of.

    Equal episodes, of whatever seeds, are one of the B: E episodes of the manifests in all.

    Images are uint8 RGB until the DataModule normalises them on the device to float32.

    Attributes:
        drop: Features to forget, before anything is encoded.
        new_queries: Q keys, of `query_images`.
        query_images: (Q, 3, H, W) uint8 RGB; after the transfer float32, normalised.
        new_supports: S keys, of `support_images`.
        support_images: (S, 3, H, W) uint8 RGB; after the transfer float32, normalised.
        support_masks: (S, H, W) uint8; 0, 1 or 255.
        queries: B keys.
        supports: B lists of K keys; of N-way episodes N·K.
        query_masks_original: (H0, W0) uint8, 0, 1 (.. N) or 255, at original size: one for each run of episodes of the
            same query and classes.
        mask_index: B places in `query_masks_original`, ascending.
        class_index: (B,) int64; place of the class among the novel classes.
        ways: B lists of the places of the episode's N classes among the novel classes: the K supports of the first
            stand first in `supports`, which are N·K, and masks hold the labels 1..N in this order.
        item: E places among the B, ascending.
        index: (E,) int64; place of the episode in its manifest.
        seed_index: (E,) int64; which of the test seeds the episode belongs to.
    """

    drop: list[FeatureKey]
    new_queries: list[FeatureKey]
    query_images: Tensor
    new_supports: list[FeatureKey]
    support_images: Tensor
    support_masks: Tensor
    queries: list[FeatureKey]
    supports: list[list[FeatureKey]]
    query_masks_original: list[Tensor]
    mask_index: list[int]
    class_index: Tensor
    item: list[int]
    index: Tensor
    seed_index: Tensor
    ways: list[list[int]] = field(default_factory=list)


@dataclass
class SegmentationSample(_Pinnable):
    """One image of stage 1 (no B), or a collated batch of them (leading B).

    Attributes:
        image: (B, 3, H, W) uint8 RGB; after the transfer float32, normalised.
        mask: (B, H, W) uint8; 0 background or novel, 1..num_base the base classes in order, 255 ignore.
        id: Image id; collated: B of them.
    """

    image: Tensor
    mask: Tensor
    id: str | list[str]


def collate_episodes(episodes: Sequence[Episode]) -> Episode:
    """Stack single episodes, of equal H, W and K, to a batch; masks at original size stay a list, as sizes differ.

    Returns:
        One Episode with a leading B.

    Raises:
        ValueError: If there is no episode, or only some of them hold a mask at original size.
    """
    held = sum(episode.query_mask_original is not None for episode in episodes)
    if held not in (0, len(episodes)):
        raise DatasetError(
            f"{held} of {len(episodes)} episodes hold query_mask_original; "
            "expected all or none: do not mix training and evaluation episodes"
        )
    return _collate(episodes, "episodes", lists=("query_mask_original",))


def collate_segmentation(samples: Sequence[SegmentationSample]) -> SegmentationSample:
    """Stack samples of stage 1, of equal H and W, to one with a leading B; raises ValueError if there is none."""
    return _collate(samples, "samples")


def _collate(items: Sequence[_SingleT], what: str, lists: Sequence[str] = ()) -> _SingleT:
    """Stack the tensors of single items; those of the fields in `lists`, and all else, become lists; None stays."""
    if not items:
        raise DatasetError(f"cannot collate an empty list of {what}; expected at least one")
    values = {field.name: [getattr(item, field.name) for item in items] for field in fields(items[0])}
    stacked = {
        name: default_collate(several)
        for name, several in values.items()
        if isinstance(several[0], torch.Tensor) and name not in lists
    }
    absent = {name: None for name, several in values.items() if all(value is None for value in several)}
    return replace(items[0], **(values | stacked | absent))
