"""Data sets in torch's sense: a global index in, one decoded `Episode` or `SegmentationSample` out, nothing remembered.

Dimension letters:
    K: shots.  H, W: height and width of the network's square.  H0, W0: original size.
"""

from __future__ import annotations

import bisect
import itertools
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from hdmnet.data.datasets.skipped_files import STRIDE, UnreadableError, first_readable
from hdmnet.data.episodes.rules import EvaluationRules
from hdmnet.data.io.arrays import IGNORE
from hdmnet.data.transforms import UNLABELLED, derive_seed, resize_pair
from hdmnet.data.types import Episode, SegmentationSample
from hdmnet.runtime.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hdmnet.data.catalog import CatalogView
    from hdmnet.data.datasets.base import SegmentationDataset
    from hdmnet.data.datasets.skipped_files import SkippedFiles
    from hdmnet.data.episodes.manifest import EpisodeSpec, Manifest
    from hdmnet.data.transforms import Augment, UInt8

#: Role in `derive_seed` of a pass's permutation; the images' roles start at 0.
_PERMUTATION_ROLE = -1

_MOST_ATTEMPTS = 10  # of an augmentation that loses a support's object


def read_pair(
    dataset: SegmentationDataset,
    image_id: str,
    class_value: int | Sequence[int],
    *,
    ignored: Sequence[int] = (),
    skip: bool = False,
) -> tuple[UInt8, UInt8]:
    """Read an image with its mask and check that they fit.

    Args:
        dataset: The data set.
        image_id: Which image.
        class_value: Class whose mask is wanted; several: a map that labels them 1, 2, … in their order.
        ignored: Classes whose pixels are 255, where no class that is wanted lies on them.
        skip: What cannot be read may be skipped.

    Returns:
        image (H0, W0, 3) uint8 RGB and mask (H0, W0) uint8, 0, the label from 1 on, or 255.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file cannot be read, or the two sizes differ; an `UnreadableError` where it may be skipped.
    """
    try:
        image = dataset.read_image(image_id)
        if isinstance(class_value, int):
            mask = dataset.read_class_mask(image_id, class_value)
        else:
            mask = dataset.read_label_map(image_id, class_value)
        dataset.check_mask(image_id, mask, image.shape[:2])
        if ignored:
            mask = np.where((mask == 0) & dataset.find_classes(image_id, ignored), np.uint8(IGNORE), mask)
    except (ValueError, OSError) as error:
        if not skip:
            raise
        raise UnreadableError(str(error)) from None
    return image, mask


def read_labels(dataset: SegmentationDataset, image_id: str, classes: Sequence[int]) -> UInt8:
    """Put the masks of some classes into one, as `SegmentationDataset.read_label_map` does; of one class its own.

    What is 255 in the mask of any of them is 255, unless it is another one's.

    Returns:
        (H0, W0) uint8: 0, the classes' labels 1, 2, … in their order, or 255; on top lies the one with less area.
    """
    masks = [dataset.read_class_mask(image_id, value) for value in classes]
    if len(masks) == 1:
        return masks[0]
    areas = [int((mask == 1).sum()) for mask in masks]
    labels = np.where(np.any([mask == IGNORE for mask in masks], axis=0), np.uint8(IGNORE), np.uint8(0))
    for place in sorted(range(len(masks)), key=lambda place: -areas[place]):
        labels[masks[place] == 1] = place + 1
    return labels


def permutation(seed: int, number: int, length: int) -> np.ndarray:
    """Order `length` items at random by ranking raw Philox words, whose stream numpy keeps over its versions.

    Args:
        seed: Seed of the run.
        number: Which permutation, e.g. which pass over the images.
        length: Number of items.

    Returns:
        (length,) int64, each of 0..length-1 once.
    """
    words = np.random.Philox(key=derive_seed(seed, number, _PERMUTATION_ROLE)).random_raw(length)
    return np.argsort(words, kind="stable")


