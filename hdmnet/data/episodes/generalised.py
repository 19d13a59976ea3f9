"""The list of a generalised test: every picture once, all novel classes at once, their supports encoded once.

As every list of episodes it is a pure function, here of (dataset, fold, split, shot, seed): see `manifest`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hdmnet.data.catalog import CatalogView
from hdmnet.data.datasets.base import Split
from hdmnet.data.episodes.manifest import (
    EpisodeSpec,
    Manifest,
    begin_header,
    draw,
    dump,
    find_positions,
    philox_key,
    philox_words,
)
from hdmnet.data.vanished import Vanished
from hdmnet.runtime.errors import DatasetError

_FORMAT = "hdmnet-generalised-1"


class GeneralisedManifest(Manifest):
    """Every picture of a list, in its order, but for those that are supports of the same seed.

    Each is an `EpisodeSpec` of all novel classes, the first of which stands in `class_value`. The supports stand in the
    header; they are drawn without replacement among the pictures of their class, the first of those of every larger K.

    Attributes:
        view: Of the pictures that show a class that is scored.
        too_few, num_vanished: Empty; as of `EpisodeManifest`.

    Args:
        pictures: Ids of the list that is tested.
        view: As above.
        candidates: Of each novel class the ids that may be its supports, at least K, see `support_candidates`.
        supports_from: Which list these are of.
        dataset: Name of the data set; part of the key, as are `fold`, `split` and `seed`.
        shot: Number of supports K of a class.
        num_pictures: At most so many pictures, the first ones; None: all.

    Raises:
        ValueError: No picture is left.
    """

    def __init__(
        self,
        pictures: Sequence[str],
        view: CatalogView,
        candidates: Mapping[int, Sequence[str]],
        *,
        supports_from: Split,
        dataset: str,
        fold: int,
        split: Split,
        shot: int,
        seed: int,
        num_pictures: int | None = None,
    ) -> None:
        """Draw the supports."""
        self.view = view
        self.too_few: dict[int, int] = {}
        self.num_vanished: dict[int, int] = {}
        key = philox_key(["generalised", dataset, int(fold), split, int(seed)])
        ways = []
        for value, ids in sorted(candidates.items()):
            picks = draw(len(ids), philox_words(key, value, 0, shot).tolist())
            ways.append((value, tuple(ids[pick] for pick in picks)))
        used = {one for _, ids in ways for one in ids}
        self._pictures = [one for one in pictures if one not in used][:num_pictures]
        if not self._pictures:
            raise DatasetError(f"every picture of the list {split} of {dataset} is a support: lower shot={shot}")
        self._ways = tuple(ways)
        self.header = begin_header(_FORMAT, dataset, fold, split, shot, seed) | {
            "supports_from": supports_from,
            "supports": ways,
            "num_episodes": len(self._pictures),
        }

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self._pictures)

    def __getitem__(self, index: int) -> EpisodeSpec:
        """The picture at an index, as an episode of all classes; IndexError outside."""
        if not 0 <= index < len(self._pictures):
            raise IndexError(f"picture {index} does not exist, expected 0..{len(self._pictures) - 1}")
        return EpisodeSpec(int(index), self._pictures[index], *self._ways[0], self._ways[1:])

    def _text(self) -> str:
        return "".join(f"{dump(line)}\n" for line in (self.header, *self._pictures))


def support_candidates(view: CatalogView, vanished: Vanished) -> dict[int, list[str]]:
    """Of each class of a view the ids of its pictures, but for those in which it vanishes at the network's size."""
    barred = find_positions(view, vanished.pairs)
    return {
        value: [str(view.ids[one]) for one in view.images_of(value).tolist() if one not in barred.get(value, ())]
        for value in view.classes
    }
