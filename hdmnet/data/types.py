"""The types that pass from the data sets to the models: an episode, a stage-1 sample, and their collation.

Dimension letters:
    B: episodes in a batch.  K: shots.  H, W: height and width of the network's square.  H0, W0: original size.
    Q, S: pictures that a batch of evaluation with reuse brings along, as queries and as supports; may be 0.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch.utils.data import default_collate  # as torch.stack; in a worker straight into shared memory

from hdmnet.data.io.arrays import IGNORE
from hdmnet.runtime.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = [
    "IGNORE",
    "Episode",
    "EvaluationBatch",
    "FeatureKey",
    "SegmentationSample",
    "collate_episodes",
    "collate_segmentation",
]

_BatchT = TypeVar("_BatchT", "Episode", "EvaluationBatch", "SegmentationSample")


@dataclass
class Episode:
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

    def pin_memory(self) -> Episode:
        """Return a copy in page-locked memory; called by the DataLoader, which does not look into dataclasses."""
        return _pinned(self)


class FeatureKey(NamedTuple):
    """What is encoded once and then reused: a picture as query, or a picture with the mask of a class as support.

    Attributes:
        image_id: The picture.
        class_value: Class (1..C) that is foreground; 0: the picture is a query.
    """

    image_id: str
    class_value: int = 0


@dataclass
class EvaluationBatch:
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
        supports: B lists of K keys.
        query_masks_original: (H0, W0) uint8, 0, 1 or 255, at original size: one for each run of episodes of the same
            query and class.
        mask_index: B places in `query_masks_original`, ascending.
        class_index: (B,) int64; place of the class among the novel classes.
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

    def pin_memory(self) -> EvaluationBatch:
        """Return a copy in page-locked memory; called by the DataLoader, which does not look into dataclasses."""
        return _pinned(self)


@dataclass
class SegmentationSample:
    """One image of stage 1 (no B), or a collated batch of them (leading B).

    Attributes:
        image: (B, 3, H, W) uint8 RGB; after the transfer float32, normalised.
        mask: (B, H, W) uint8; 0 background or novel, 1..num_base the base classes in order, 255 ignore.
        id: Image id; collated: B of them.
    """

    image: Tensor
    mask: Tensor
    id: str | list[str]

    def pin_memory(self) -> SegmentationSample:
        """Return a copy in page-locked memory; called by the DataLoader, which does not look into dataclasses."""
        return _pinned(self)


def collate_episodes(episodes: Sequence[Episode]) -> Episode:
    """Stack single episodes to a batch; masks at original size stay a list, for their sizes differ.

    Args:
        episodes: B episodes without a batch dimension, with equal H, W and K.

    Returns:
        One Episode with a leading B.

    Raises:
        ValueError: If there is no episode, or only some of them hold a mask at original size.
    """
    if not episodes:
        raise DatasetError("cannot collate an empty list of episodes; expected at least one")
    originals = [e.query_mask_original for e in episodes if e.query_mask_original is not None]
    if originals and len(originals) != len(episodes):
        raise DatasetError(
            f"{len(originals)} of {len(episodes)} episodes hold query_mask_original; "
            "expected all or none: do not mix training and evaluation episodes"
        )
    return Episode(
        query_image=default_collate([e.query_image for e in episodes]),
        query_mask=default_collate([e.query_mask for e in episodes]),
        support_images=default_collate([e.support_images for e in episodes]),
        support_masks=default_collate([e.support_masks for e in episodes]),
        class_index=default_collate([e.class_index for e in episodes]),
        query_id=[e.query_id for e in episodes],  # type: ignore[misc]  # single episodes hold one id each
        support_ids=[e.support_ids for e in episodes],  # type: ignore[arg-type]
        index=default_collate([e.index for e in episodes]),
        seed_index=default_collate([e.seed_index for e in episodes]),
        query_mask_original=originals or None,  # type: ignore[arg-type]
    )


def collate_segmentation(samples: Sequence[SegmentationSample]) -> SegmentationSample:
    """Stack single samples of stage 1 to a batch.

    Args:
        samples: B samples without a batch dimension, with equal H and W.

    Returns:
        One SegmentationSample with a leading B.

    Raises:
        ValueError: If there is no sample.
    """
    if not samples:
        raise DatasetError("cannot collate an empty list of samples; expected at least one")
    return SegmentationSample(
        image=default_collate([s.image for s in samples]),
        mask=default_collate([s.mask for s in samples]),
        id=[s.id for s in samples],  # type: ignore[misc]  # single samples hold one id each
    )


def _pinned(batch: _BatchT) -> _BatchT:
    """Copy a batch with every tensor, also those in lists, in page-locked memory."""

    def pin(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.pin_memory()
        return [pin(item) for item in value] if isinstance(value, list) else value

    return replace(batch, **{field.name: pin(getattr(batch, field.name)) for field in fields(batch)})
