"""Objects that vanish at the network's size: found, counted, told, and never supports."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from hdmnet.data import vanished as vanished_module
from hdmnet.data.catalog import load_catalog
from hdmnet.data.datasets.base import LabelMapDataset
from hdmnet.data.episodes.manifest import EpisodeManifest, read_manifest
from hdmnet.data.episodes.samples import EvalEpisodes
from hdmnet.data.transforms import resize_mask
from hdmnet.data.vanished import Vanished, find_vanished
from hdmnet.runtime.errors import DatasetError
from tests.helpers.datasets import few_shot

SIZE = (32, 40)


class Specks(LabelMapDataset):
    """Eight classes of six pictures; of the pictures 1 and 4 of each class only a speck of 2 x 2 px is marked.

    Attributes:
        tells_size: Whether sizes can be told without decoding.
        large: Whether pictures are larger than the network's input.
    """

    name = "specks"
    class_names = tuple("abcdefgh")
    num_folds = 2
    min_area = 1
    tells_size = True
    large = True
    reads = 0

    def ids(self, split):
        return [f"{split}{number:02}" for number in range(48)]

    def image_size(self, image_id):
        return ((128, 200) if self.large else SIZE) if self.tells_size else None

    def read_mask(self, image_id):
        self.reads += 1
        value, number = divmod(int(image_id[-2:]), 6)
        mask = np.zeros((128, 200) if self.large else SIZE, np.uint8)
        side = 2 if number % 3 == 1 else 12
        mask[13 : 13 + side, 11 : 11 + side] = value + 1
        return mask

    def read_image(self, image_id):
        return np.repeat(self.read_mask(image_id)[..., None] * np.uint8(20), 3, axis=2)

    def fingerprint(self, split):
        return split


def specks(dataset, split="val"):
    """Ids of the pictures with a speck, by class value."""
    return {value: {f"{split}{6 * (value - 1) + number:02}" for number in (1, 4)} for value in range(1, 9)}


def catalog_of(dataset, split="val"):
    return load_catalog(dataset, split, None, num_workers=0, progress=False)


def found(dataset, split="val", size=SIZE, cache=None, **options):
    return find_vanished(dataset, split, catalog_of(dataset, split), size, cache, progress=False, **options)


@pytest.mark.parametrize("tells_size", [True, False])
def test_what_vanishes_is_what_the_resize_leaves_nothing_of(tells_size):
    dataset = Specks()
    dataset.tells_size = tells_size
    expected = {(image_id, value) for value, ids in specks(dataset).items() for image_id in ids}
    assert found(dataset) == Vanished(SIZE, frozenset(expected))
    for image_id, value in expected:
        assert dataset.read_class_mask(image_id, value).sum() == 4
        assert not resize_mask(dataset.read_class_mask(image_id, value), SIZE).any()
    assert found(dataset, size=(128, 200)).pairs == frozenset()  # nothing is made smaller
    dataset.min_area = 5
    assert found(dataset).pairs == frozenset()  # none of them counts


def test_large_objects_are_not_looked_at():
    dataset = Specks()
    catalog = catalog_of(dataset)
    dataset.reads = 0
    find_vanished(dataset, "val", catalog, (100, 150), None, progress=False)
    assert dataset.reads == 48  # 144 px: less than a strip of 128 px by 200 / 150 and one of 200 px by 128 / 100
    dataset.reads, dataset.min_area = 0, 144
    find_vanished(dataset, "val", catalog, (127, 199), None, progress=False)
    assert dataset.reads == 32
    find_vanished(dataset, "val", catalog, (128, 200), None, progress=False)
    assert dataset.reads == 32


def test_it_is_found_once_and_kept(tmp_path, monkeypatch):
    dataset = Specks()
    first = found(dataset, cache=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(vanished_module, "_look", None)
        assert found(dataset, cache=tmp_path) == first
    assert found(dataset, cache=tmp_path, size=(64, 100)) != first
    dataset.min_area = 5
    assert found(dataset, cache=tmp_path).pairs == frozenset()


def test_what_cannot_be_read_is_passed_over_where_it_may_be(monkeypatch):
    dataset = Specks()
    catalog = catalog_of(dataset)

    def fail(image_id, value):
        raise DatasetError(f"{image_id} is damaged")

    monkeypatch.setattr(dataset, "read_class_mask", fail)
    with pytest.raises(ValueError, match="is damaged"):
        find_vanished(dataset, "val", catalog, SIZE, None, progress=False)
    assert find_vanished(dataset, "val", catalog, SIZE, None, skip=True, progress=False).pairs == frozenset()


# ----------------------------------------------------------------------------------------------------------- manifests


def manifest_of(dataset, vanished, **changes):
    view = catalog_of(dataset).view([1, 2, 3], min_area=1)
    about = {"dataset": "specks", "fold": 0, "split": "val", "shot": 2, "seed": 3, "num_episodes": 60}
    return EpisodeManifest(view, **about | changes, vanished=vanished)


def test_where_nothing_vanishes_manifests_are_as_ever():
    dataset = Specks()
    plain = manifest_of(dataset, None)
    for vanished in (Vanished(SIZE, frozenset()), Vanished(SIZE, frozenset({("val30", 6), ("elsewhere", 1)}))):
        other = manifest_of(dataset, vanished)
        assert other.header == plain.header
        assert other.sha256() == plain.sha256()


@pytest.mark.parametrize(("shot", "allow_repeats"), [(1, False), (2, False), (3, False), (9, True)])
def test_an_empty_support_is_replaced_by_the_next_of_the_draw(shot, allow_repeats, tmp_path):
    dataset, options = Specks(), {"shot": shot, "allow_repeats": allow_repeats}
    plain, manifest = manifest_of(dataset, None, **options), manifest_of(dataset, found(dataset), **options)
    assert manifest.header == plain.header | {"vanished": {"image_size": [32, 40], "objects": 6}}
    barred, changed = specks(dataset), 0
    whole = manifest_of(dataset, None, shot=5, allow_repeats=True)  # one round of all five other pictures
    for before, after, all_five in zip(plain, manifest, whole, strict=True):
        assert (after.query_id, after.class_value) == (before.query_id, before.class_value)
        usable = [one for one in all_five.support_ids if one not in barred[after.class_value]]
        assert after.support_ids[: len(usable)] == tuple(usable[:shot])
        assert len(after.support_ids) == shot
        assert after.query_id not in after.support_ids
        assert not set(after.support_ids) & barred[after.class_value]
        assert len(set(after.support_ids)) == min(shot, len(usable))
        changed += before.support_ids != after.support_ids
    assert {spec.query_id for spec in manifest} == {f"val{number:02}" for number in range(18)}  # also with a speck
    assert changed > 0
    manifest.write(tmp_path / "m.jsonl")
    assert read_manifest(tmp_path / "m.jsonl").sha256() == manifest.sha256() != plain.sha256()


def test_fewer_shots_are_the_first_of_more():
    dataset = Specks()
    one, three = (manifest_of(dataset, found(dataset), shot=shot) for shot in (1, 3))
    assert [spec.support_ids for spec in one] == [spec.support_ids[:1] for spec in three]


def test_classes_of_which_too_much_vanishes_have_too_few():
    dataset = Specks()
    line = (
        r"none of the 3 classes of specks fold 0 val has the 5 images that shot=4 needs .*; the most has a, 4: .*, or "
    )
    with pytest.raises(ValueError, match=line + r"raise dataset.image_size \(of the objects 6 vanish"):
        manifest_of(dataset, found(dataset), shot=4)
    manifest_of(dataset, None, shot=4)
    of_one = Vanished(SIZE, frozenset(pair for pair in found(dataset).pairs if pair[1] == 2))
    manifest = manifest_of(dataset, of_one, shot=4)
    assert manifest.too_few == {2: 4}
    assert manifest.header["vanished"]["objects"] == 2
    assert {spec.class_value for spec in manifest} == {1, 3}
    assert manifest.tell_too_few().endswith(
        "b (4); add images, lower shot or set dataset.allow_repeats=true, or raise dataset.image_size (of the objects "
        "2 vanish at the network's size)"
    )


# --------------------------------------------------------------------------------------------------------- DataModules


def test_supports_of_all_lists_show_something_and_it_is_told(caplog):
    with caplog.at_level(logging.WARNING):
        data = few_shot(Specks(), setup=None, fold=0, num_val_episodes=30, episodes_per_epoch=40, batch_size=1)
        data.setup()
        data.setup("test")
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    begin = (
        "objects (a class in an image) of specks fold 0 {} that vanish at the network's 32x40: 8, of {}; they are never"
    )
    assert told[0].startswith(begin.format("train", "e (2), f (2), g (2), h (2)"))
    assert "as queries their targets are empty" in told[0]
    assert told[1].startswith(begin.format("val", "a (2), b (2), c (2), d (2)"))
    assert "as queries they are scored at their own size" in told[1]
    counts = {"train": dict.fromkeys("efgh", 2), "val": dict.fromkeys("abcd", 2)}
    assert data.result_facts()["vanished"] == counts
    empty_queries = 0
    for batch in (*data.val_dataloader(), *data.test_dataloader(), *data.train_dataloader()):
        assert (batch.support_masks == 1).flatten(2).any(dim=2).all()
        empty_queries += int(not (batch.query_mask == 1).any())
    assert empty_queries > 0


def test_the_control_with_masks_of_ones_has_the_same_episodes_and_is_quiet(caplog):
    data = few_shot(Specks(), setup="test", fold=0)
    caplog.clear()
    ones = few_shot(Specks(), setup="test", fold=0, support_mask="ones")
    assert not caplog.records
    assert [one.sha256() for one in ones.test_manifests] == [one.sha256() for one in data.test_manifests]


def test_nothing_is_said_where_nothing_vanishes(caplog):
    dataset = Specks()
    dataset.large = False
    data = few_shot(dataset, setup="test", fold=0)
    assert not caplog.records
    assert "vanished" not in data.test_manifests[0].header
    assert data.result_facts()["vanished"] == {}


class Loses:
    """An augmentation that loses every object, but for every other seed."""

    image_size = SIZE

    def __init__(self, keeps=True):
        self.keeps = keeps

    def __call__(self, image, mask, seed):
        lost = np.zeros(SIZE, np.uint8)
        if self.keeps and seed % 2 == 0:
            lost[0, 0] = 1
        return np.zeros((*SIZE, 3), np.uint8), lost


@pytest.mark.parametrize("keeps", [True, False])
def test_a_support_that_an_augmentation_empties_is_augmented_again(keeps):
    data = few_shot(Specks(), setup=None, fold=0, shot=2, batch_size=1, episodes_per_epoch=20)
    data.augment = Loses(keeps)
    data.setup("fit")
    masks = [batch.support_masks for batch in data.train_dataloader()]
    assert all((mask == 1).flatten(2).any(dim=2).all() for mask in masks)
    again = [batch.support_masks for batch in data.train_dataloader()]
    assert all(one.equal(other) for one, other in zip(masks, again, strict=True))
    sums = {int(total) for mask in masks for total in mask.sum((0, 2, 3))}
    assert sums == {1} if keeps else min(sums) > 1  # in the end it is only resized


def test_an_empty_support_that_nobody_foresaw_ends_an_evaluation():
    """Stripes of just the frequency at which pixels are left out are too large to be looked for."""
    dataset = Specks()
    manifest = manifest_of(dataset, None, num_episodes=18)
    episodes = EvalEpisodes(dataset, [manifest], classes=[1, 2, 3], image_size=SIZE)
    index = next(
        number for number, spec in enumerate(manifest) if spec.support_ids[0] in specks(dataset)[spec.class_value]
    )
    with pytest.raises(ValueError, match=r"nothing of [abc] is left at the network's 32x40, so it is no support"):
        episodes[index]
