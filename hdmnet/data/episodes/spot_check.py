"""Looks at a few files before a run begins: those that the catalog scanned long ago may have been damaged since."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hdmnet.data.episodes.samples import permutation, read_pair

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hdmnet.data.datasets.base import SegmentationDataset


def check_files(source: SegmentationDataset, ids: Sequence[str], number: int, seed: int = 0) -> list[str]:
    """Decode some pictures with their masks and compare their sizes.

    Args:
        source: The data set.
        ids: The images that a run will use.
        number: How many of them to look at.
        seed: Chooses which.

    Returns:
        The ids looked at.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: One cannot be read or the sizes differ; one line that names it.
    """
    chosen = [str(ids[place]) for place in permutation(seed, 0, len(ids))[:number].tolist()]
    for image_id in chosen:
        read_pair(source, image_id)
    return chosen
