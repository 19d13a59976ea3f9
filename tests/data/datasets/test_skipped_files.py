"""`dataset.on_error=skip`: what cannot be read is left out, listed, and replaced by a function of the index alone."""

from __future__ import annotations

import logging
import shutil

import numpy as np
import pytest
from PIL import Image

from hdmnet.data.catalog import load_catalog
from hdmnet.data.datamodules.base_learner import BaseLearnerDataModule
from hdmnet.data.datamodules.few_shot import FewShotDataModule
from hdmnet.data.datasets.coco import CocoDataset
from hdmnet.data.datasets.pascal import PascalDataset
from hdmnet.data.datasets.skipped_files import STRIDE, SkippedFiles, UnreadableError, first_readable
from hdmnet.data.episodes.samples import check_files
from hdmnet.data.transforms import build_augment

AUGMENT = build_augment("none", image_size=(33, 33), scale=(1, 1), mean=(0.5, 0.5, 0.5))


@pytest.fixture
def tree(data_dir, tmp_path):
    shutil.copytree(data_dir / "pascal", tmp_path / "pascal")
    return tmp_path / "pascal"


@pytest.fixture
def dataset(tree):
    lists = tree / "ImageSets" / "Segmentation"
    return PascalDataset(tree, str(lists / "train.txt"), str(lists / "val.txt"), min_area=128)


def catalog_of(dataset, split, cache=None):
    return load_catalog(dataset, split, cache, skip=True, num_workers=0, progress=False)


def cut_picture(dataset, image_id):
    """Header and end mark stay, so that only decoding tells."""
    path = dataset.image_path(image_id)
    data = path.read_bytes()
    scan = data.index(b"\xff\xda") + 20
    path.write_bytes(data[:scan] + b"\xff\xc0\x00\x04ab" + data[scan + 6 :])


def few_shot(dataset, **changes):
    arguments = {"fold": 0, "shot": 1, "image_size": (33, 33), "augment": AUGMENT}
    arguments |= {"batch_size": 2, "num_workers": 0, "episodes_per_epoch": 8, "num_val_episodes": 4, "cache_dir": None}
    return FewShotDataModule(dataset, mean=(0.5,) * 3, std=(0.5,) * 3, **arguments | changes)


# ------------------------------------------------------------------------------------------------------------ the list


def test_what_cannot_be_read_is_in_no_list(dataset, tmp_path, caplog):
    train, val = dataset.ids("train"), dataset.ids("val")
    cut_picture(dataset, train[3])
    dataset.mask_path(train[5]).write_bytes(b"")
    dataset.image_path(val[0]).unlink()  # a missing file too
    Image.new("L", (5, 5)).save(dataset.mask_path(val[1]))
    with caplog.at_level(logging.WARNING):
        catalog = catalog_of(dataset, "train", tmp_path / "cache")
    assert catalog.ids.tolist() == [one for one in train if one not in (train[3], train[5])]
    assert [image_id for image_id, _ in catalog.skipped] == [train[3], train[5]]
    assert str(dataset.image_path(train[3])) in catalog.skipped[0][1]
    assert str(dataset.mask_path(train[5])) in catalog.skipped[1][1]
    assert "dataset.on_error=skip: 2 of 40 train images of pascal are left out, the first because" in caplog.text
    found = catalog_of(dataset, "val").skipped
    assert [image_id for image_id, _ in found] == val[:2]


def test_the_catalog_of_the_rest_is_as_if_the_others_were_never_listed(dataset, tree, tmp_path):
    train = dataset.ids("train")
    for image_id in (train[0], train[7], train[-1]):
        cut_picture(dataset, image_id)
    skipping = catalog_of(dataset, "train")
    (tmp_path / "rest.txt").write_text("\n".join(skipping.ids.tolist()))
    rest = PascalDataset(tree, str(tmp_path / "rest.txt"), str(tree / "ImageSets/Segmentation/val.txt"), min_area=128)
    alone = load_catalog(rest, "train", None, num_workers=0, progress=False)
    for name in ("ids", "image_index", "class_value", "area"):
        np.testing.assert_array_equal(getattr(skipping, name), getattr(alone, name))


def test_the_cache_keeps_what_was_skipped_and_is_not_taken_for_a_strict_one(dataset, tmp_path):
    cut_picture(dataset, dataset.ids("train")[3])
    first = catalog_of(dataset, "train", tmp_path / "cache")
    again = catalog_of(dataset, "train", tmp_path / "cache")
    assert again.skipped == first.skipped != ()
    np.testing.assert_array_equal(again.image_index, first.image_index)
    strict = load_catalog(dataset, "train", tmp_path / "cache", num_workers=0, progress=False)
    assert len(strict) == len(first) + 1  # its header is whole, and a strict scan looks no further
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_more_than_half_is_no_accident(dataset):
    for image_id in dataset.ids("train")[:21]:
        dataset.mask_path(image_id).write_bytes(b"")
    with pytest.raises(ValueError, match=r"^21 of 40 train images of pascal cannot be read, .*: too many to skip"):
        catalog_of(dataset, "train")


