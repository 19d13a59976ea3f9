"""Masks of all the kinds that outlines and label formats have to bear."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from hdmnet.data.io.arrays import UInt8Array


def random_masks(number: int, num_classes: int = 1, seed: int = 0) -> Iterator[UInt8Array]:
    """Masks (H, W) uint8 of 0..`num_classes`: dust, blobs with holes, frames, one pixel, nothing, the whole picture."""
    generator = np.random.default_rng(seed)
    for turn in range(number):
        height, width = (int(side) for side in generator.integers(10, 60, 2))
        mask = np.zeros((height, width), dtype=np.uint8)
        value = int(generator.integers(1, num_classes + 1))
        if turn % 8 == 0:
            mask[generator.random((height, width)) < generator.random() / 20] = value
        elif turn % 8 == 1:
            mask[height // 4 : -1, : width // 2] = value  # touches the border
            mask[height // 2 : height // 2 + 2, 2:4] = 0
            mask[height // 2 + 2, 4] = 0  # joined to the hole at a corner
        elif turn % 8 == 2:
            mask[int(generator.integers(height)), int(generator.integers(width))] = value
        elif turn % 8 == 3:
            mask[:] = value if turn % 16 == 3 else 0
        else:
            cells = generator.random((num_classes + 1, *generator.integers(3, 9, 2))).astype(np.float32)
            cells[0] += 0.1
            several = [cv2.resize(one, (width, height), interpolation=cv2.INTER_CUBIC) for one in cells]
            mask = np.argmax(several, axis=0).astype(np.uint8)
        yield mask
