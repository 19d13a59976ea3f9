"""HSNet's lists, and the names of other lines of work's."""

from __future__ import annotations

import os
import pickle

import pytest

from hdmnet.data.catalog import load_catalog, training_view
from hdmnet.data.datasets.coco import CocoDataset
from hdmnet.data.datasets.pair_lists import read_pair_lists
from hdmnet.data.datasets.pascal import PascalDataset


def write(folder, *, val="a__01\nb__02\nb__01\n", trn="c__20\n"):
    for name, text in (("trn", trn), ("val", val)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "fold0.txt").write_text(text)
    return folder


def test_every_fold_is_read_and_each_pair_once(tmp_path):
    write(tmp_path, trn="a__01\nb__16\n")
    (tmp_path / "trn" / "fold3.txt").write_text("b__17\na__01\n\n")
    found = read_pair_lists(tmp_path, 20, str)
    assert found.ids["train"] == ["a", "b"]
    assert found.pairs["train"] == {("a", 1), ("b", 16), ("b", 17)}
    assert found.ids["val"] == ["a", "b"]


def test_coco_s_are_pickles_of_plain_values(tmp_path):
    root = write(tmp_path / "coco" / "lists").parent
    for name in ("trn", "val"):
        for file in (root / "lists" / name).iterdir():
            file.unlink()
    by_class = {0: ["train2014/COCO_train2014_000000000009.jpg"], 79: ["train2014/COCO_train2014_000000000009.jpg"]}
    (root / "lists" / "trn" / "fold0.pkl").write_bytes(pickle.dumps(by_class))
    (root / "lists" / "val" / "fold0.pkl").write_bytes(pickle.dumps({4: ["val2014/COCO_val2014_000000000042.jpg"]}))
    dataset = CocoDataset(root, lists="lists")
    assert dataset.ids("train") == ["train2014/COCO_train2014_000000000009"]
    assert dataset.listed_pairs("train") == {(dataset.ids("train")[0], 1), (dataset.ids("train")[0], 80)}
    assert dataset.listed_pairs("val") == {("val2014/COCO_val2014_000000000042", 5)}


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_a_pickle_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "lists")
    (tmp_path / "lists" / "val" / "fold0.txt").unlink()
    (tmp_path / "lists" / "val" / "fold0.pkl").write_bytes(pickle.dumps({0: [Harmful()]}))
    with pytest.raises(ValueError, match=r"fold0\.pkl is none of HSNet's lists \(it holds a \w+\.mkdir\)"):
        read_pair_lists(tmp_path / "lists", 80, str)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("val", "message"),
    [
        ("a 01\n", "none of HSNet's lists"),
        ("a__x\n", "none of HSNet's lists"),
        ("a__21\n", r"holds class 21; expected classes 1\.\.20"),
        ("\n", "holds no pair"),
    ],
)
def test_refusals(tmp_path, val, message):
    with pytest.raises(ValueError, match=message):
        read_pair_lists(write(tmp_path, val=val), 20, str)


def test_what_is_neither_a_name_nor_a_folder_is_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"dataset\.lists=hsn: expected pfenet, bam, hdmnet, hsnet, panet, or the"
    ):
        PascalDataset(tmp_path, lists="hsn").ids("val")
    with pytest.raises(FileNotFoundError, match=r"holds no fold0\.txt or fold0\.pkl"):
        PascalDataset(tmp_path, lists=str(tmp_path)).ids("val")


def test_names_stand_for_the_lists_of_the_releases(tmp_path):
    """Their counts: 5,953 of PFENet, BAM and HDMNet; 1,449 of everyone (VOC 2012 val)."""
    for name in ("pfenet", "bam", "hdmnet"):
        dataset = PascalDataset(tmp_path, lists=name)
        assert (len(dataset.ids("train")), len(dataset.ids("val"))) == (5953, 1449)
        assert dataset.listed_pairs("val") is None
    for name in ("hsnet", "panet"):
        assert PascalDataset(tmp_path, lists=name).lists == {"train": "trainaug", "val": "val"}


@pytest.mark.skipif("HDMNET_VOC_MASKS" not in os.environ, reason="needs all masks of VOC and SBD: HDMNET_VOC_MASKS=DIR")
def test_trainaug_has_10582_pictures(tmp_path):
    (tmp_path / "SegmentationClassAug").symlink_to(os.environ["HDMNET_VOC_MASKS"])
    assert len(PascalDataset(tmp_path, lists="hsnet").ids("train")) == 10582


def test_episodes_are_drawn_of_the_listed_pairs_only(data_dir, tmp_path):
    root = data_dir / "pascal"
    plain = PascalDataset(
        root, str(root / "ImageSets/Segmentation/train.txt"), str(root / "ImageSets/Segmentation/val.txt")
    )
    catalog = load_catalog(plain, "val", None, progress=False)
    everything = [
        (str(catalog.ids[image]), int(value))
        for image, value in zip(catalog.image_index, catalog.class_value, strict=True)
    ]
    listed = everything[::2]
    train = [(image, value) for image in plain.ids("train") for value in plain.class_areas(image)][::3]

    def lines(pairs):
        return "".join(f"{image}__{value:02d}\n" for image, value in pairs)

    dataset = PascalDataset(root, lists=str(write(tmp_path, val=lines(listed), trn=lines(train))), min_area=1)
    view = load_catalog(dataset, "val", None, progress=False).view(
        range(1, 21), min_area=1, pairs=dataset.listed_pairs("val")
    )
    found = {(str(view.ids[image]), value) for value in view.classes for image in view.images_of(value)}
    assert found == set(listed)
    split = dataset.class_split(0)
    kept = training_view(load_catalog(dataset, "train", None, progress=False), dataset, split, filter_novel=False)
    assert {(str(kept.ids[i]), value) for value in kept.classes for i in kept.images_of(value)} == {
        pair for pair in train if pair[1] in split.train
    }
