"""The list of episodes as a pure function of (dataset, fold, split, shot, way, seed, index).

Every episode is computed from raw 64-bit words of the counter-based generator Philox-4x64, keyed by a sha256 of the
arguments and positioned by the episode's index. So it does not depend on workers, GPUs, batch size, order of access or
on what was drawn before. Only raw words are used: NumPy guarantees their stream, but not that of `Generator`'s methods.

The shot is deliberately left out of the key: an episode's 1-shot support is the first of its 5-shot supports, and
queries and classes are the same, so results for different shots differ by the shots alone. So is the way: an N-way
episode is the 1-way episode of its index and N - 1 further classes, the first of those of every larger N.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from hdmnet.data.catalog import CatalogView
from hdmnet.data.datasets.base import Split
from hdmnet.data.episodes.rules import Queries, Supports
from hdmnet.data.vanished import Vanished
from hdmnet.runtime.atomic import replacing
from hdmnet.runtime.errors import DatasetError, MissingFileError
from hdmnet.runtime.home import expand_home

_FORMAT = "hdmnet-episodes-1"
# Top counter word: keeps the uses of one key apart. From the last one on: supports of each further class, by its value.
_EPISODE_WORDS, _PASS_WORDS, _CLASS_WORDS, _SUPPORT_WORDS = 0, 1, 2, 3
_CACHED_PASSES = 4
_MOST_NAMES = 20  # of classes in a line


@dataclass(frozen=True)
class EpisodeSpec:
    """One episode, by ids.

    Attributes:
        index: Position in the manifest.
        query_id: Image to segment.
        class_value: Class (1..C) that is foreground.
        support_ids: The K support images; never the query.
        others: The further classes of an N-way episode, each with its K support images; the query may lack them.
    """

    index: int
    query_id: str
    class_value: int
    support_ids: tuple[str, ...]
    others: tuple[tuple[int, tuple[str, ...]], ...] = ()

    @property
    def ways(self) -> tuple[tuple[int, tuple[str, ...]], ...]:
        """The N classes with their K supports, by class value: where the query's own class stands tells nothing."""
        return tuple(sorted(((self.class_value, self.support_ids), *self.others)))


class Manifest(ABC):
    """A list of episodes with its header; computed (`EpisodeManifest`) or read from a file (`StoredManifest`).

    Attributes:
        header: What the list was made from, as written to files: format, dataset, fold, split, shot, seed, protocol and
            num_episodes; `way`, where it is above 1.
    """

    header: dict[str, Any]

    @abstractmethod
    def __len__(self) -> int:
        """Number of episodes."""

    @abstractmethod
    def __getitem__(self, index: int) -> EpisodeSpec:
        """Episode at an index, counted from 0; IndexError outside."""

    def __iter__(self) -> Iterator[EpisodeSpec]:
        """All episodes in order."""
        return (self[index] for index in range(len(self)))

    def sha256(self) -> str:
        """Hex sha256 of the canonical text, i.e. of all episodes and the header."""
        return hashlib.sha256(self._text().encode()).hexdigest()

    def write(self, path: str | Path) -> None:
        """Write the episodes as JSON lines: header, one array an episode, and the hash of all lines before it."""
        text = self._text()
        trailer = dump({"sha256": hashlib.sha256(text.encode()).hexdigest()})
        with replacing(path) as temporary:
            temporary.write_text(f"{text}{trailer}\n", encoding="utf-8", newline="\n")

    def _text(self) -> str:
        rows = (
            [spec.index, spec.query_id, spec.class_value, spec.support_ids, *([spec.others] if spec.others else [])]
            for spec in self
        )
        return "".join(f"{dump(line)}\n" for line in (self.header, *rows))


