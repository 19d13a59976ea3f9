"""Chooses what a SHAPES-5i picture shows: classes, poses, colours, clutter, light.

Every choice comes from raw words of numpy's Philox counter generator, keyed by (version, seed, fold, split) and counted
by the picture's index; `Generator` methods are avoided, as their streams may change between numpy versions.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hdmnet.data.class_split import SplitRule, split_classes
from hdmnet.data.datasets.base import Split
from hdmnet.data.datasets.shapes.render import Patch, Scene
from hdmnet.data.datasets.shapes.tables import (
    BLOTCHED,
    CENTRED,
    CLOUDED,
    NOISE_SIZE,
    PATTERNS,
    PLAIN,
    SHARDS,
    SILHOUETTES,
)

NUM_FOLDS = 4
GENERATOR_VERSION = "shapes-1"  # raise it with every change that moves a pixel: caches and manifests hang on it
MAX_OBJECTS = 4
ATTEMPTS = 8  # redraws until the first object can be seen; the last one puts it in front of all else

_Colour = tuple[int, int, int]


def class_parts(class_value: int) -> tuple[int, int]:
    """Rows of the pattern and the silhouette of class 1..400: in pairs at first, shifted by 7 with every 20 classes."""
    cycle, pattern = divmod(class_value - 1, len(PATTERNS))
    return pattern, (pattern + 7 * cycle) % len(SILHOUETTES)


def class_names(num_classes: int) -> tuple[str, ...]:
    """Name of classes 1..num_classes, such as "striped star"."""
    patterns, silhouettes = list(PATTERNS), list(SILHOUETTES)
    parts = (class_parts(value) for value in range(1, num_classes + 1))
    return tuple(f"{patterns[pattern]} {silhouettes[silhouette]}" for pattern, silhouette in parts)


@dataclass(frozen=True)
class SceneSettings:
    """What all pictures of a data set share; hashable, as the cache of rendered pictures is keyed by it.

    Attributes:
        seed: Seed of the whole data set.
        fold: The fold whose rules the splits keep, or None for mixed pictures.
        num_classes: Number of classes, 1..400.
        split_rule: How classes are dealt out to folds.
        image_size: (H, W) in pixels; the largest size where `vary_size`.
        object_scale: Factor on the objects' size.
        vary_size: Every picture has its own size, from 3/4 of `image_size` up, upright or lying.
        min_area: Area in pixels of the first object that a picture must show.
    """

    seed: int
    fold: int | None
    num_classes: int
    split_rule: SplitRule
    image_size: tuple[int, int]
    object_scale: float
    vary_size: bool
    min_area: int


class Draws:
    """Numbers from a stream of raw Philox words."""

    def __init__(self, key: str, counter: int, count: int) -> None:
        digest = hashlib.sha256(f"{GENERATOR_VERSION}/{key}".encode()).digest()
        words = np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)
        self.words: list[int] = np.random.Philox(key=words, counter=[0, counter, 0, 0]).random_raw(count).tolist()
        self.position = 0

    def word(self) -> int:
        """The next 64 random bits."""
        self.position += 1
        return self.words[self.position - 1]

    def below(self, stop: int) -> int:
        """A whole number in 0..stop-1."""
        return (self.word() >> 32) * stop >> 32

    def between(self, low: int, high: int) -> int:
        """A whole number in low..high."""
        return low + self.below(high - low + 1)

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * ((self.word() >> 11) * 2.0**-53)

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.uniform(0, 1) < probability

    def order(self, count: int) -> list[int]:
        """A permutation of 0..count-1: the ranks of raw words."""
        words = [self.word() for _ in range(count)]
        return sorted(range(count), key=words.__getitem__)


@lru_cache(maxsize=256)
def _shuffled(key: str, turn: int, pool: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(pool[i] for i in Draws(f"{key}/pool", turn, len(pool)).order(len(pool)))


def _deal(key: str, pool: tuple[int, ...], start: int, count: int) -> list[int]:
    """Classes number start..start+count-1 of an endless round robin over `pool`, shuffled anew each round."""
    return [_shuffled(key, i // len(pool), pool)[i % len(pool)] for i in range(start, start + count)]


def _classes(settings: SceneSettings, split: Split, index: int, draws: Draws) -> list[int]:
    """Class values of a picture's objects; the first one is certain to be visible."""
    key = f"{settings.seed}/{settings.fold}/{split}"
    everything = tuple(range(1, settings.num_classes + 1))
    if settings.fold is not None:
        fold = split_classes(settings.num_classes, NUM_FOLDS, settings.fold, settings.split_rule)
        if split == "train":
            classes = _deal(key, fold.train, index * MAX_OBJECTS, MAX_OBJECTS)
        else:
            classes = _deal(f"{key}/novel", fold.test, index, 1)
            # Query and support share other novel classes too: else what both show would tell the class without a mask.
            novel = [value for value in _deal(f"{key}/others", fold.test, 3 * index, 3) if value != classes[0]][:2]
            others = [value for value in _deal(key, everything, 5 * index, 5) if value not in (*classes, *novel)]
            classes += (novel + others)[: MAX_OBJECTS - 1]
    else:
        # Four in five mixed training pictures keep to one fold's classes: any fold's novel filter spares most of them.
        turn, group = divmod(index, NUM_FOLDS + 1)
        pool = everything
        if split == "val":
            turn = index
        elif group < NUM_FOLDS and settings.num_classes >= NUM_FOLDS:
            pool = split_classes(settings.num_classes, NUM_FOLDS, group, settings.split_rule).test
            key += f"/{group}"
        classes = _deal(key, pool, turn * MAX_OBJECTS, MAX_OBJECTS)
    if draws.chance(0.1):
        classes[-1] = classes[0]
    return classes


