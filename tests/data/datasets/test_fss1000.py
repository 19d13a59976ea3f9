from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from hdmnet.data.datasets.files import read_ids
from hdmnet.data.datasets.fss1000 import NUM_CLASSES, PICTURES_PER_CLASS, Fss1000Dataset, read_half
from hdmnet.data.datasets.pascal import LISTS
from tests.helpers.datasets import few_shot
from tests.helpers.trees import FSS_OTHERS, FSS_TEST, write_fss_tree

TEST_CLASSES = read_ids(LISTS / "fss1000_test.txt", str)
OTHERS = tuple(f"class_{number}" for number in range(760))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The whole data set's folders and files, which are empty."""
    root = tmp_path_factory.mktemp("fss1000")
    for name in (*TEST_CLASSES, *OTHERS):
        (root / name).mkdir()
        for number in range(1, 11):
            for suffix in ("jpg", "png"):
                (root / name / f"{number}.{suffix}").touch()
    return root


@pytest.fixture
def tree(tmp_path):
    return write_fss_tree(tmp_path / "fss1000")


def test_the_shipped_test_classes_are_the_authors():
    """`fss_test_set.txt` of github.com/HKUSTCV/FSS-1000: 240 classes, of which these are the first and last."""
    assert len(set(TEST_CLASSES)) == len(TEST_CLASSES) == 240
    assert (TEST_CLASSES[0], TEST_CLASSES[4], TEST_CLASSES[-1]) == ("bus", "abe's_flyingfish", "tower_pisa")


def test_the_whole_data_set_has_the_published_counts(whole):
    """Paper, section 4: 5,200 / 2,400 / 2,400 pairs of picture and label."""
    dataset = Fss1000Dataset(whole)
    dataset.check()
    split = dataset.class_split(0)
    assert tuple(map(len, (split.train, split.val, split.test))) == NUM_CLASSES == (520, 240, 240)
    assert [len(dataset.ids(one)) for one in dataset.splits] == [5200, 2400, 2400]
    assert len(dataset.class_names) == 1000
    assert {dataset.class_names[value - 1] for value in split.test} == set(TEST_CLASSES)
    assert not set(split.train) & set(split.novel)
    assert not set(split.val) & set(split.test)
    # Drawn by their names, so everywhere the same.
    assert [dataset.class_names[value - 1] for value in split.val][:3] == ["class_1", "class_102", "class_103"]
    assert dataset.class_split(3) == split  # checkpoints of any fold are tested


def test_hsnets_lists_are_taken_and_counted(whole, tmp_path):
    """HSNet's data/splits/fss: trn.txt, val.txt, test.txt with a class a line."""
    lists = {"trn": OTHERS[:520], "val": OTHERS[520:], "test": TEST_CLASSES}
    for name, classes in lists.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(classes) + "\n")
    dataset = Fss1000Dataset(whole, split_dir=str(tmp_path))
    dataset.check()
    assert dataset.class_lists == {
        split: tuple(sorted(lists[name])) for split, name in zip(dataset.splits, lists, strict=True)
    }
    (tmp_path / "val.txt").write_text("\n".join(OTHERS[521:]) + "\n")
    with pytest.raises(ValueError, match=r"has \(520, 239, 240\) classes .* expected \(520, 240, 240\): unpack"):
        Fss1000Dataset(whole, split_dir=str(tmp_path)).check()
    (tmp_path / "val.txt").write_text("\n".join([*OTHERS[521:], "bus"]) + "\n")
    with pytest.raises(ValueError, match=r"holds id 'bus' more than once"):
        Fss1000Dataset(whole, split_dir=str(tmp_path)).check()


def test_what_is_not_whole_is_refused_in_one_line(tree, tmp_path):
    with pytest.raises(ValueError, match=r"has \(6, 2, 3\) classes .* of a part of it set dataset.num_classes=null$"):
        Fss1000Dataset(tree).check()
    counts = (6, 2, 3)
    Fss1000Dataset(tree, num_classes=counts).check()
    (tree / "bus" / "3.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"mask .*bus/3\.png is missing"):
        Fss1000Dataset(tree, num_classes=counts).check()
    (tree / "bus" / "3.jpg").unlink()
    with pytest.raises(ValueError, match=r"bus has 9 pictures, expected 10"):
        Fss1000Dataset(tree, num_classes=counts).check()
    Fss1000Dataset(tree, num_classes=None).check()
    with pytest.raises(FileNotFoundError, match=r"FSS-1000 folder .*nowhere is missing: unpack"):
        Fss1000Dataset(tmp_path / "nowhere").check()
    assert PICTURES_PER_CLASS == 10


@pytest.mark.parametrize("inside", ["data", "fewshot_data", "fewshot_data/fewshot_data"])
def test_the_class_folders_are_found_where_zips_have_them(tree, tmp_path, inside):
    (tmp_path / "root" / inside).parent.mkdir(parents=True)
    shutil.move(tree, tmp_path / "root" / inside)
    assert Fss1000Dataset(tmp_path / "root", num_classes=None).ids("test")[0] == "accordion/1"


def test_each_test_picture_is_once_the_query(tree):
    dataset = Fss1000Dataset(tree, num_classes=None)
    changes = {"fold": 0, "shot": 5, "num_test_seeds": 1, "num_test_episodes": 10 * len(FSS_TEST)}
    manifest = few_shot(dataset, setup="test", **changes).test_manifests[0]
    assert sorted(spec.query_id for spec in manifest) == sorted(dataset.ids("test"))
    for spec in manifest:
        assert {one.split("/")[0] for one in spec.support_ids} == {spec.query_id.split("/")[0]}
        assert len({spec.query_id, *spec.support_ids}) == 6


def test_a_fingerprint_follows_files_and_lists(tree):
    first = Fss1000Dataset(tree, num_classes=None).fingerprint("val")
    assert Fss1000Dataset(tree, num_classes=None).fingerprint("val") == first
    name = Fss1000Dataset(tree, num_classes=None).class_lists["val"][0]
    assert name in FSS_OTHERS
    Image.fromarray(np.zeros((48, 48), np.uint8)).save(tree / name / "1.png")
    assert Fss1000Dataset(tree, num_classes=None).fingerprint("val") != first


GREY = np.array([[0, 1, 60, 127], [128, 129, 200, 255]], np.uint8)
HALF = (GREY >= 128).astype(np.uint8)
FULL = np.full_like(GREY, 255)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (HALF, HALF),
        (HALF * 255, HALF),
        (HALF.astype(bool), HALF),
        (GREY, HALF),  # soft: a 1 beside a 255 is no class, a 255 is not ignored
        (np.dstack([GREY, GREY, GREY]), HALF),
        (np.dstack([GREY, GREY, GREY, FULL]), HALF),
        (np.dstack([GREY, GREY, GREY, GREY]), HALF),
        (np.dstack([FULL, FULL, FULL, GREY]), HALF),
        (np.dstack([FULL, FULL, FULL, FULL]), np.ones_like(GREY)),
        (np.zeros_like(GREY), np.zeros_like(GREY)),
        (np.minimum(GREY, 127), np.zeros_like(GREY)),
    ],
)
def test_masks_as_people_have_them(tmp_path, stored, expected):
    Image.fromarray(stored).save(tmp_path / "1.png")
    np.testing.assert_array_equal(read_half(tmp_path / "1.png"), expected)
