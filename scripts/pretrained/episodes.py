"""Episodes of views for training, and of whole photographs for tests.

Dimension letters: S side of the network's input.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from photos import Photo, View, number_of, whole_views
from torch import Tensor

from hdmnet.data.io.arrays import IGNORE, UInt8Array

LEAST_SHARE = 0.004  # of a view that an object covers at least, to be learnt from
LEAST_AREA = 2 * 32 * 32  # pixels, at original size, in tests: PASCAL-5i's rule


@dataclass(frozen=True)
class Episode:
    """Names of the views of a query and its supports, and the class's number from 1."""

    number: int
    query: str
    supports: tuple[str, ...]


@dataclass(frozen=True)
class TestEpisode:
    """Photographs of an episode, with the views that the trunk sees of them."""

    number: int
    query: Photo
    supports: tuple[Photo, ...]
    views: tuple[View, ...]  # of the query, then of the supports


class Pool:
    """Views to learn from, by class.

    Args:
        views: The views.
        labels: (S, S) uint8 of each by its name: 0, class number from 1, 255.
        held_out: Class numbers that are ignored, in queries and supports.
    """

    def __init__(self, views: Sequence[View], labels: Mapping[str, UInt8Array], held_out: Sequence[int]) -> None:
        self.photos = {view.name: view.photos for view in views}
        self._labels = {}
        found: dict[int, list[str]] = defaultdict(list)
        for view in views:
            own = labels[view.name].copy()
            own[np.isin(own, held_out)] = IGNORE
            self._labels[view.name] = own
            areas = np.bincount(own.ravel(), minlength=256)
            for number in np.flatnonzero(areas[1:IGNORE] >= LEAST_SHARE * own.size) + 1:
                found[int(number)].append(view.name)
        # Those of one photograph cannot be both query and support.
        self.names = {
            number: names
            for number, names in sorted(found.items())
            if len(set.union(*(set(self.photos[name]) for name in names))) > 1
        }
        sizes = np.array([len(names) for names in self.names.values()], dtype=float)
        self._chances = np.sqrt(sizes) / np.sqrt(sizes).sum()  # few pictures are not to be seen too often

    def draw(self, rng: np.random.Generator, count: int, shots: int) -> list[Episode]:
        """Random episodes; a support may come twice where a class has few."""
        episodes: list[Episode] = []
        numbers = list(self.names)
        while len(episodes) < count:
            number = int(rng.choice(numbers, p=self._chances))
            query = str(rng.choice(self.names[number]))
            others = [one for one in self.names[number] if not self.photos[one] & self.photos[query]]
            if others:
                supports = rng.choice(others, shots, replace=len(others) < shots)
                episodes.append(Episode(number, query, tuple(map(str, supports))))
        return episodes

    def mask(self, name: str, number: int) -> Tensor:
        """(S, S) uint8: 1 the class, 0 all else, 255 ignored."""
        labels = self._labels[name]
        return torch.from_numpy(np.where(labels == IGNORE, np.uint8(IGNORE), np.uint8(labels == number)))


def read_class(photo: Photo, number: int) -> UInt8Array:
    """Mask (H, W) uint8 of a class at original size, 0/1/255; all of it, also below other objects."""
    values = {number_of(name): value for value, name in enumerate(photo.dataset.class_names, start=1)}
    return photo.dataset.read_class_mask(photo.image_id, values[number])


def evaluation_episodes(
    photos: Sequence[Photo], numbers: Sequence[int], count: int, shots: int, side: int, seed: int
) -> list[TestEpisode]:
    """`count` episodes a folder, of its photographs alone, its classes in turn; those with too few are left out."""
    rng = np.random.default_rng([seed, shots])
    episodes = []
    for folder in sorted({one.folder for one in photos}):
        by_class: dict[int, list[Photo]] = defaultdict(list)
        for photo in (one for one in photos if one.folder == folder):
            for value, area in photo.dataset.class_areas(photo.image_id).items():
                number = number_of(photo.dataset.class_names[value - 1])
                if number in numbers and area >= LEAST_AREA:
                    by_class[number].append(photo)
        usable = [number for number in numbers if len(by_class[number]) > shots]
        for index in range(count if usable else 0):
            number = usable[index % len(usable)]
            drawn = [by_class[number][one] for one in rng.choice(len(by_class[number]), 1 + shots, replace=False)]
            episodes.append(TestEpisode(number, drawn[0], tuple(drawn[1:]), tuple(whole_views(drawn, side))))
    return episodes