class EpisodeManifest(Manifest):
    """Episodes drawn from a catalog view.

    The queries walk over the view's images: pass p is a permutation keyed by (dataset, fold, split, seed, p), so every
    image is the query once a pass; the official protocol walks in list order, unshuffled. The class is uniform among
    those that qualify in the query; the supports are uniform without replacement among the class's other images.
    Others' rules: `pairs` walks the images' classes in list order, so that a query's class is not drawn (HSNet);
    `classes` draws the class first, uniformly, then the query among its images (PANet); `turns` takes the classes in
    turn (Matcher on LVIS-92i); supports that may be "repeated" are drawn with replacement (HSNet).

    Attributes:
        view: Images and classes that episodes are drawn from.
        too_few: Number of images of each class, by class value, that has too few for an episode and is never drawn.
        num_vanished: Number of images, by class value, in which nothing of the class is left at the network's size.
            They are queries, but no supports: in their place the next of the same draw are taken. Where there are any
            the header says so.

    Args:
        view: Images and classes to draw from. Classes with too few images are left out, see `too_few`.
        dataset: Name of the data set; part of the key, as are `fold`, `split` and `seed`.
        shot: Number of supports K an episode and class.
        way: Number of classes N an episode.
        num_episodes: Length; None = unbounded, for training.
        protocol: "uniform", or "official" for the release's in-order walk, "pairs", "classes" or "turns".
        supports: "distinct" or "repeated".
        allow_repeats: Where a class has fewer images than the shot needs, but two, take each as a support as often as
            every other, up to one time more, instead of leaving the class out.
        vanished: Objects that vanish at the network's size; None: none.

    Raises:
        ValueError: An argument is out of range, the view is empty, or every class has too few images.
    """

    def __init__(
        self,
        view: CatalogView,
        *,
        dataset: str,
        fold: int,
        split: Split,
        shot: int,
        seed: int,
        num_episodes: int | None,
        protocol: Queries = "uniform",
        supports: Supports = "distinct",
        allow_repeats: bool = False,
        vanished: Vanished | None = None,
        way: int = 1,
    ) -> None:
        """Check that every episode can be drawn; nothing is drawn yet."""
        self.header = begin_header(_FORMAT, dataset, fold, split, shot, seed) | {
            "protocol": protocol,
            "num_episodes": None if num_episodes is None else int(num_episodes),
        }
        if supports != "distinct":
            self.header["supports"] = supports
        if way != 1:
            self.header["way"] = int(way)
        where = _where(self.header)
        _check_arguments(view, where, shot=shot, num_episodes=num_episodes, protocol=protocol)
        pairs = frozenset() if vanished is None else vanished.pairs
        self.num_vanished = {value: len(positions) for value, positions in find_positions(view, pairs).items()}
        if vanished is not None and self.num_vanished:
            about = {"image_size": list(vanished.size), "objects": sum(self.num_vanished.values())}
            self.header["vanished"] = about
        allow_repeats = allow_repeats or supports == "repeated"
        self.too_few = _too_few(view, where, self.num_vanished, shot=shot, allow_repeats=allow_repeats)
        self.view = view.without(list(self.too_few)) if self.too_few else view
        self._no_supports = find_positions(self.view, pairs)
        self.shot, self.way = int(shot), int(way)
        self._values = [int(one) for one in np.array(self.view.classes)[np.diff(self.view.class_ptr) > 0]]  # drawn from
        if not 1 <= way <= len(self._values):
            raise DatasetError(
                f"way={way}: {where} has {len(self._values)} classes with enough images; expected 1 to as many"
            )
        self.allow_repeats = allow_repeats
        self.num_episodes = num_episodes
        self.protocol, self.supports = protocol, supports
        self._key = philox_key([dataset, int(fold), split, int(seed)])
        self._passes: dict[int, npt.NDArray[np.int64]] = {}

    def tell_too_few(self, unfiltered: CatalogView | None = None) -> str:
        """One line that names the classes that are left out as they have too few images; there must be some.

        Of training `unfiltered` is the view with the images that the novel-class filter leaves out.
        """
        names = dict(zip(self.view.classes, self.view.class_names, strict=True))
        shown = [f"{names[value]} ({count})" for value, count in self.too_few.items()]
        rest = f" and {len(shown) - _MOST_NAMES:,} more" if len(shown) > _MOST_NAMES else ""
        needed = images_needed(self.shot, allow_repeats=self.allow_repeats)
        lower = not self.allow_repeats and max(self.too_few.values()) > 1
        remedy = "add images, lower shot or set dataset.allow_repeats=true" if lower else "add images to have them"
        if unfiltered is not None:
            counts = dict(zip(unfiltered.classes, np.diff(unfiltered.class_ptr), strict=True))
            if kept := sum(counts[value] >= needed for value in self.too_few):
                remedy += f", or dataset.novel_pixels=ignore, by which {kept} would have enough"
        gone = {value: self.num_vanished[value] for value in self.too_few if value in self.num_vanished}
        remedy += _tell_vanished(gone)
        return (
            f"{len(shown)} of {len(names)} classes of {_where(self.header)} have fewer than the {needed} images that "
            f"shot={self.shot} needs (query and supports) and are left out of the episodes: "
            f"{', '.join(shown[:_MOST_NAMES])}{rest}; {remedy}"
        )

    def tell_vanished(self) -> str | None:
        """One line that counts what vanishes at the network's size, and says what becomes of it; None: nothing does."""
        if not self.num_vanished:
            return None
        names = dict(zip(self.view.classes, self.view.class_names, strict=True))
        shown = [f"{names[value]} ({count})" for value, count in self.num_vanished.items()]
        rest = f" and {len(shown) - _MOST_NAMES:,} more" if len(shown) > _MOST_NAMES else ""
        height, width = self.header["vanished"]["image_size"]
        query = "their targets are empty" if self.header["split"] == "train" else "they are scored at their own size"
        return (
            f"objects (a class in an image) of {_where(self.header)} that vanish at the network's {height}x{width}: "
            f"{self.header['vanished']['objects']:,}, of {', '.join(shown[:_MOST_NAMES])}{rest}; they are never "
            f"supports, as queries {query}; dataset.image_size and dataset.min_area change it"
        )

    def __len__(self) -> int:
        """Number of episodes; TypeError if unbounded."""
        if self.num_episodes is None:
            raise TypeError("this manifest is unbounded and has no length: give it num_episodes, or index it")
        return self.num_episodes

    def __getitem__(self, index: int) -> EpisodeSpec:
        """Episode at an index, in O(shot) once the order of its pass is known; IndexError outside."""
        index = int(index)
        if index < 0 or (self.num_episodes is not None and index >= self.num_episodes):
            last = "" if self.num_episodes is None else self.num_episodes - 1
            raise IndexError(f"episode {index} does not exist, expected 0..{last}")
        first = 2 if self.protocol in ("classes", "turns") else 1  # word of the supports
        query, class_value = self._query_and_class(index, self._words(_EPISODE_WORDS, index, first).tolist())
        supports = self._supports(query, class_value, lambda n: self._words(_EPISODE_WORDS, index, first + n)[first:])
        ids = self.view.ids
        return EpisodeSpec(index, str(ids[query]), class_value, supports, self._others(index, query, class_value))

    def _others(self, index: int, query: int, class_value: int) -> tuple[tuple[int, tuple[str, ...]], ...]:
        """The N - 1 further classes of an episode, each with its supports."""
        if self.way == 1:
            return ()
        values = [value for value in self._values if value != class_value]
        drawn = [values[pick] for pick in draw(len(values), self._words(_CLASS_WORDS, index, self.way - 1).tolist())]
        return tuple(
            (value, self._supports(query, value, partial(self._words, _SUPPORT_WORDS + value, index)))
            for value in drawn
        )

    def _supports(
        self, query: int, class_value: int, words: Callable[[int], npt.NDArray[np.uint64]]
    ) -> tuple[str, ...]:
        """Ids of the K supports of a class, by as many raw words as are asked for; the query may hold it or not."""
        images = self.view.images_of(class_value)
        barred = self._no_supports.get(class_value, frozenset())
        if self.supports == "repeated":
            others = [one for one in images.tolist() if one != query and one not in barred]
            taken = [others[_below(len(others), word)] for word in words(self.shot).tolist()]
            return self._ids(taken)
        own = int(np.searchsorted(images, query))
        holds = own < len(images) and int(images[own]) == query
        count = self.shot
        if barred:  # all of them may come before the last that is taken
            without = len(images) - len(barred) - (holds and query not in barred)
            count += len(barred) * -(-self.shot // without)
        picks = draw(len(images) - holds, words(count).tolist())
        # Where the query is among them, positions from its own on move up by one.
        supports = (int(images[pick + (holds and pick >= own)]) for pick in picks)
        return self._ids([support for support in supports if support not in barred][: self.shot])

    def _ids(self, positions: list[int]) -> tuple[str, ...]:
        return tuple(str(self.view.ids[position]) for position in positions)

    def __getstate__(self) -> dict[str, Any]:
        """State for worker processes, without the cached passes: each process makes its own."""
        return {**self.__dict__, "_passes": {}}

    def _query_and_class(self, index: int, words: list[int]) -> tuple[int, int]:
        """Position of an episode's query and its class value, by the episode's own words as far as they are drawn."""
        view = self.view
        if self.protocol == "pairs":
            pair = index % len(view.image_classes)
            return int(np.searchsorted(view.image_ptr, pair, side="right")) - 1, int(view.image_classes[pair])
        if self.protocol in ("classes", "turns"):
            turn = index % len(self._values) if self.protocol == "turns" else _below(len(self._values), words[0])
            value = self._values[turn]
            images = view.images_of(value)
            return int(images[_below(len(images), words[1])]), value
        query = self._query(index)
        values = view.classes_of(query)
        return query, int(values[_below(len(values), words[0])])

    def _query(self, index: int) -> int:
        number, step = divmod(index, len(self.view))
        if self.protocol == "official":
            return step
        order = self._passes.get(number)
        if order is None:
            # Ranks of raw words; equal words (chance about N²/2^65) keep list order, so this is the same everywhere.
            order = np.argsort(self._words(_PASS_WORDS, number, len(self.view)), kind="stable")
            while len(self._passes) >= _CACHED_PASSES:
                self._passes.pop(next(iter(self._passes)), None)  # the oldest; passes are walked forward
            self._passes[number] = order
        return int(order[step])

    def _words(self, use: int, number: int, count: int) -> npt.NDArray[np.uint64]:
        return philox_words(self._key, use, number, count)


class StoredManifest(Manifest):
    """Episodes read from a file (see `read_manifest`)."""

    def __init__(self, header: dict[str, Any], episodes: tuple[EpisodeSpec, ...]) -> None:
        """Keep a header, as in `Manifest`, and its episodes in order."""
        self.header = header
        self._episodes = episodes

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self._episodes)

    def __getitem__(self, index: int) -> EpisodeSpec:
        """Episode at an index; IndexError outside."""
        index = int(index)
        if not 0 <= index < len(self._episodes):
            raise IndexError(f"episode {index} does not exist, expected 0..{len(self._episodes) - 1}")
        return self._episodes[index]