def test_coco_may_lack_pictures(data_dir, tmp_path):
    shutil.copytree(data_dir / "coco", tmp_path / "coco")
    dataset = CocoDataset(tmp_path / "coco")
    lost = dataset.ids("val")[4]
    dataset.image_path(lost).unlink()
    with pytest.raises(FileNotFoundError, match="1 of 200 ids have no picture"):
        dataset.check()
    dataset.check(files=False)
    assert [one for one, _ in catalog_of(dataset, "val").skipped] == [lost]


# ---------------------------------------------------------------------------------------------------------- in training


def test_a_sample_is_replaced_by_the_next_that_can_be_read(tmp_path):
    skips = SkippedFiles(tmp_path / "s")

    def draw(index):
        if index in (5, 5 + STRIDE):
            raise UnreadableError(f"picture of {index}")
        return index

    assert [first_readable(index, draw, skips) for index in (4, 5, 6)] == [4, 5 + 2 * STRIDE, 6]
    assert skips.read() == {"picture of 5": 1, f"picture of {5 + STRIDE}": 1}
    first_readable(5, draw, skips)  # another epoch's worker, or a resumed run
    assert skips.read()["picture of 5"] == 1
    with pytest.raises(UnreadableError):
        first_readable(5, draw, None)


def test_only_unreadable_files_are_skipped():
    def bug(index):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match=r"^a bug$"):
        first_readable(0, bug, SkippedFiles(None))


def test_a_disk_that_is_gone_ends_the_run():
    def draw(index):
        raise UnreadableError("picture x.jpg cannot be read")

    with pytest.raises(ValueError, match="100 training samples in a row could not be read, the last because picture x"):
        first_readable(0, draw, SkippedFiles(None))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_file_that_breaks_in_training(dataset, tree, num_workers):
    """The same episodes for any number of workers; the list says which file and how many episodes."""
    data = few_shot(dataset, num_workers=num_workers, skips=SkippedFiles(tree.parent / "skipped"))
    data.setup("fit")
    whole = [episode for batch in data.train_dataloader() for episode in zip(batch.query_id, batch.index, strict=True)]
    broken = whole[0][0]
    cut_picture(dataset, broken)
    after = [episode for batch in data.train_dataloader() for episode in zip(batch.query_id, batch.index, strict=True)]
    assert len(after) == len(whole)
    assert int(after[0][1]) >= STRIDE
    assert all(query != broken for query, _ in after)
    spec = data.train_manifest[int(after[0][1])]
    assert spec.query_id == after[0][0]  # the index tells the episode again
    (entry,) = data.skipped_files()
    assert entry["split"] == "train"
    assert str(dataset.image_path(broken)) in entry["why"]
    assert entry["episodes"] == sum(int(index) >= STRIDE for _, index in after)


def test_in_an_evaluation_it_ends_the_run(dataset):
    data = few_shot(dataset, skips=SkippedFiles(None))
    data.setup("validate")
    cut_picture(dataset, data.val_manifest[0].query_id)
    with pytest.raises(ValueError, match="cannot be read"):
        list(data.val_dataloader())


def test_without_the_setting_nothing_is_skipped(dataset):
    data = few_shot(dataset)
    data.setup("fit")
    assert data.skipped_files() == []
    cut_picture(dataset, data.train_manifest[0].query_id)
    with pytest.raises(ValueError, match="cannot be read") as caught:
        list(data.train_dataloader())
    assert not isinstance(caught.value, UnreadableError)


def test_the_base_learner_leaves_out_the_same(dataset):
    lost = dataset.ids("val")[2]
    cut_picture(dataset, lost)
    data = BaseLearnerDataModule(
        dataset,
        **{"fold": 0, "image_size": (33, 33), "augment": AUGMENT, "batch_size": 2},
        **{"mean": (0.5,) * 3, "std": (0.5,) * 3, "cache_dir": None, "num_workers": 0, "skips": SkippedFiles(None)},
    )
    data.setup("fit")
    assert lost not in data.val_ids
    assert len(data.val_ids) == len(dataset.ids("val")) - 1


# -------------------------------------------------------------------------------------------------- the look before it


def test_some_files_are_decoded_before_a_run(dataset):
    """A picture whose header and end are whole passes the scan, and would fail hours later."""
    data = few_shot(dataset)
    data.setup("fit")
    view = data.train_manifest.view
    used = view.ids.tolist()
    assert sorted(check_files(dataset, view, 10**6)) == sorted(used)
    assert check_files(dataset, view, 5) == check_files(dataset, view, 5)
    assert len(set(check_files(dataset, view, 5)) ^ set(check_files(dataset, view, 5, seed=1))) > 0
    assert check_files(dataset, view, 0) == []
    for image_id in used:
        cut_picture(dataset, image_id)
    with pytest.raises(ValueError, match=r"picture .*JPEGImages.* cannot be read"):
        few_shot(dataset, check_files=2).setup("fit")
    few_shot(dataset).setup("fit")
