from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from hdmnet.data.datasets.files import read_ids
from hdmnet.data.datasets.pascal import CLASS_NAMES, LISTS, PascalDataset
from hdmnet.data.io.masks import write_mask

TRAIN = [f"2007_00000{i}" for i in range(4)]
VAL = ["2007_000033", "2007_000042"]  # of the shipped VOC 2012 val
EXTRA = ["2008_000008"]


def constant_mask(image_id, value):
    mask = np.full((6, 8), value, dtype=np.uint8)
    mask[0] = 255
    return mask


@pytest.fixture
def tree(tmp_path):
    """A VOC tree of 7 images: VOC masks (value 1) of train and val, Aug masks (value 2) of train and the extra one."""
    root = tmp_path / "pascal"
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationClassAug", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for number, image_id in enumerate(TRAIN + VAL + EXTRA):
        Image.fromarray(np.full((6, 8, 3), 10 * number, dtype=np.uint8)).save(root / "JPEGImages" / f"{image_id}.jpg")
    for image_id in TRAIN + VAL:
        write_mask(root / "SegmentationClass" / f"{image_id}.png", constant_mask(image_id, 1))
    for image_id in TRAIN + EXTRA:
        write_mask(root / "SegmentationClassAug" / f"{image_id}.png", constant_mask(image_id, 2))
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(reversed(TRAIN)) + "\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("\n".join(VAL) + "\n")
    return root


def test_shipped_lists_have_the_counts_of_the_field():
    train, val, sbd = (
        set(read_ids(LISTS / f"{name}.txt")) for name in ("voc2012_train", "voc2012_val", "sbd_train_noval")
    )
    assert (len(train), len(val), len(sbd), len(train | sbd)) == (1464, 1449, 5623, 5953)
    assert not val & (train | sbd)


def test_class_names_are_vocs_in_order():
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == 20
    assert (CLASS_NAMES[0], CLASS_NAMES[7], CLASS_NAMES[14], CLASS_NAMES[19]) == (
        "aeroplane",
        "cat",
        "person",
        "tvmonitor",
    )


def test_defaults(tree):
    dataset = PascalDataset(tree)
    assert (dataset.name, dataset.num_folds, dataset.split_rule, dataset.min_area) == ("pascal", 4, "contiguous", 2048)
    ids = dataset.ids("train")
    assert len(ids) == 5953
    assert ids == sorted(ids)
    assert PascalDataset(tree, train_list=5953).ids("train") == ids  # as a command line gives it
    assert dataset.ids("val") == VAL


def test_lists_of_the_tree_keep_their_order(tree):
    assert PascalDataset(tree, "voc").ids("train") == TRAIN[::-1]
    shutil.rmtree(tree / "ImageSets")
    assert PascalDataset(tree, "voc").ids("train") == read_ids(LISTS / "voc2012_train.txt")
    assert len(PascalDataset(tree).ids("val")) == 1449


def test_trainaug_is_the_trees_list_or_all_masks_but_val(tree):
    assert PascalDataset(tree, "trainaug").ids("train") == TRAIN + EXTRA
    (tree / "ImageSets/Segmentation/val.txt").write_text(VAL[0] + "\n")  # a reduced val lets no other val image in
    assert PascalDataset(tree, "trainaug").ids("train") == TRAIN + EXTRA
    (tree / "ImageSets/Segmentation/trainaug.txt").write_text(f"{EXTRA[0]}\n{TRAIN[0]}\n")
    assert PascalDataset(tree, "trainaug").ids("train") == [EXTRA[0], TRAIN[0]]