def read_manifest(path: str | Path) -> StoredManifest:
    """Read a manifest file and check it against the hash on its last line.

    Returns:
        The episodes, equal in sequence and hash to the manifest that was written.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a manifest, is damaged or was edited.
    """
    path = expand_home(path)
    if not path.is_file():
        raise MissingFileError(f"episode manifest {path} is missing: give the path of one that was written")
    try:
        header, *rows, trailer = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        known = header["format"] == _FORMAT
        episodes = tuple(_spec(*row) for row in rows)
        manifest = StoredManifest(header, episodes)
        # Hashing what was understood, not the bytes, also proves that it was understood rightly.
        intact = trailer["sha256"] == manifest.sha256() and len(episodes) == header["num_episodes"]
    except (ValueError, TypeError, KeyError, IndexError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise DatasetError(f"{path} is not an episode manifest or is cut short: write it again") from None
    if not known:
        raise DatasetError(f"{path} has format {header['format']!r}, expected {_FORMAT!r}: write it with this version")
    if not intact:
        raise DatasetError(f"{path} is damaged or was edited (its content does not match its sha256): write it again")
    return manifest


def _spec(index: int, query: str, value: int, ids: list[str], others: list[Any] | None = None) -> EpisodeSpec:
    """An episode out of its line in a file."""
    further = tuple((other, tuple(its_ids)) for other, its_ids in others or [])
    return EpisodeSpec(index, query, value, tuple(ids), further)


def _where(header: dict[str, Any]) -> str:
    return f"{header['dataset']} fold {header['fold']} {header['split']}"


def _check_arguments(view: CatalogView, where: str, *, shot: int, num_episodes: int | None, protocol: str) -> None:
    if protocol not in get_args(Queries):
        raise DatasetError(f"protocol={protocol!r} is unknown, expected one of {', '.join(get_args(Queries))}")
    if shot < 1 or (num_episodes is not None and num_episodes < 1):
        raise DatasetError(f"shot={shot} and num_episodes={num_episodes}: expected at least 1 of each")
    if len(view) == 0:
        raise DatasetError(
            f"no image of {where} holds any of the classes {', '.join(view.class_names)} with enough area: check the"
            " masks, the lists and min_area"
        )


def images_needed(shot: int, *, allow_repeats: bool) -> int:
    """How many images a class must have for an episode: the query, which is never its own support, and the supports."""
    return 2 if allow_repeats else shot + 1


def find_positions(view: CatalogView, pairs: frozenset[tuple[str, int]]) -> dict[int, frozenset[int]]:
    """Positions of a view's images in some pairs of image id and class value, by class value; classes without none."""
    found = {}
    for value in sorted({value for _, value in pairs}.intersection(view.classes)):
        images = view.images_of(value).tolist()
        positions = frozenset(one for one in images if (str(view.ids[one]), value) in pairs)
        if positions:
            found[value] = positions
    return found


def _too_few(
    view: CatalogView, where: str, num_vanished: dict[int, int], *, shot: int, allow_repeats: bool
) -> dict[int, int]:
    """Number of images that show something, by class value, of each class with too few; refuses it of all classes."""
    needed = images_needed(shot, allow_repeats=allow_repeats)
    images = zip(view.classes, np.diff(view.class_ptr).tolist(), strict=True)
    counts = [count - num_vanished.get(value, 0) for value, count in images]
    most, name = max(zip(counts, view.class_names, strict=True), key=lambda pair: pair[0])
    if most < needed:
        remedy = f"lower shot to {most - 1}, set dataset.allow_repeats=true, or " if most > 1 else ""
        raise DatasetError(
            f"none of the {len(counts)} classes of {where} has the {needed} images that shot={shot} needs (query and"
            f" supports); the most has {name}, {most}: {remedy}add images{_tell_vanished(num_vanished)}"
        )
    return {value: count for value, count in zip(view.classes, counts, strict=True) if count < needed}


def _tell_vanished(num_vanished: dict[int, int]) -> str:
    """What else lets classes have more images, where objects vanish."""
    total = sum(num_vanished.values())
    return f", or raise dataset.image_size (of the objects {total:,} vanish at the network's size)" if total else ""


def begin_header(form: str, dataset: str, fold: int, split: Split, shot: int, seed: int) -> dict[str, Any]:
    """What the header of every list begins with; `form` names the format and its version."""
    return {
        "format": form,
        "dataset": dataset,
        "fold": int(fold),
        "split": split,
        "shot": int(shot),
        "seed": int(seed),
    }


def philox_key(parts: list[Any]) -> npt.NDArray[np.uint64]:
    """The generator's key (2,) that some plain values make."""
    digest = hashlib.sha256(dump(parts).encode()).digest()
    return np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)


def philox_words(key: npt.NDArray[np.uint64], use: int, number: int, count: int) -> npt.NDArray[np.uint64]:
    """Raw words of one stream of a key: the low two counter words run within it, the high two name it."""
    counter = np.array([0, 0, number, use], dtype=np.uint64)
    words: npt.NDArray[np.uint64] = np.random.Philox(key=key, counter=counter).random_raw(count)
    return words


def draw(count: int, words: list[int]) -> list[int]:
    """One number of 0..count-1 a word: without replacement until all are used, then anew.

    A Fisher-Yates shuffle of which only the touched places are stored: O(len(words)), and its first draws do not depend
    on how many follow.
    """
    picks: list[int] = []
    moved: dict[int, int] = {}
    for step, word in enumerate(words):
        done = step % count
        if done == 0:
            moved = {}
        place = done + _below(count - done, word)
        picks.append(moved.get(place, place))
        moved[place] = moved.get(done, done)
    return picks


def _below(bound: int, word: int) -> int:
    """Number of 0..bound-1 from a 64-bit word; the bias, bound / 2^64, is far below what could be measured."""
    return int(word) * bound >> 64


def dump(value: object) -> str:
    """Canonical JSON on one line."""
    return json.dumps(value, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