def hold_out_images(view: CatalogView, share: float, seed: int = 0) -> list[str]:
    """Choose images at random, at most that share of those of each class, rounded down, and never a single one.

    Returns:
        Their ids, of which no class loses more; a class with few images loses none.
    """
    room = {value: int(share * len(view.images_of(value))) for value in view.classes}
    room = {value: number if number > 1 else 0 for value, number in room.items()}
    chosen = []
    for position in permutation(seed, 0, len(view)).tolist():
        values = view.classes_of(position).tolist()
        if all(room[value] > 0 for value in values):
            chosen.append(str(view.ids[position]))
            room |= {value: room[value] - 1 for value in values}
    return chosen


def check_files(dataset: SegmentationDataset, view: CatalogView, number: int, seed: int = 0) -> list[str]:
    """Decode `number` of a view's pictures, which the seed chooses, with the mask of a class each.

    So before a run begins: what the catalog scanned long ago may have been damaged since.

    Returns:
        The ids looked at.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: One cannot be read or the sizes differ; one line that names it.
    """
    chosen = permutation(seed, 0, len(view))[:number].tolist()
    for position in chosen:
        read_pair(dataset, str(view.ids[position]), int(view.classes_of(position)[0]))
    return [str(view.ids[position]) for position in chosen]


class _Episodes(Dataset[Episode]):
    """What training and evaluation share: from decoded pairs to an `Episode`."""

    def __init__(self, dataset: SegmentationDataset, classes: Sequence[int]) -> None:
        self.dataset = dataset
        self._class_index = {value: index for index, value in enumerate(classes)}

    def _pack(
        self, spec: EpisodeSpec, query: tuple[UInt8, UInt8], supports: list[tuple[UInt8, UInt8]], *, seed_index: int = 0
    ) -> Episode:
        """Build the episode from the query's and the supports' images (H, W, 3) and masks (H, W)."""
        return Episode(
            query_image=_image_tensor(query[0]),
            query_mask=_mask_tensor(query[1]),
            support_images=torch.stack([_image_tensor(image) for image, _ in supports]),
            support_masks=torch.stack([_mask_tensor(mask) for _, mask in supports]),
            class_index=torch.tensor(self._class_index[spec.class_value]),
            query_id=spec.query_id,
            support_ids=list(spec.support_ids),
            index=torch.tensor(spec.index),
            seed_index=torch.tensor(seed_index),
        )


