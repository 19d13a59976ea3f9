"""Augmentation of an image with its label map, on uint8, each call a pure function of its seed.

Order in the official release: scale, rotate, blur, flip, then a resize to the square (`official`) or, as the paper's
text has it, a random crop (`paper`). Labels are always taken nearest; what lies outside the picture gets the mean
colour and the label 255.

Dimension letters:
    H0, W0: size of the picture as read.  H, W: size that the network sees.
"""

from __future__ import annotations

import hashlib
import os
import random
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from hdmnet.data.io.arrays import IGNORE
from hdmnet.runtime.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    UInt8 = NDArray[np.uint8]

AUGMENTS = ("official", "paper", "pfenet", "crop", "flip", "none")
ROTATION_DEGREES = 10.0
BLUR_KERNEL = 5
#: The release gives OpenCV no sigma, which then takes (1, 4, 6, 4, 1) / 16; the weights of 1.1 are within 0.009 of it.
BLUR_SIGMA = 1.1
CROP_ATTEMPTS = 10
#: Stands for 255 in a picture's own labels where the padding, which is 255 too, must be told from them.
UNLABELLED = 254
KEPT_SHARE = 0.85  # of the foreground, by a crop of BAM, CyCTR and PFENet
PADDED_STEP = 8  # sides of pictures that are padded in evaluation are cut to its multiples, as in PFENet


def derive_seed(seed: int, index: int, role: int) -> int:
    """Hash a run's seed, an index and a role to one seed, so that neighbours get unrelated random streams.

    Args:
        seed: Seed of the run.
        index: Global index of the episode or sample.
        role: 0 for the query (or the only image), 1 + k for support k.

    Returns:
        An integer in [0, 2^64), the same on every machine.
    """
    digest = hashlib.blake2b(f"{seed}/{index}/{role}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def resize_pair(image: UInt8, mask: UInt8, size: tuple[int, int]) -> tuple[UInt8, UInt8]:
    """Resize straight to the network's size, without keeping the aspect, as the release does in evaluation.

    Args:
        image: (H0, W0, 3) uint8; bilinear.
        mask: (H0, W0) uint8 labels; nearest.
        size: (H, W).

    Returns:
        image (H, W, 3) uint8 and mask (H, W) uint8; the inputs themselves where they have the size already.
    """
    return resize_image(image, size), resize_mask(mask, size)


def resize_image(image: UInt8, size: tuple[int, int]) -> UInt8:
    """The image's part of `resize_pair`: (H0, W0, 3) uint8 → (H, W, 3)."""
    if image.shape[:2] == size:
        return image
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)  # type: ignore[return-value]


def resize_mask(mask: UInt8, size: tuple[int, int]) -> UInt8:
    """The mask's part of `resize_pair`: (H0, W0) uint8 → (H, W)."""
    if mask.shape == size:
        return mask
    return cv2.resize(mask, (size[1], size[0]), interpolation=cv2.INTER_NEAREST)  # type: ignore[return-value]


