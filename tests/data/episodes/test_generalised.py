"""The list of a generalised test, and the DataModule that makes it."""

from __future__ import annotations

import hashlib

import pytest

from hdmnet.data.episodes.generalised import GeneralisedManifest, support_candidates
from hdmnet.data.vanished import Vanished
from tests.data.episodes.test_manifest import make_view, philox
from tests.helpers.datasets import MemoryDataset, few_shot

VIEW = make_view([[1], [1, 2], [2], [1, 2], [1, 2], [3]])
PICTURES = [f"i{number}" for number in range(8)]  # the last two show nothing


def make(candidates=None, **changes):
    arguments = {"supports_from": "val", "dataset": "tiny", "fold": 1, "split": "val", "shot": 2, "seed": 3}
    chosen = candidates or support_candidates(VIEW.without([3]), Vanished((8, 8), frozenset()))
    return GeneralisedManifest(PICTURES, VIEW, {v: chosen[v] for v in (1, 2)}, **(arguments | changes))


def test_every_other_picture_once_with_the_same_supports_of_all_classes():
    manifest = make()
    supports = dict(manifest.header["supports"])
    used = {one for ids in supports.values() for one in ids}
    assert [spec.query_id for spec in manifest] == [one for one in PICTURES if one not in used]
    assert "i6" in [spec.query_id for spec in manifest]
    assert {spec.ways for spec in manifest} == {tuple(supports.items())}
    assert [spec.index for spec in manifest] == list(range(len(manifest)))
    for value, ids in supports.items():
        assert len(set(ids)) == 2
        assert all(value in VIEW.classes_of(int(one[1:])) for one in ids)


def test_matches_independent_reference():
    digest = hashlib.sha256(b'["generalised","tiny",1,"val",3]').digest()
    key = (int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little"))
    for value, pool in ((1, ["i0", "i1", "i3", "i4"]), (2, ["i1", "i2", "i3", "i4"])):
        for place, word in enumerate(philox(key, (0, 0, 0, value), 2)):
            other = place + word * (4 - place) // 2**64
            pool[place], pool[other] = pool[other], pool[place]
        assert dict(make().header["supports"])[value] == tuple(pool[:2])


def test_shots_are_nested_seeds_differ_and_the_hash_tells_all():
    many, few = (dict(make(shot=shot).header["supports"]) for shot in (3, 1))
    assert few == {value: ids[:1] for value, ids in many.items()}
    assert len({str(make(seed=seed).header["supports"]) for seed in range(8)}) > 3
    hashes = {
        make().sha256(),
        make(num_pictures=2).sha256(),
        make(seed=4).sha256(),
        make(supports_from="train").sha256(),
    }
    assert len(hashes) == 4
    assert make().sha256() == make().sha256()


def test_the_number_of_pictures_can_be_limited_and_one_must_be_left():
    assert [spec.query_id for spec in make(num_pictures=2)] == [spec.query_id for spec in make()][:2]
    with pytest.raises(IndexError, match=r"expected 0..1"):
        make(num_pictures=2)[2]
    with pytest.raises(ValueError, match=r"every picture of the list val of tiny is a support: lower shot=4"):
        make({1: PICTURES[:4], 2: PICTURES[4:]}, shot=4)


def test_what_vanishes_is_no_candidate():
    gone = Vanished((8, 8), frozenset({("i1", 1), ("i4", 2)}))
    assert support_candidates(VIEW, gone) == {1: ["i0", "i3", "i4"], 2: ["i1", "i2", "i3"], 3: ["i5"], 4: []}


class OnlyTested(MemoryDataset):
    """Its training pictures show no novel class of fold 1 (values 3 and 4)."""

    def read_mask(self, image_id):
        mask = super().read_mask(image_id)
        if image_id.startswith("train"):
            mask[(mask == 3) | (mask == 4)] = 0
        return mask


@pytest.mark.parametrize(("dataset", "supports_from"), [(MemoryDataset(), "train"), (OnlyTested(), "val")])
def test_supports_are_of_the_training_list_where_it_shows_all_novel_classes(dataset, supports_from):
    data = few_shot(dataset, setup="test", generalised=True, num_test_episodes=None, reuse_memory_gb=1.0)
    assert len(data.test_manifests) == 3
    for manifest in data.test_manifests:
        assert manifest.header["supports_from"] == supports_from
        used = {one for _, ids in manifest.header["supports"] for one in ids}
        assert all(one.startswith(supports_from) for one in used)
        assert len(manifest) == 24 - (len(used) if supports_from == "val" else 0)
    assert data.result_facts()["generalised"] is True


def test_a_class_with_too_few_pictures_is_named():
    with pytest.raises(
        ValueError, match=r"^generalised=true: [cd] has \d+ pictures, shot=40 asks for as many supports"
    ):
        few_shot(setup="test", generalised=True, shot=40, reuse_memory_gb=1.0)