class TrainEpisodes(_Episodes):
    """Training episodes: query and each support augmented apart, with seeds of their own.

    Args:
        dataset: The data set.
        manifest: Unbounded manifest; any index >= 0 is an episode.
        classes: Its classes, in the order of `Episode.class_index`.
        augment: Makes (H, W) pairs.
        seed: Seed of the augmentation.
        ignored: Class values whose pixels are 255 in every mask.
        skips: Lists what cannot be read, in whose place another episode is drawn; None: it is an error.
        marks_padding: Fill `Episode.query_padding`.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        manifest: Manifest,
        *,
        classes: Sequence[int],
        augment: Augment,
        seed: int,
        ignored: Sequence[int] = (),
        skips: SkippedFiles | None = None,
        marks_padding: bool = False,
    ) -> None:
        super().__init__(dataset, classes)
        self.manifest = manifest
        self.augment = augment
        self.seed = seed
        self.ignored = tuple(ignored)
        self.skips = skips
        self.marks_padding = marks_padding

    def __getitem__(self, index: int) -> Episode:
        """Return the episode of a global index, which keeps counting over the epochs."""
        return first_readable(index, self._episode, self.skips)

    def _episode(self, index: int) -> Episode:
        spec = self.manifest[index]
        pairs = []
        for role, image_id in enumerate((spec.query_id, *spec.support_ids)):
            image, mask = read_pair(
                self.dataset, image_id, spec.class_value, ignored=self.ignored, skip=self.skips is not None
            )
            if role == 0 and self.marks_padding:
                mask = np.where(mask == IGNORE, np.uint8(UNLABELLED), mask)
            pair = self.augment(image, mask, derive_seed(self.seed, index, role))
            if role > 0 and not (pair[1] == 1).any():
                pair = self._augment_again(image, mask, index, role)
                _refuse_empty(self.dataset, image_id, spec.class_value, pair[1])
            pairs.append(pair)
        episode = self._pack(spec, pairs[0], pairs[1:])
        if self.marks_padding:
            episode.query_padding = torch.where(episode.query_mask == IGNORE, episode.query_mask, 0)
            episode.query_mask[episode.query_mask == UNLABELLED] = IGNORE
        return episode

    def _augment_again(self, image: UInt8, mask: UInt8, index: int, role: int) -> tuple[UInt8, UInt8]:
        """Augment a support whose object got lost by further seeds until it does not; in the end, resize it."""
        for attempt in range(1, _MOST_ATTEMPTS):
            pair = self.augment(image, mask, derive_seed(self.seed, index + attempt * STRIDE, role))
            if (pair[1] == 1).any():
                return pair
        return resize_pair(image, mask, self.augment.image_size)


class EvalEpisodes(_Episodes):
    """Evaluation episodes, of one or more manifests (seeds) one after the other.

    Args:
        dataset: The data set.
        manifests: One a seed.
        classes: Their classes, in the order of `Episode.class_index`.
        image_size: (H, W) that everything is resized to.
        rules: How, and what the prediction is compared with.
        support_mask: `given`, or `ones`: every support mask all 1, the paper's control of Table 8.
        labelled: Classes that a query's mask labels 1, 2, …, whatever the episode asks for; None: those of the episode.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        manifests: Sequence[Manifest],
        *,
        classes: Sequence[int],
        image_size: tuple[int, int],
        rules: EvaluationRules | None = None,
        support_mask: str = "given",
        labelled: Sequence[int] | None = None,
    ) -> None:
        super().__init__(dataset, classes)
        self.labelled = None if labelled is None else tuple(labelled)
        self.manifests = tuple(manifests)
        self.image_size = image_size
        self.rules = EvaluationRules() if rules is None else rules
        self.support_mask = support_mask
        self._ends = list(itertools.accumulate(len(manifest) for manifest in self.manifests))

    def __len__(self) -> int:
        """Number of episodes over all seeds."""
        return self._ends[-1]

    def __getitem__(self, index: int) -> Episode:
        """Return an episode; `Episode.index` counts within its seed."""
        seed_index, spec = self.locate(index)
        image, mask = read_pair(self.dataset, spec.query_id, spec.class_value)
        supports = [self._read_support(one, spec.class_value) for one in spec.support_ids]
        episode = self._pack(spec, self._resize(image, mask), supports, seed_index=seed_index)
        episode.query_mask_original = _mask_tensor(self.rules.target(mask, self.image_size))
        if self.support_mask == "ones":
            episode.support_masks.fill_(1)
        return episode

    def locate(self, index: int) -> tuple[int, EpisodeSpec]:
        """Which seed an episode belongs to, and the episode by ids."""
        seed_index = bisect.bisect_right(self._ends, index)
        return seed_index, self.manifests[seed_index][index - (self._ends[seed_index - 1] if seed_index else 0)]

    def class_index(self, class_value: int) -> int:
        """Place of a class among the classes."""
        return self._class_index[class_value]

    def query_picture(self, image_id: str) -> Tensor:
        """A query as (3, H, W) uint8 RGB, as in `Episode.query_image`."""
        return _image_tensor(self.rules.image(self.dataset.read_image(image_id), self.image_size))

    def support_pair(self, image_id: str, class_value: int) -> tuple[Tensor, Tensor]:
        """A support as (3, H, W) uint8 RGB with its mask (H, W) uint8, 0, 1 or 255, as in an `Episode`."""
        image, mask = self._read_support(image_id, class_value)
        binary = _mask_tensor(mask)
        return _image_tensor(image), binary.fill_(1) if self.support_mask == "ones" else binary

    def _read_support(self, image_id: str, class_value: int) -> tuple[UInt8, UInt8]:
        """A support (H, W, 3) uint8 with its mask (H, W) uint8, which is not empty."""
        image, mask = self._resize(*read_pair(self.dataset, image_id, class_value))
        _refuse_empty(self.dataset, image_id, class_value, mask)
        return image, mask

    def _resize(self, image: UInt8, mask: UInt8) -> tuple[UInt8, UInt8]:
        """A picture and its mask at the network's size."""
        return self.rules.image(image, self.image_size), self.rules.mask(mask, self.image_size)

    def query_mask_original(self, image_id: str, *classes: int) -> Tensor:
        """A query's mask, at the size at which it is scored: its own, as a rule.

        Returns:
            (H0, W0) uint8: 0, the labels 1, 2, … of the classes in their order, or of `labelled`, or 255.
        """
        if self.labelled is not None:
            mask = self.dataset.read_label_map(image_id, self.labelled)
            return _mask_tensor(self.rules.target(mask, self.image_size))
        return _mask_tensor(self.rules.target(read_labels(self.dataset, image_id, classes), self.image_size))