def test_path_of_a_list_is_sought_in_the_tree_then_here_then_taken_as_it_is(tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text(TRAIN[0] + "\n")
    assert PascalDataset(tree, "mine.txt").ids("train") == [TRAIN[0]]
    assert PascalDataset(tree, str(tmp_path / "mine.txt")).ids("train") == [TRAIN[0]]
    (tree / "ImageSets/Segmentation/mine.txt").write_text(TRAIN[1] + "\n")
    assert PascalDataset(tree, "mine.txt", "mine").ids("train") == [TRAIN[1]]
    with pytest.raises(
        FileNotFoundError, match=r"'no\.txt' is neither a known name \(5953, trainaug, voc\) nor a file in"
    ):
        PascalDataset(tree, "no.txt").ids("train")


def test_lists_of_other_codebases_hold_pairs_of_paths(tree):
    lines = [f"/JPEGImages/{i}.jpg /SegmentationClassAug/{i}.png\r\n" for i in TRAIN[:2]] + [
        f"JPEGImages/{TRAIN[2]}.jpg\n"
    ]
    (tree / "ImageSets/Segmentation/pairs.txt").write_text("".join(lines), newline="")
    assert PascalDataset(tree, "pairs.txt").ids("train") == TRAIN[:3]
    (tree / "ImageSets/Segmentation/pairs.txt").write_text(f"JPEGImages/{TRAIN[0]}.jpg\n{TRAIN[0]}\n")
    with pytest.raises(ValueError, match=r"pairs\.txt holds id '2007_000000' more than once"):
        PascalDataset(tree, "pairs.txt").ids("train")


def test_mask_comes_from_aug_and_where_it_lacks_from_voc(tree):
    dataset = PascalDataset(tree, "voc")
    for image_id, value in ((TRAIN[0], 2), (EXTRA[0], 2), (VAL[0], 1)):
        np.testing.assert_array_equal(dataset.read_mask(image_id), constant_mask(image_id, value))
    assert dataset.mask_location(VAL[0]) == str(tree / "SegmentationClass" / f"{VAL[0]}.png")
    image = dataset.read_image(TRAIN[1])
    assert image.shape == (6, 8, 3)
    assert abs(int(image[0, 0, 0]) - 10) <= 2  # JPEG is lossy
    assert dataset.image_size(TRAIN[1]) == (6, 8)


def test_works_with_one_folder_of_masks_alone(tree):
    shutil.rmtree(tree / "SegmentationClassAug")
    dataset = PascalDataset(tree, "voc")
    dataset.check()
    assert dataset.read_mask(TRAIN[0])[1, 0] == 1


def test_survives_pickling(tree):
    dataset = pickle.loads(pickle.dumps(PascalDataset(tree, "voc")))
    assert dataset.ids("train") == TRAIN[::-1]


def test_fingerprint_follows_list_and_masks(tree):
    dataset = PascalDataset(tree, "voc")
    first = dataset.fingerprint("train")
    assert dataset.fingerprint("train") == first != dataset.fingerprint("val")
    write_mask(tree / "SegmentationClassAug" / f"{EXTRA[0]}.png", constant_mask(EXTRA[0], 9))
    assert dataset.fingerprint("train") == first  # not of this list
    write_mask(tree / "SegmentationClassAug" / f"{TRAIN[0]}.png", np.zeros((40, 40), dtype=np.uint8))
    second = dataset.fingerprint("train")
    assert second != first
    (tree / "ImageSets/Segmentation/train.txt").write_text("\n".join(TRAIN[:3]))
    assert dataset.fingerprint("train") not in (first, second)


def test_check_accepts_a_whole_tree(tree):
    PascalDataset(tree, "voc").check()


def test_check_names_what_lacks(tree, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'5953' of .*pascal: 5,952 of 5,953 ids have no picture") as caught:
        PascalDataset(tree).check()
    assert "dataset.train_list=voc" in str(caught.value)
    (tree / "SegmentationClass" / f"{VAL[1]}.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"val list 'val' .*: 1 of 2 ids have no mask .*, first '2007_000042'"):
        PascalDataset(tree, "voc").check()
    (tree / "JPEGImages" / f"{TRAIN[0]}.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"train list 'voc' .*: 1 of 4 ids have no picture in JPEGImages"):
        PascalDataset(tree, "voc").check()
    shutil.rmtree(tree / "JPEGImages")
    with pytest.raises(FileNotFoundError, match=r"JPEGImages is missing: unpack the PASCAL VOC 2012"):
        PascalDataset(tree, "voc").check()
    with pytest.raises(FileNotFoundError, match=r"nowhere is missing: make it with scripts/data/prepare_pascal\.py"):
        PascalDataset(tmp_path / "nowhere").check()


def test_training_on_validation_images_is_refused(tree):
    with pytest.raises(ValueError, match=r"2 ids are in the train list and in the val list: '2007_000033', "):
        PascalDataset(tree, "val.txt").check()
