"""Looks at a few files before a run begins: those that the catalog scanned long ago may have been damaged since."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hdmnet.data.episodes.samples import permutation, read_pair

if TYPE_CHECKING:
    from hdmnet.data.catalog import CatalogView
    from hdmnet.data.datasets.base import SegmentationDataset


def check_files(dataset: SegmentationDataset, view: CatalogView, number: int, seed: int = 0) -> list[str]:
    """Decode `number` of a view's pictures, which the seed chooses, with the mask of a class each.

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