class TrainSegmentation(Dataset[SegmentationSample]):
    """Stage-1 training: all images of the fold in one shuffled pass after the other.

    Args:
        dataset: The data set.
        ids: The fold's training images.
        classes: The base classes, labelled 1, 2, …; pixels of others are background.
        augment: Makes (H, W) pairs.
        seed: Seed of the order and of the augmentation.
        ignored: Class values whose pixels are 255 instead.
        skips: Lists what cannot be read, in whose place another image is drawn; None: it is an error.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        ids: Sequence[str],
        *,
        classes: Sequence[int],
        augment: Augment,
        seed: int,
        ignored: Sequence[int] = (),
        skips: SkippedFiles | None = None,
    ) -> None:
        self.dataset = dataset
        self.ids = np.asarray(ids)
        self.classes = tuple(classes)
        self.ignored = tuple(ignored)
        self.augment = augment
        self.seed = seed
        self.skips = skips
        self._pass: tuple[int, np.ndarray] | None = None

    def __getitem__(self, index: int) -> SegmentationSample:
        """Return the sample of a global index, which keeps counting over the epochs."""
        return first_readable(index, self._sample, self.skips)

    def _sample(self, index: int) -> SegmentationSample:
        number, position = divmod(index, len(self.ids))
        if self._pass is None or self._pass[0] != number:  # only a memory of what `permutation` gives anyway
            self._pass = (number, permutation(self.seed, number, len(self.ids)))
        image_id = str(self.ids[self._pass[1][position]])
        pair = read_pair(self.dataset, image_id, self.classes, ignored=self.ignored, skip=self.skips is not None)
        image, mask = self.augment(*pair, derive_seed(self.seed, index, 0))
        return SegmentationSample(_image_tensor(image), _mask_tensor(mask), image_id)


class EvalSegmentation(Dataset[SegmentationSample]):
    """Stage-1 validation: images resized to the square, in list order.

    Args:
        dataset: The data set.
        ids: Images to use.
        classes: The base classes, labelled 1, 2, …; pixels of others are background.
        image_size: (H, W).
        ignored: Class values whose pixels are 255 instead.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        ids: Sequence[str],
        *,
        classes: Sequence[int],
        image_size: tuple[int, int],
        ignored: Sequence[int] = (),
    ) -> None:
        self.dataset = dataset
        self.ids = np.asarray(ids)
        self.classes = tuple(classes)
        self.image_size = image_size
        self.ignored = tuple(ignored)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ids)

    def __getitem__(self, index: int) -> SegmentationSample:
        """Return the image at a place of the list."""
        image_id = str(self.ids[index])
        pair = read_pair(self.dataset, image_id, self.classes, ignored=self.ignored)
        image, mask = resize_pair(*pair, self.image_size)
        return SegmentationSample(_image_tensor(image), _mask_tensor(mask), image_id)


def _refuse_empty(dataset: SegmentationDataset, image_id: str, class_value: int, mask: UInt8) -> None:
    """Refuse a support without a pixel of its class, which the manifest would have barred had it been told."""
    if not (mask == 1).any():
        raise DatasetError(
            f"{dataset.mask_location(image_id)}: nothing of {dataset.class_names[class_value - 1]} is left at the "
            f"network's {mask.shape[0]}x{mask.shape[1]}, so it is no support: raise dataset.image_size or "
            "dataset.min_area"
        )


def _image_tensor(image: UInt8) -> Tensor:
    """(H, W, 3) uint8 to a tensor (3, H, W) uint8 of its own memory."""
    planes = np.empty((3, *image.shape[:2]), dtype=np.uint8)
    cv2.split(image, list(planes))  # ten times as fast as a transpose in NumPy or torch
    return torch.from_numpy(planes)


def _mask_tensor(mask: UInt8) -> Tensor:
    """(H, W) uint8 to a tensor (H, W) uint8 of its own memory."""
    return torch.from_numpy(mask.copy())