def padded_size(original: tuple[int, ...], size: tuple[int, int]) -> tuple[int, int]:
    """Size (h, w) of a picture (H0, W0) that is to fit into (H, W): as large as can be, sides cut to multiples of 8."""
    (rows, columns), (height, width) = original, size
    if height * columns <= width * rows:
        width = columns * height // rows
    else:
        height = rows * width // columns
    return max(height // PADDED_STEP, 1) * PADDED_STEP, max(width // PADDED_STEP, 1) * PADDED_STEP


class Augment(ABC):
    """Random change of one image and its labels; called with the seed that decides everything.

    Args:
        image_size: (H, W) of the result.

    Raises:
        ValueError: If a side is not positive.
    """

    def __init__(self, image_size: tuple[int, int]) -> None:
        height, width = (int(side) for side in image_size)
        if height < 1 or width < 1:
            raise DatasetError(f"image_size is {(height, width)}; expected two positive sides (H, W)")
        self.image_size = (height, width)

    @abstractmethod
    def __call__(self, image: UInt8, mask: UInt8, seed: int) -> tuple[UInt8, UInt8]:
        """Augment one image with its label map.

        Args:
            image: (H0, W0, 3) uint8 RGB.
            mask: (H0, W0) uint8 labels, 255 ignore.
            seed: Decides the result together with the inputs; nothing else does.

        Returns:
            image (H, W, 3) uint8 and mask (H, W) uint8, in the frame of the network's input.
        """


class ResizeOnly(Augment):
    """No augmentation: the resize of evaluation."""

    def __call__(self, image: UInt8, mask: UInt8, seed: int) -> tuple[UInt8, UInt8]:
        """Resize; `seed` has no effect. See the base class for shapes."""
        return resize_pair(image, mask, self.image_size)


class FlipOnly(Augment):
    """The resize, after a horizontal flip of every other image: for runs too short to profit from more."""

    def __call__(self, image: UInt8, mask: UInt8, seed: int) -> tuple[UInt8, UInt8]:
        """Flip by the seed's lowest bit (seeds are hashes), then resize. See the base class for shapes."""
        if seed & 1:
            image, mask = np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(mask[:, ::-1])
        return resize_pair(image, mask, self.image_size)


class CropOnly(Augment):
    """SSP's: a random crop at the picture's own scale, wherever the object is, and a horizontal flip of every other.

    Smaller pictures are padded at the right and the bottom, with black and the label 255.
    """

    def __call__(self, image: UInt8, mask: UInt8, seed: int) -> tuple[UInt8, UInt8]:
        """Crop, then flip by the seed's lowest bit (seeds are hashes). See the base class for shapes."""
        height, width = self.image_size
        borders = (0, max(height - mask.shape[0], 0), 0, max(width - mask.shape[1], 0))
        draw = random.Random(seed)
        top = draw.randint(0, mask.shape[0] + borders[1] - height)
        left = draw.randint(0, mask.shape[1] + borders[3] - width)
        place = np.s_[top : top + height, left : left + width]
        image = cv2.copyMakeBorder(image, *borders, cv2.BORDER_CONSTANT, value=(0, 0, 0))[place]  # type: ignore[assignment]
        mask = cv2.copyMakeBorder(mask, *borders, cv2.BORDER_CONSTANT, value=(IGNORE,))[place]  # type: ignore[assignment]
        if seed & 1:
            image, mask = image[:, ::-1], mask[:, ::-1]
        return np.ascontiguousarray(image), np.ascontiguousarray(mask)


class RandomAugment(Augment):
    """Scale, rotation, blur and flip by albumentations, then a resize or a crop to the network's size.

    Args:
        image_size: (H, W) of the result.
        scale: (low, high) of the uniform factor on both sides.
        mean: Mean colour, RGB in [0, 1]; fills what lies outside the picture.
        crop: Whether to crop (padding where smaller) in place of the last resize.
        keep: Share of the foreground, in (0, 1], that a crop should hold; None: one pixel will do.
        keep_label: The label that is this foreground; None: all but background and 255.

    Raises:
        ValueError: If the size, the scale, the mean or `keep` is out of range.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        *,
        scale: tuple[float, float],
        mean: Sequence[float],
        crop: bool,
        keep: float | None = None,
        keep_label: int | None = None,
    ) -> None:
        super().__init__(image_size)
        low, high = (float(value) for value in scale)
        if not 0 < low <= high:
            raise DatasetError(f"scale is {(low, high)}; expected 0 < low <= high, for instance (0.9, 1.1)")
        if len(mean) != 3 or not all(0 <= value <= 1 for value in mean):
            raise DatasetError(f"mean is {list(mean)}; expected three values in [0, 1], in RGB order")
        if keep is not None and not 0 < keep <= 1:
            raise DatasetError(f"keep is {keep}; expected a share in (0, 1], or None for at least one pixel")
        self.scale = (low, high)
        self.crop = crop
        self.keep, self.keep_label = keep, keep_label
        self.fill = tuple(round(255 * float(value)) for value in mean)
        self._random = random.Random(0)
        self._pipeline: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the pipeline out of the pickle: each worker builds its own at its first call."""
        return self.__dict__ | {"_pipeline": None}

    def __call__(self, image: UInt8, mask: UInt8, seed: int) -> tuple[UInt8, UInt8]:
        """Augment one image with its label map; see the base class."""
        if self._pipeline is None:
            self._pipeline = self._build_pipeline()
        self._random.seed(seed)
        changed = self._pipeline(image=image, mask=mask)
        image, mask = changed["image"], changed["mask"]
        if self.crop:
            return self._crop(image, mask)
        return resize_pair(image, mask, self.image_size)

    def _build_pipeline(self) -> Any:
        """Make the albumentations pipeline, whose every draw comes from `self._random`."""
        # Without this, the import asks a web server for the newest version.
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        import albumentations

        low, high = self.scale
        pipeline = albumentations.Compose(
            [
                albumentations.RandomScale(scale_limit=(low - 1, high - 1), interpolation=cv2.INTER_LINEAR, p=1.0),
                albumentations.Rotate(
                    limit=(-ROTATION_DEGREES, ROTATION_DEGREES),
                    border_mode=cv2.BORDER_CONSTANT,
                    fill=self.fill,
                    fill_mask=IGNORE,
                    p=0.5,
                ),
                albumentations.GaussianBlur(
                    blur_limit=(BLUR_KERNEL, BLUR_KERNEL), sigma_limit=(BLUR_SIGMA, BLUR_SIGMA), p=0.5
                ),
                albumentations.HorizontalFlip(p=0.5),
            ]
        )
        # Not set_random_seed: it starts every transform from the same seed, so that an image would be flipped exactly
        # when it is blurred and rotated. One generator for all, reseeded in each call, is independent and cheaper.
        pipeline.set_random_state(np.random.default_rng(0), self._random)
        return pipeline

    def _crop(self, image: UInt8, mask: UInt8) -> tuple[UInt8, UInt8]:
        """Crop at random, of ten draws the first that keeps enough foreground, else the one that keeps most."""
        image, mask = _pad(image, mask, self.image_size, self.fill)
        height, width = self.image_size
        wanted = (mask != 0) & (mask < UNLABELLED) if self.keep_label is None else mask == self.keep_label
        total = int(np.count_nonzero(wanted))
        enough = 1.0 if self.keep is None else self.keep * total
        best, best_kept = (0, 0), -1
        for _ in range(CROP_ATTEMPTS):
            top = self._random.randint(0, mask.shape[0] - height)
            left = self._random.randint(0, mask.shape[1] - width)
            kept = int(np.count_nonzero(wanted[top : top + height, left : left + width]))
            if kept > best_kept:
                best, best_kept = (top, left), kept
            if kept >= enough or total == 0:
                break
        rows, columns = slice(best[0], best[0] + height), slice(best[1], best[1] + width)
        return image[rows, columns], mask[rows, columns]


class BaseLearnerAugment(RandomAugment):
    """Augmentation of stage 1 (BAM's): scale 0.5 to 2, then a crop that keeps 85 % of the foreground where possible.

    In BAM's release this foreground is label 1 alone, the first base class: `keep_label=1`.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        *,
        mean: Sequence[float],
        scale: tuple[float, float] = (0.5, 2.0),
        keep: float = KEPT_SHARE,
        keep_label: int | None = None,
    ) -> None:
        super().__init__(image_size, scale=scale, mean=mean, crop=True, keep=keep, keep_label=keep_label)


def build_augment(
    name: str, *, image_size: tuple[int, int], scale: tuple[float, float], mean: Sequence[float]
) -> Augment:
    """Make the augmentation of stage 2 by its name.

    Args:
        name: `official` (ends in a resize), `paper` (ends in a random crop), `pfenet` (in one that keeps 85 % of the
            foreground where possible), `crop`, `flip` or `none`.
        image_size: (H, W) of the result.
        scale: (low, high); the release has (0.9, 1.1) on PASCAL and (0.8, 1.25) on COCO.
        mean: Mean colour, RGB in [0, 1].

    Raises:
        ValueError: If the name is unknown or an argument is out of range.
    """
    if name not in AUGMENTS:
        raise DatasetError(f"augment is {name!r}; expected one of {', '.join(AUGMENTS)}")
    plain: dict[str, Callable[[tuple[int, int]], Augment]] = {"none": ResizeOnly, "flip": FlipOnly, "crop": CropOnly}
    if name in plain:
        return plain[name](image_size)
    keep = KEPT_SHARE if name == "pfenet" else None
    return RandomAugment(image_size, scale=scale, mean=mean, crop=name != "official", keep=keep)


def _pad(image: UInt8, mask: UInt8, size: tuple[int, int], fill: tuple[int, ...]) -> tuple[UInt8, UInt8]:
    """Pad evenly to at least `size` (H, W): the image with `fill`, the mask with 255."""
    missing_height = max(size[0] - mask.shape[0], 0)
    missing_width = max(size[1] - mask.shape[1], 0)
    if missing_height == 0 and missing_width == 0:
        return image, mask
    top, left = missing_height // 2, missing_width // 2
    borders = (top, missing_height - top, left, missing_width - left)
    return (
        cv2.copyMakeBorder(image, *borders, cv2.BORDER_CONSTANT, value=fill),  # type: ignore[return-value]
        cv2.copyMakeBorder(mask, *borders, cv2.BORDER_CONSTANT, value=(IGNORE,)),
    )