def _colour(draws: Draws, level: int) -> _Colour:
    """An RGB colour of mean brightness `level`; saturation gives way where it would leave 0..255."""
    raw = [draws.below(256) for _ in range(3)]
    mean = sum(raw) // 3
    most = max(abs(v - mean) for v in raw) or 1
    room = min(level, 255 - level)
    red, green, blue = (level + (v - mean) * min(room, most) // most for v in raw)
    return red, green, blue


def _colours(draws: Draws, contrast: int) -> tuple[_Colour, _Colour]:
    """Two colours whose mean brightness differs by about `contrast` or more; which is lighter is open."""
    low = draws.between(40, 200 - contrast)
    high = draws.between(low + contrast, 215)
    dark, light = _colour(draws, low), _colour(draws, high)
    return (light, dark) if draws.chance(0.5) else (dark, light)


def _patch(
    draws: Draws, *, silhouette: int, pattern: int, value: int, centre: tuple[float, float], radius: float
) -> Patch:
    """Choose the pose, pattern phase, colours and light of one object or fragment."""
    turn, stretch, shear = draws.uniform(0, 2 * math.pi), draws.uniform(0.85, 1.18), draws.uniform(-0.22, 0.22)
    cos, sin = math.cos(turn), math.sin(turn)
    # Object → image: rotation · shear · stretch, in (x, y) order.
    xx, yx = radius * stretch * cos, radius * stretch * sin
    xy, yy = radius / stretch * (shear * cos - sin), radius / stretch * (shear * sin + cos)
    det = xx * yy - xy * yx
    inverse = (yy / det, -xy / det, -yx / det, xx / det)
    angle, zoom = draws.uniform(-0.5, 0.5), draws.uniform(0.85, 1.15)
    if value == 0:
        zoom *= 0.35  # fragments are small: at the objects' grain their blotches would pass for speckles
    c, s = zoom * math.cos(angle), zoom * math.sin(angle)
    reach = 0.12 if pattern < len(PATTERNS) and list(PATTERNS)[pattern] in CENTRED else 0.5
    return Patch(
        silhouette=silhouette,
        pattern=pattern,
        value=value,
        centre=centre,
        matrix=inverse,
        extent=(math.hypot(yx, yy), math.hypot(xx, xy)),
        pattern_matrix=(
            c * inverse[0] - s * inverse[2],
            c * inverse[1] - s * inverse[3],
            s * inverse[0] + c * inverse[2],
            s * inverse[1] + c * inverse[3],
        ),
        pattern_offset=(draws.uniform(-reach, reach), draws.uniform(-reach, reach)),
        colours=_colours(draws, 95),
        shade=(draws.between(-60, 60), draws.between(-60, 60)),
    )


def _objects(draws: Draws, classes: list[int], size: tuple[int, int], scale: float, first_on_top: bool) -> list[Patch]:
    """One object in each of the picture's quarters, moved and scaled freely, in random depth order."""
    height, width = size
    quarters, depth = draws.order(MAX_OBJECTS), draws.order(len(classes))
    patches = []
    for position, value in enumerate(classes):
        row, column = divmod(quarters[position], 2)
        away, pull = draws.chance(0.75), draws.uniform(0.08, 0.2)
        spread = 0.25 if away else 0.25 - pull  # some move inwards, where they hide each other
        centre = (
            height * (0.5 + spread * (2 * row - 1) + draws.uniform(-0.08, 0.08)),
            width * (0.5 + spread * (2 * column - 1) + draws.uniform(-0.08, 0.08)),
        )
        radius = min(height, width) * scale * draws.uniform(0.185, 0.26)
        pattern, silhouette = class_parts(value)
        patches.append(
            _patch(draws, silhouette=silhouette, pattern=pattern, value=position + 1, centre=centre, radius=radius)
        )
    if first_on_top:
        depth.remove(0)
        depth.append(0)
    return [patches[i] for i in depth]


def _clutter(draws: Draws, count: int, size: tuple[int, int], radii: tuple[float, float]) -> list[Patch]:
    """Fragments with fills that no class has."""
    height, width = size
    side = min(height, width)
    return [
        _patch(
            draws,
            silhouette=len(SILHOUETTES) + draws.below(SHARDS),
            pattern=(PLAIN, BLOTCHED, CLOUDED)[draws.below(3)],
            value=0,
            centre=(draws.uniform(0, height), draws.uniform(0, width)),
            radius=side * draws.uniform(*radii),
        )
        for _ in range(count)
    ]


def _picture_size(settings: SceneSettings, draws: Draws) -> tuple[int, int]:
    if not settings.vary_size:
        return settings.image_size
    height, width = (draws.between(3 * side // 4, side) for side in settings.image_size)
    return (width, height) if draws.chance(0.5) else (height, width)


def draw_scene(settings: SceneSettings, split: Split, index: int, attempt: int) -> tuple[Scene, list[int]]:
    """Choose everything of a picture; return the scene and the class of each object by its number."""
    # Size and classes must not change over attempts, or the round robin would lose its balance.
    fixed = Draws(f"{settings.seed}/{settings.fold}/{split}/fixed", index, 8)
    size, classes = _picture_size(settings, fixed), _classes(settings, split, index, fixed)
    draws = Draws(f"{settings.seed}/{settings.fold}/{split}", index * ATTEMPTS + attempt, 480)
    last = attempt == ATTEMPTS - 1
    objects = _objects(draws, classes, size, settings.object_scale, first_on_top=last)
    behind = _clutter(draws, draws.between(4, 8), size, (0.04, 0.11))
    in_front = [] if last else _clutter(draws, draws.between(0, 3), size, (0.04, 0.085))
    limits = (NOISE_SIZE - size[0], NOISE_SIZE - size[1])
    return Scene(
        size=size,
        patches=(*behind, *objects, *in_front),
        colours=_colours(draws, 30),
        noise_offsets=tuple((draws.below(limits[0]), draws.below(limits[1])) for _ in range(6)),
        noise_gains=(draws.between(8, 30), draws.between(6, 26), draws.between(2, 9)),
        light=(draws.between(215, 285), draws.between(-45, 45), draws.between(-45, 45)),
        blur=1 if draws.chance(0.3) else 0,
    ), classes
