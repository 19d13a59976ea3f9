"""Episode manifests: purity, coverage, uniformity, files, and the stream itself against a second Philox."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import pickle
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from hdmnet.data.catalog import Catalog, CatalogView
from hdmnet.data.episodes.manifest import EpisodeManifest, EpisodeSpec, read_manifest
from hdmnet.data.vanished import Vanished

_MASK = 2**64 - 1


def make_view(images: list[list[int]], num_classes: int = 4) -> CatalogView:
    """View of images i0, i1, … from the classes that each holds."""
    pairs = np.array([(index, value) for index, values in enumerate(images) for value in values])
    pairs = pairs.reshape(-1, 2).astype(np.int64)  # also when no image holds any class
    catalog = Catalog(
        ids=np.array([f"i{index}" for index in range(len(images))]),
        image_index=pairs[:, 0],
        class_value=pairs[:, 1],
        area=np.full(len(pairs), 100),
        class_names=("ant", "bee", "cat", "dog")[:num_classes],
    )
    return catalog.view(range(1, num_classes + 1), min_area=50)


def make_manifest(view: CatalogView, **changes: Any) -> EpisodeManifest:
    arguments: dict[str, Any] = {
        "dataset": "tiny", "fold": 1, "split": "val", "shot": 2, "seed": 3, "num_episodes": 12
    }  # fmt: skip
    return EpisodeManifest(view, **{**arguments, **changes})


TINY = [[1], [1, 2], [2], [1, 2], [1, 2]]


def philox(key: tuple[int, int], counter: tuple[int, int, int, int], count: int) -> list[int]:
    """Philox-4x64-10 from Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011)."""
    words: list[int] = []
    c0, c1, c2, c3 = counter
    while len(words) < count:
        c0 += 1  # NumPy steps the counter before each block
        x, (k0, k1) = [c0, c1, c2, c3], key
        for _ in range(10):
            low, high = 0xD2E7470EE14C6C93 * x[0], 0xCA5A826395121157 * x[2]
            x = [high >> 64 ^ x[1] ^ k0, high & _MASK, low >> 64 ^ x[3] ^ k1, low & _MASK]
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) & _MASK, (k1 + 0xBB67AE8584CAA73B) & _MASK
        words += x
    return words[:count]


def reference_episode(images: list[list[int]], shot: int, index: int) -> EpisodeSpec:
    """The rule written out with lists: dataset tiny, fold 1, split val, seed 3."""
    digest = hashlib.sha256(b'["tiny",1,"val",3]').digest()
    key = (int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little"))
    number, step = divmod(index, len(images))
    ranks = philox(key, (0, 0, number, 1), len(images))
    query = sorted(range(len(images)), key=lambda image: ranks[image])[step]
    first, *words = philox(key, (0, 0, index, 0), 1 + shot)
    value = images[query][first * len(images[query]) // 2**64]
    pool = [image for image, values in enumerate(images) if value in values and image != query]
    for place, word in enumerate(words):
        other = place + word * (len(pool) - place) // 2**64
        pool[place], pool[other] = pool[other], pool[place]
    return EpisodeSpec(index, f"i{query}", value, tuple(f"i{image}" for image in pool[:shot]))


def test_matches_independent_reference() -> None:
    images = [sorted({1 + i % 4, 1 + i * i % 3}) for i in range(37)]
    manifest = make_manifest(make_view(images), shot=5, num_episodes=150)
    assert list(manifest) == [reference_episode(images, 5, index) for index in range(150)]


def test_golden_values() -> None:
    """The stream must never move silently: published results name manifests by their hash."""
    manifest = make_manifest(make_view(TINY))
    assert [(spec.query_id, spec.class_value, spec.support_ids) for spec in list(manifest)[:6]] == [
        ("i0", 1, ("i4", "i1")),
        ("i1", 2, ("i3", "i4")),
        ("i3", 2, ("i1", "i2")),
        ("i2", 2, ("i4", "i1")),
        ("i4", 2, ("i1", "i2")),
        ("i3", 2, ("i2", "i1")),
    ]
    assert manifest.sha256() == "d63e96eed70ef0b2de9a4f5c44c32bebc2aaa553f6fd15fe94df93835ba9efd3"


def test_independent_of_access_order() -> None:
    view = make_view([[1 + i % 3] for i in range(30)])
    straight = list(make_manifest(view, num_episodes=400))
    manifest = make_manifest(view, num_episodes=400)
    order = np.random.default_rng(0).permutation(400).tolist()
    assert [manifest[index] for index in order] == [straight[index] for index in order]
    unbounded = make_manifest(view, num_episodes=None)
    assert unbounded[399] == straight[399]
    assert unbounded[10**9].index == 10**9


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # DataLoader workers fork all the same
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_same_in_worker_processes(method: str) -> None:
    view = make_view([[1 + i % 3] for i in range(30)])
    manifest = make_manifest(view, num_episodes=80)
    expected = list(manifest)  # fills the cache of passes before the workers start
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
        assert list(pool.map(manifest.__getitem__, range(80), chunksize=7)) == expected
    assert list(pickle.loads(pickle.dumps(manifest))) == expected


def test_every_image_is_query_once_a_pass() -> None:
    view = make_view([[1 + i % 3] for i in range(31)])
    manifest = make_manifest(view, num_episodes=93)
    passes = [[spec.query_id for spec in list(manifest)[start : start + 31]] for start in (0, 31, 62)]
    for queries in passes:
        assert sorted(queries) == sorted(view.ids.tolist())
    assert passes[0] != passes[1] != passes[2]
    assert passes[0] != view.ids.tolist()


def test_official_walks_in_list_order() -> None:
    view = make_view([[1 + i % 3] for i in range(12)])
    manifest = make_manifest(view, protocol="official", num_episodes=30)
    assert [spec.query_id for spec in manifest] == [f"i{index % 12}" for index in range(30)]
    assert manifest.sha256() != make_manifest(view, num_episodes=30).sha256()


def test_supports_are_distinct_and_hold_the_class() -> None:
    images = [[1, 2], [2], [1], [1, 2], [2, 3], [1, 3], [3], [3, 2], [1], [3]]
    for spec in make_manifest(make_view(images), shot=4, num_episodes=200):
        members = (spec.query_id, *spec.support_ids)
        assert len(set(members)) == 5
        assert all(spec.class_value in images[int(member[1:])] for member in members)


def test_shots_nest() -> None:
    view = make_view([[1 + i % 2] for i in range(20)])
    for one, five in zip(make_manifest(view, shot=1), make_manifest(view, shot=5), strict=True):
        assert (one.query_id, one.class_value) == (five.query_id, five.class_value)
        assert one.support_ids == five.support_ids[:1]


@pytest.mark.parametrize("change", [{"dataset": "other"}, {"fold": 2}, {"split": "train"}, {"seed": 4}])
def test_every_argument_moves_the_stream(change: dict[str, Any]) -> None:
    view = make_view([[1 + i % 2] for i in range(20)])
    assert list(make_manifest(view, **change)) != list(make_manifest(view))


def test_classes_and_supports_are_uniform() -> None:
    """Chi-square far below the 1e-4 quantile (df 2: 18.4; df 8: 31.8; df 71: 129)."""
    images = [[1, 2, 3]] * 9
    specs = list(make_manifest(make_view(images), shot=2, num_episodes=9 * 800))

    def chi_square(counts: Counter[Any], cells: int) -> float:
        expected = sum(counts.values()) / cells
        return (sum((n - expected) ** 2 for n in counts.values()) + (cells - len(counts)) * expected**2) / expected

    assert chi_square(Counter(spec.class_value for spec in specs), 3) < 18.4
    for place in range(2):
        assert chi_square(Counter(spec.support_ids[place] for spec in specs), 9) < 31.8
        pairs = Counter((spec.query_id, spec.support_ids[place]) for spec in specs)
        assert chi_square(pairs, 72) < 129
    ordered = Counter(spec.support_ids for spec in specs)
    assert chi_square(ordered, 72) < 129


def test_classes_with_too_few_images_are_left_out_and_named() -> None:
    view = make_view([[1], [2], [1, 2], [1], [1, 3], [3]])
    manifest = make_manifest(view, shot=2, num_episodes=60)
    assert manifest.too_few == {2: 2, 3: 2, 4: 0}
    assert {spec.class_value for spec in manifest} == {1}
    assert {spec.query_id for spec in manifest} == {"i0", "i2", "i3", "i4"}  # i1 and i5 hold nothing else
    assert manifest.view.class_names == view.class_names
    assert manifest.tell_too_few() == (
        "3 of 4 classes of tiny fold 1 val have fewer than the 3 images that shot=2 needs (query and supports) and are "
        "left out of the episodes: bee (2), cat (2), dog (0); add images, lower shot or set dataset.allow_repeats=true"
    )
    # As if these classes had never been labelled.
    assert manifest.sha256() == make_manifest(make_view([[1], [], [1], [1], [1]]), shot=2, num_episodes=60).sha256()
    one = make_manifest(view, shot=1)
    assert one.too_few == {4: 0}
    assert one.tell_too_few(view).endswith("left out of the episodes: dog (0); add images to have them")
    more = make_view([[4], [4]])
    assert one.tell_too_few(more).endswith("have them, or dataset.novel_pixels=ignore, by which 1 would have enough")
    assert make_manifest(view, shot=2, allow_repeats=True).too_few == {4: 0}
    assert make_manifest(make_view([[1, 2], [1, 2]], 2), shot=1).too_few == {}


@pytest.mark.parametrize(
    ("images", "changes", "remedy"),
    [
        ([[1], [1], [2]], {"shot": 2}, "ant, 2: lower shot to 1, set dataset.allow_repeats=true, or add images"),
        ([[1], [2]], {"shot": 1}, "ant, 1: add images"),
        ([[1], [3]], {"shot": 5, "allow_repeats": True}, "ant, 1: add images"),
    ],
)
def test_refused_only_where_every_class_has_too_few(images, changes, remedy) -> None:
    with pytest.raises(ValueError, match=rf"^none of the 4 classes of tiny fold 1 val has the \d images .*{remedy}$"):
        make_manifest(make_view(images), **changes)


def test_fewest_repeats() -> None:
    view = make_view([[1]] * 4 + [[2]] * 20)
    for spec in make_manifest(view, shot=8, num_episodes=96, allow_repeats=True):
        counts = Counter(spec.support_ids)
        assert spec.query_id not in counts
        if spec.class_value == 1:  # 3 others, 8 shots
            assert sorted(counts.values()) == [2, 3, 3]
            assert len(set(spec.support_ids[:3])) == len(set(spec.support_ids[3:6])) == 3
        else:
            assert set(counts.values()) == {1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shot": 0}, r"shot=0 and num_episodes=12: expected at least 1"),
        ({"num_episodes": 0}, r"num_episodes=0: expected at least 1"),
        ({"protocol": "random"}, r"protocol='random' is unknown, expected one of uniform, official"),
    ],
)
def test_wrong_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_manifest(make_view(TINY), **changes)


def test_empty_view() -> None:
    with pytest.raises(ValueError, match=r"no image of tiny fold 1 val holds any of the classes ant, bee, cat, dog"):
        make_manifest(make_view([[], []]))


def test_bounds() -> None:
    manifest = make_manifest(make_view(TINY))
    for index in (-1, 12):
        with pytest.raises(IndexError, match=rf"episode {index} does not exist, expected 0\.\.11"):
            manifest[index]
    with pytest.raises(TypeError, match="unbounded"):
        len(make_manifest(make_view(TINY), num_episodes=None))
    with pytest.raises(TypeError, match="unbounded"):
        make_manifest(make_view(TINY), num_episodes=None).sha256()


def test_file_round_trip(tmp_path: Path) -> None:
    manifest = make_manifest(make_view(TINY))
    path = tmp_path / "deep" / "manifest.jsonl"
    manifest.write(path)
    stored = read_manifest(path)
    assert list(stored) == list(manifest)
    assert stored.header == manifest.header
    assert stored.sha256() == manifest.sha256()
    assert len(stored) == 12
    with pytest.raises(IndexError, match="episode 12 does not exist"):
        stored[12]
    # The hash is over the text that anyone can see: all lines but the last.
    *lines, last = path.read_text().splitlines(keepends=True)
    assert json.loads(last)["sha256"] == hashlib.sha256("".join(lines).encode()).hexdigest() == manifest.sha256()
    stored.write(path)
    assert read_manifest(path).sha256() == manifest.sha256()
    assert [file.name for file in path.parent.iterdir()] == ["manifest.jsonl"]


def damage_manifest(text: str, how: str) -> str:
    lines = text.splitlines(keepends=True)
    return {
        "cut": text[: len(text) // 2],
        "no trailer": "".join(lines[:-1]),
        "line lost": "".join(lines[:4] + lines[5:]),
        "swapped": "".join([lines[0], lines[2], lines[1], *lines[3:]]),
        "edited": text.replace('"i1"', '"i0"', 1),
        "header edited": text.replace('"shot":2', '"shot":1'),
        "not json": "hello\n",
        "empty": "",
        "json": "[]\n[]\n",
        "version": text.replace("hdmnet-episodes-1", "hdmnet-episodes-9"),
    }[how]


@pytest.mark.parametrize(
    "how",
    ["cut", "no trailer", "line lost", "swapped", "edited", "header edited", "not json", "empty", "json", "version"],
)
def test_damaged_file(tmp_path: Path, how: str) -> None:
    path = tmp_path / "manifest.jsonl"
    make_manifest(make_view(TINY)).write(path)
    path.write_text(damage_manifest(path.read_text(), how))
    with pytest.raises(ValueError, match=r"manifest\.jsonl .*: write it") as caught:
        read_manifest(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl is missing: give"):
        read_manifest(tmp_path / "none.jsonl")


def test_pairs_walk_the_images_classes_in_order() -> None:
    manifest = make_manifest(make_view(TINY), protocol="pairs", num_episodes=10)
    pairs = [("i0", 1), ("i1", 1), ("i1", 2), ("i2", 2), ("i3", 1), ("i3", 2), ("i4", 1), ("i4", 2)]
    assert [(spec.query_id, spec.class_value) for spec in manifest] == [*pairs, *pairs[:2]]


def test_classes_are_drawn_before_their_queries() -> None:
    """Class 1 has one image in ten: a walk over the images takes it in a tenth of the episodes, this in half."""
    manifest = make_manifest(make_view([[1]] * 5 + [[2]] * 45), protocol="classes", num_episodes=400)
    queries = [spec.query_id for spec in manifest if spec.class_value == 1]
    assert 160 < len(queries) < 240  # 200 ± 4 standard deviations
    assert set(queries) == {f"i{index}" for index in range(5)}


def test_classes_take_turns() -> None:
    """Each as often as every other, whatever its number of images; those with too few images have no turn."""
    manifest = make_manifest(make_view([[1]] * 5 + [[2]] * 45 + [[3]]), protocol="turns", num_episodes=400)
    assert [spec.class_value for spec in manifest] == [1, 2] * 200
    counts = Counter(spec.query_id for spec in manifest if spec.class_value == 1)
    assert counts.keys() == {f"i{index}" for index in range(5)}
    assert all(20 < count < 62 for count in counts.values())  # 40 ± 4 standard deviations


@pytest.mark.parametrize("protocol", ["uniform", "pairs", "classes", "turns"])
def test_repeated_supports_are_drawn_anew(protocol: str) -> None:
    view = make_view([[1]] * 4)
    several = list(make_manifest(view, protocol=protocol, supports="repeated", shot=3, num_episodes=400))
    assert all(spec.query_id not in spec.support_ids for spec in several)
    repeats = sum(len(set(spec.support_ids)) < 3 for spec in several)
    assert 275 < repeats < 347  # 7 of 9: 3³ draws of three images, 3! of them without a repeat
    assert {one for spec in several for one in spec.support_ids} == {"i0", "i1", "i2", "i3"}
    assert make_manifest(view, supports="repeated", shot=3).header["supports"] == "repeated"
    for one, three in zip(make_manifest(view, protocol=protocol, supports="repeated", shot=1), several, strict=False):
        assert one.support_ids == three.support_ids[:1]


def test_repeated_supports_need_two_images_and_leave_out_what_vanishes() -> None:
    vanished = Vanished((8, 8), frozenset({("i1", 1)}))
    manifest = make_manifest(make_view([[1]] * 3), supports="repeated", shot=5, num_episodes=30, vanished=vanished)
    assert {one for spec in manifest for one in spec.support_ids} == {"i0", "i2"}
    assert all(len(spec.support_ids) == 5 for spec in manifest)


class TestSeveralWays:
    """Episodes of several classes: those of one class, and further classes."""

    IMAGES: ClassVar = [sorted({1 + i % 4, 1 + i * i % 3}) for i in range(23)]

    def manifest(self, way: int, **changes: Any) -> EpisodeManifest:
        return make_manifest(make_view(self.IMAGES), way=way, num_episodes=60, **changes)

    @pytest.mark.parametrize("protocol", ["uniform", "official", "pairs", "classes"])
    @pytest.mark.parametrize("supports", ["distinct", "repeated"])
    def test_each_is_the_episode_of_fewer_ways_with_a_further_class(self, protocol: Any, supports: Any) -> None:
        rules = {"protocol": protocol, "supports": supports}
        one, two, four = (self.manifest(way, **rules) for way in (1, 2, 4))
        assert one.sha256() == make_manifest(make_view(self.IMAGES), num_episodes=60, **rules).sha256()
        assert "way" not in one.header
        assert two.header["way"] == 2
        for index in range(60):
            assert one[index].others == ()
            assert two[index] == dataclasses.replace(one[index], others=four[index].others[:1])
            assert len(four[index].others) == 3

    def test_shots_are_nested_as_of_one_class(self) -> None:
        for few, many in zip(self.manifest(3, shot=1), self.manifest(3, shot=3), strict=True):
            assert [(value, ids[:1]) for value, ids in many.ways] == list(few.ways)

    def test_classes_are_distinct_and_the_query_is_no_support_of_any(self) -> None:
        holds = {f"i{index}": values for index, values in enumerate(self.IMAGES)}
        seen, lacking = set(), 0
        for spec in self.manifest(3, shot=4):
            values = [value for value, _ in spec.ways]
            assert values == sorted(set(values))  # in an order that tells nothing of the query's own
            assert spec.class_value in values
            for value, ids in spec.ways:
                assert len(set(ids)) == 4
                assert spec.query_id not in ids
                assert all(value in holds[one] for one in ids)
            seen.add(tuple(values))
            lacking += any(value not in holds[spec.query_id] for value in values)
        assert len(seen) == 4  # all there are
        assert lacking > 30

    def test_matches_independent_reference(self) -> None:
        digest = hashlib.sha256(b'["tiny",1,"val",3]').digest()
        key = (int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little"))
        for spec in self.manifest(2):
            others = [value for value in (1, 2, 3, 4) if value != spec.class_value]
            value = others[philox(key, (0, 0, spec.index, 2), 1)[0] * 3 // 2**64]
            words = philox(key, (0, 0, spec.index, 3 + value), 2)
            pool = [f"i{i}" for i, held in enumerate(self.IMAGES) if value in held and f"i{i}" != spec.query_id]
            for place, word in enumerate(words):
                other = place + word * (len(pool) - place) // 2**64
                pool[place], pool[other] = pool[other], pool[place]
            assert spec.others == ((value, tuple(pool[:2])),)

    def test_any_order_gives_the_same_and_a_file_too(self, tmp_path: Path) -> None:
        manifest = self.manifest(3)
        straight = list(manifest)
        assert [manifest[index] for index in reversed(range(60))] == straight[::-1]
        manifest.write(tmp_path / "episodes.jsonl")
        stored = read_manifest(tmp_path / "episodes.jsonl")
        assert list(stored) == straight
        assert stored.sha256() == manifest.sha256() != self.manifest(2).sha256()

    def test_what_vanishes_is_no_support_of_a_further_class_either(self) -> None:
        gone = frozenset({("i0", 1), ("i4", 1), ("i1", 2)})
        manifest = self.manifest(4, shot=3, vanished=Vanished((9, 9), gone))
        supports = {(one, value) for spec in manifest for value, ids in spec.ways for one in ids}
        assert supports.isdisjoint(gone)
        assert len({value for _, value in supports}) == 4

    @pytest.mark.parametrize("way", [0, 5])
    def test_more_classes_than_there_are_are_refused(self, way: int) -> None:
        message = rf"^way={way}: tiny fold 1 val has 4 classes with enough images; expected 1 to as many$"
        with pytest.raises(ValueError, match=message):
            self.manifest(way)
