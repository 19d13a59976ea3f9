from __future__ import annotations

import io
import json
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from hdmnet.data.catalog import load_catalog
from hdmnet.data.datasets.folder.dataset import FolderDataset
from hdmnet.data.episodes.manifest import EpisodeManifest
from hdmnet.data.episodes.samples import EvalEpisodes
from hdmnet.data.io.masks import write_mask
from tests.helpers.folder_trees import WRITERS, shapes_content, write

MIXED = ("index", "binary", "coco")  # FSS-1000 has one class a picture


@pytest.fixture(scope="module")
def mixed():
    return shapes_content(num_pictures=16, one_class=False, side=48)


@pytest.fixture(scope="module")
def roots(one_class, mixed, tmp_path_factory):
    """Folders by layout: of pictures with one class, and with several ("mixed-…"). Not to be written to."""
    found = {}
    for prefix, content in (("", one_class), ("mixed-", mixed)):
        for layout in WRITERS if not prefix else MIXED:
            found[prefix + layout] = tmp_path_factory.mktemp(prefix + layout)
            write(layout, found[prefix + layout], content)
    return found


def manifest(dataset, shot=1):
    classes = dataset.class_split(0).val
    view = load_catalog(dataset, "val", None, progress=False).view(classes, min_area=dataset.min_area)
    return EpisodeManifest(view, dataset="folder", fold=0, split="val", shot=shot, seed=1, num_episodes=12)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


# ------------------------------------------------------------------------------------------------------------ layouts


def write_json(path, names, categories, boxes):
    """A COCO-style JSON: pictures (10, 12) by name, categories by id, and (picture, category id, x) of boxes of 4x4."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "images": [{"id": number, "file_name": name, "width": 12, "height": 10} for number, name in enumerate(names)],
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
        "annotations": [
            {"image_id": names.index(name), "category_id": value, "segmentation": [[x, 2, x + 4, 2, x + 4, 6, x, 6]]}
            for name, value, x in boxes
        ],
    }
    path.write_text(json.dumps(content))


def box(value, x):
    mask = np.zeros((10, 12), np.uint8)
    mask[2:6, x : x + 4] = value
    return mask


@pytest.fixture
def coco_2017(tmp_path):
    """COCO's own folders, with the JSONs of key points that have the same shape; the categories differ in their ids."""
    root = tmp_path / "coco"
    for folder, number in (("train2017", 1), ("train2017", 2), ("val2017", 1), ("val2017", 3)):
        save(root / folder / f"{number:012}.jpg", np.full((10, 12, 3), number, np.uint8))
    one, two, three = (f"{number:012}.jpg" for number in (1, 2, 3))
    cats = {1: "person", 7: "dog"}
    write_json(root / "annotations/instances_train2017.json", [one, two], cats, [(one, 1, 0), (two, 7, 8)])
    other = {3: "dog", 4: "cat", 9: "person"}
    write_json(
        root / "annotations/instances_val2017.json", [one, three], other, [(one, 3, 4), (three, 9, 1), (three, 4, 6)]
    )
    for split in ("train", "val"):
        write_json(root / f"annotations/person_keypoints_{split}2017.json", [one], {1: "person"}, [])
    return root


def test_a_json_for_training_and_one_for_validation(coco_2017):
    dataset = pickle.loads(pickle.dumps(FolderDataset(coco_2017, num_folds=3)))
    dataset.check()
    assert dataset.class_names == ("person", "dog", "cat")
    train = [f"train2017/{number:012}" for number in (1, 2)]
    val = [f"val2017/{number:012}" for number in (1, 3)]
    assert (dataset.ids("train"), dataset.ids("val")) == (train, val)
    for image_id, expected, shade in (
        *((train[0], box(1, 0), 1), (train[1], box(2, 8), 2)),
        *((val[0], box(2, 4), 1), (val[1], box(1, 1) + box(3, 6), 3)),
    ):
        np.testing.assert_array_equal(dataset.read_mask(image_id), expected)
        assert abs(int(dataset.read_image(image_id)[0, 0, 0]) - shade) <= 1
    assert dataset.mask_location(val[0]).endswith(f"instances_val2017.json, image '{val[0]}'")
    assert dataset.fingerprint("train") != dataset.fingerprint("val")
    FolderDataset(coco_2017, num_folds=3, filter_novel=False).check()  # what is tested is not trained on
    given = ["annotations/instances_val2017.json", "annotations/instances_train2017.json"]
    swapped = FolderDataset(coco_2017, annotations=given, classes=["dog", "cat"])
    assert (swapped.ids("train"), swapped.class_names) == (val, ("dog", "cat"))
    np.testing.assert_array_equal(swapped.read_mask(val[0]), box(1, 4))
    np.testing.assert_array_equal(swapped.read_mask(val[1]), box(2, 6))
    (coco_2017 / "val.txt").write_text(f"{val[1]}.jpg\n")
    listed = FolderDataset(coco_2017, val_list="val.txt")
    assert (listed.ids("train"), listed.ids("val")) == (train, val[1:])


def test_one_of_the_jsons_alone_finds_its_folder(coco_2017):
    dataset = FolderDataset(coco_2017, annotations="annotations/instances_val2017.json")
    dataset.check()
    assert dataset.ids("train") == dataset.ids("val") == [f"{number:012}" for number in (1, 3)]
    np.testing.assert_array_equal(dataset.read_mask("000000000003"), box(3, 1) + box(2, 6))


def test_a_folder_for_each_split_as_roboflow_writes_them(tmp_path):
    for split, number in (("train", 1), ("valid", 2)):
        save(tmp_path / split / f"{number}.jpg", np.zeros((10, 12, 3), np.uint8))
        write_json(
            tmp_path / split / "_annotations.coco.json", [f"{number}.jpg"], {1: "cat"}, [(f"{number}.jpg", 1, 3)]
        )
    dataset = FolderDataset(tmp_path)
    dataset.check()
    assert (dataset.ids("train"), dataset.ids("val")) == (["train/1"], ["valid/2"])
    np.testing.assert_array_equal(dataset.read_mask("valid/2"), box(1, 3))
    write_json(tmp_path / "test" / "_annotations.coco.json", ["1.jpg"], {1: "cat"}, [])
    with pytest.raises(
        ValueError, match=r"holds 3 JSONs .*\(test/_ann.*, train/_ann.*, valid/_ann.*\), expected one, or one"
    ):
        FolderDataset(tmp_path)
    pair = [f"{split}/_annotations.coco.json" for split in ("train", "valid")]
    assert FolderDataset(tmp_path, annotations=pair).ids("val") == ["valid/2"]
    with pytest.raises(ValueError, match=r"dataset.annotations has 3 files, expected one, or two: \[TRAIN,VAL\]"):
        FolderDataset(tmp_path, annotations=[*pair, pair[0]])


def test_two_jsons_of_one_folder_keep_its_ids_and_share_none(tmp_path):
    for number in (1, 2):
        save(tmp_path / f"images/{number}.jpg", np.zeros((10, 12, 3), np.uint8))
        write_json(tmp_path / f"{('train', 'val')[number - 1]}.json", [f"{number}.jpg"], {1: "cat"}, [])
    dataset = FolderDataset(tmp_path)
    assert (dataset.ids("train"), dataset.ids("val")) == (["1"], ["2"])
    write_json(tmp_path / "val.json", ["1.jpg", "2.jpg"], {1: "cat"}, [])
    with pytest.raises(
        ValueError, match=r"train.json and .*val.json both name picture '1', expected each in one of them"
    ):
        FolderDataset(tmp_path)
    (tmp_path / "val.json").rename(tmp_path / "more.json")
    with pytest.raises(ValueError, match=r"holds 2 JSONs .* \(more.json, train.json\), expected one"):
        FolderDataset(tmp_path)


@pytest.mark.parametrize("layout", [*WRITERS, *(f"mixed-{name}" for name in MIXED)])
def test_every_layout_is_recognised_and_read_exactly(roots, one_class, mixed, layout):
    content, names = mixed if layout.startswith("mixed") else one_class
    dataset = pickle.loads(pickle.dumps(FolderDataset(roots[layout])))
    dataset.check()
    assert dataset.tree.layout == layout.removeprefix("mixed-")
    assert dataset.class_names == names
    assert dataset.ids("val") == dataset.ids("train") == list(content)
    for image_id, entry in content.items():
        np.testing.assert_array_equal(dataset.read_image(image_id), np.asarray(Image.open(io.BytesIO(entry.jpeg))))
        np.testing.assert_array_equal(dataset.read_mask(image_id), entry.mask)
        assert dataset.image_size(image_id) == entry.mask.shape
        values, counts = np.unique(entry.mask[entry.mask > 0], return_counts=True)
        assert dataset.class_areas(image_id) == dict(zip(values.tolist(), counts.tolist(), strict=True))


@pytest.mark.parametrize("prefix", ["", "mixed-"])
def test_every_layout_gives_the_same_episodes(roots, prefix):
    datasets = [FolderDataset(root) for name, root in roots.items() if name.startswith("mixed") == bool(prefix)]
    manifests = [manifest(dataset, shot=2) for dataset in datasets]
    assert len({one.sha256() for one in manifests}) == 1
    assert len({spec.class_value for spec in manifests[0]}) > 1
    first, *others = (
        EvalEpisodes(dataset, [one], classes=dataset.class_split(0).test, image_size=(33, 33))
        for dataset, one in zip(datasets, manifests, strict=True)
    )
    assert len(others) == (2 if prefix else 3)
    for other in others:
        for index in range(4):
            one, two = first[index], other[index]
            for name in ("query_image", "query_mask", "query_mask_original", "support_images", "support_masks"):
                assert getattr(one, name).equal(getattr(two, name)), name
            assert one.query_mask_original.any()


def test_masks_in_the_pictures_folders(roots, copy):
    root = copy("mixed-binary")
    expected = FolderDataset(roots["mixed-binary"])
    for path in sorted((root / "masks").rglob("*.png")):
        class_name = path.parent.name
        (root / "turned" / path.stem).mkdir(parents=True, exist_ok=True)
        path.rename(root / "turned" / path.stem / f"{class_name}.png")
    dataset = FolderDataset(root, masks="turned")
    assert (dataset.tree.layout, dataset.class_names) == ("binary", expected.class_names)
    for image_id in expected.ids("val"):
        np.testing.assert_array_equal(dataset.read_mask(image_id), expected.read_mask(image_id))


def test_coco_polygons_crowds_and_other_folders(tmp_path):
    save(tmp_path / "a.png", np.zeros((10, 12, 3), dtype=np.uint8))
    box = [2, 3, 7, 3, 7, 8, 2, 8]
    crowd = {"size": [10, 12], "counts": [0, 60, 60]}
    annotations = [
        {"image_id": "x", "category_id": 3, "segmentation": [box]},
        {"image_id": "x", "category_id": 3, "segmentation": [[9, 0, 11, 0, 11, 2, 9, 2]]},
        {"image_id": "x", "category_id": 8, "segmentation": crowd, "iscrowd": 1},
    ]
    content = {
        "images": [{"id": "x", "file_name": "a.png", "width": 12, "height": 10}],
        "categories": [{"id": 8, "name": "dog"}, {"id": 3, "name": "cat"}],
    }
    (tmp_path / "_annotations.coco.json").write_text(json.dumps(content | {"annotations": annotations}))
    (tmp_path / "other.json").write_text("[]")
    dataset = FolderDataset(tmp_path, crowd="ignore")
    assert dataset.class_names == ("cat", "dog")
    expected = np.zeros((10, 12), dtype=np.uint8)
    expected[:, :6] = 255
    expected[3:8, 2:7] = 1
    expected[0:2, 9:11] = 1
    np.testing.assert_array_equal(dataset.read_mask("a"), expected)


def test_chosen_classes_come_in_the_order_asked_for(roots, one_class):
    names = one_class[1]
    for layout in ("binary", "coco", "fss"):
        dataset = FolderDataset(roots[layout], classes=[names[2], names[0]])
        assert dataset.class_names == (names[2], names[0])
        kept = [image_id for image_id in dataset.ids("val") if dataset.read_mask(image_id).any()]
        assert {image_id.split("/")[0]: dataset.read_mask(image_id).max() for image_id in kept} == {
            names[2]: 1,
            names[0]: 2,
        }


def test_classes_of_index_masks_are_chosen_by_the_names_of_the_folders_list(roots, mixed):
    content, names = mixed
    chosen = FolderDataset(roots["mixed-index"], classes=[names[2], names[0]])
    assert chosen.class_names == (names[2], names[0])
    chosen = pickle.loads(pickle.dumps(chosen))
    table = np.array([0, 2, 0, 1, 0], dtype=np.uint8)
    for image_id, entry in content.items():
        expected = table[entry.mask]
        np.testing.assert_array_equal(chosen.read_mask(image_id), expected)
        np.testing.assert_array_equal(chosen.read_label_map(image_id, [2]), expected == 2)
        np.testing.assert_array_equal(chosen.find_classes(image_id, [1, 2]), expected > 0)
        assert chosen.class_areas(image_id) == {v: n for v in (1, 2) if (n := int((expected == v).sum()))}
        for value in (1, 2):
            np.testing.assert_array_equal(chosen.read_class_mask(image_id, value), expected == value)
    # The same as in a layout whose files name the classes.
    other = FolderDataset(roots["mixed-binary"], classes=[names[2], names[0]])
    assert [spec for spec in manifest(chosen)] == [spec for spec in manifest(other)]
    assert FolderDataset(roots["mixed-index"]).fingerprint("val") != chosen.fingerprint("val")
    every = FolderDataset(roots["mixed-index"], classes="classes.txt")
    assert every.fingerprint("val") == FolderDataset(roots["mixed-index"]).fingerprint("val")
    with pytest.raises(ValueError, match=r"class 'cow' of dataset.classes is none of those that the list in .* names"):
        FolderDataset(roots["mixed-index"], classes=[names[0], "cow"])


def test_values_that_are_not_chosen_are_known_and_others_refused(copy, mixed):
    root, names = copy("mixed-index"), mixed[1]
    chosen = FolderDataset(root, classes=[names[1]])
    image_id = chosen.ids("val")[0]
    write_mask(
        root / f"masks/{image_id}.png", np.repeat(np.arange(5, dtype=np.uint8), 13 * 48)[: 48 * 48].reshape(48, 48)
    )
    assert set(chosen.class_areas(image_id)) == {1}
    write_mask(root / f"masks/{image_id}.png", np.full((48, 48), 5, dtype=np.uint8))
    with pytest.raises(
        ValueError, match=r"holds class index 5, expected 0..4 or 255 \(the list of classes in .* names no"
    ):
        chosen.class_areas(image_id)


def test_without_a_list_in_the_folder_the_given_names_are_of_the_values(copy, mixed):
    root = copy("mixed-index")
    (root / "classes.txt").unlink()
    names = ("one", "two", "three", "four")
    dataset = FolderDataset(root, classes=list(names))
    assert dataset.class_names == names
    for image_id, entry in mixed[0].items():
        np.testing.assert_array_equal(dataset.read_mask(image_id), entry.mask)


@pytest.mark.parametrize(
    ("lines", "names", "expected"),
    [
        (["__ignore__", "_background_", "a", "b", "c", "d"], "abcd", [0, 1, 2, 3, 4]),  # as labelme writes it
        (["a", "background", "c", "d"], "acd", [0, 1, 0, 2, 3]),
        (["background", "a", "b", "_ignore_", "d"], "abd", [0, 1, 2, 255, 3]),
        (["a", "b", "c", "Background"], "abc", [0, 1, 2, 3, 0]),
    ],
)
def test_the_value_of_a_name_is_its_place_after_what_comes_before_the_first_class(copy, mixed, lines, names, expected):
    root = copy("mixed-index")
    (root / "classes.txt").write_text("\n".join(lines))
    dataset = FolderDataset(root)
    assert dataset.class_names == tuple(names)
    for image_id, entry in mixed[0].items():
        np.testing.assert_array_equal(dataset.read_mask(image_id), np.array(expected, np.uint8)[entry.mask])


def test_a_list_of_classes_in_the_folder_or_given(copy, one_class):
    root = copy("fss")
    (root / "test.txt").write_text("\n".join(one_class[1][1:3]))
    assert FolderDataset(root, classes="test.txt").class_names == one_class[1][1:3]
    (root / "classes.txt").write_text("\n".join(one_class[1][::-1]))
    assert FolderDataset(root).class_names == one_class[1][::-1]


def test_lists_from_other_systems(copy, one_class):
    root = copy("index")
    for start, end in ((b"", b"\r\n"), (b"\xef\xbb\xbf", b"\r\n"), (b"\xef\xbb\xbf", b"\n")):
        lines = ["_background_", *one_class[1]]
        (root / "classes.txt").write_bytes(start + end.join(line.encode() for line in lines) + end)
        assert FolderDataset(root).class_names == one_class[1]
    (root / "classes.txt").write_text("\n".join(one_class[1]), encoding="utf-16")
    with pytest.raises(ValueError, match=r"classes.txt is no UTF-8 text .*: save it as UTF-8"):
        FolderDataset(root)


def test_a_json_with_a_byte_order_mark(copy, one_class):
    root = copy("coco")
    (root / "annotations.json").write_bytes(b"\xef\xbb\xbf" + (root / "annotations.json").read_bytes())
    assert FolderDataset(root).class_names == one_class[1]


# ----------------------------------------------------------------------------------------------------------- overlaps


@pytest.fixture
def overlapping(tmp_path):
    """A wheel wholly on a car, each with a mask of its own; a second picture has only the car."""
    car, wheel = np.zeros((2, 8, 8), dtype=np.uint8)
    car[1:7, 1:7] = 255
    wheel[4:6, 2:4] = 255
    for name in ("1", "2"):
        save(tmp_path / f"images/{name}.png", np.zeros((8, 8, 3), dtype=np.uint8))
        save(tmp_path / f"masks/car/{name}.png", car)
    save(tmp_path / "masks/wheel/1.png", wheel)
    return FolderDataset(tmp_path), car > 0, wheel > 0


def test_of_overlapping_classes_each_keeps_all_its_pixels(overlapping):
    dataset, car, wheel = overlapping
    np.testing.assert_array_equal(dataset.read_class_mask("1", 1), car)
    np.testing.assert_array_equal(dataset.read_class_mask("1", 2), wheel)
    np.testing.assert_array_equal(dataset.read_mask("1"), np.where(wheel, 2, car))  # the smaller one on top
    assert dataset.class_areas("1") == {1: 36, 2: 4}
    catalog = load_catalog(dataset, "val", None, progress=False)
    assert catalog.class_value.tolist() == [1, 2, 1]
    assert catalog.area.tolist() == [36, 4, 36]


def test_an_episode_sees_the_whole_of_its_class(overlapping):
    dataset, car, _ = overlapping
    view = load_catalog(dataset, "val", None, progress=False).view([1], min_area=1)
    episodes = EpisodeManifest(view, dataset="x", fold=0, split="val", shot=1, seed=0, num_episodes=2)
    evaluation = EvalEpisodes(dataset, [episodes], classes=dataset.class_split(0).test, image_size=(8, 8))
    for index in range(2):
        episode = evaluation[index]
        for mask in (episode.query_mask, episode.query_mask_original, episode.support_masks[0]):
            np.testing.assert_array_equal(mask.numpy(), car)
    np.testing.assert_array_equal(evaluation.query_mask_original("1", 1).numpy(), car)
    np.testing.assert_array_equal(evaluation.support_pair("1", 1)[1].numpy(), car)


# --------------------------------------------------------------------------------------------------------------- EXIF


@pytest.mark.parametrize("stored", [True, False])
def test_masks_of_turned_pictures(tmp_path, stored):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = np.zeros((6, 10, 3), dtype=np.uint8)
    picture[0, 0] = 255
    (tmp_path / "images").mkdir()
    Image.fromarray(picture).save(tmp_path / "images/a.png", exif=exif)
    mask = np.zeros((6, 10), dtype=np.uint8)
    mask[0, :3] = 1
    (tmp_path / "classes.txt").write_text("thing")
    write_mask(tmp_path / "masks/a.png", mask if stored else np.ascontiguousarray(np.rot90(mask, -1)))
    dataset = FolderDataset(tmp_path)
    assert dataset.image_size("a") == (10, 6)
    assert np.argwhere(dataset.read_image("a")[:, :, 0]).tolist() == [[0, 5]]  # turned clockwise
    np.testing.assert_array_equal(dataset.read_mask("a"), np.rot90(mask, -1))
    assert load_catalog(dataset, "val", None, progress=False).area.tolist() == [3]


# --------------------------------------------------------------------------------------------------- folds and splits


def test_without_folds_all_classes_are_novel_in_any_fold(roots):
    for num_folds in (None, 1):
        dataset = FolderDataset(roots["fss"], num_folds=num_folds)
        split = dataset.class_split(3)
        assert (split.fold, split.train, split.test, dataset.num_folds) == (0, (), (1, 2, 3, 4), 1)


@pytest.mark.parametrize(
    ("num_folds", "rule", "expected"),
    [
        (2, "contiguous", ((1, 2), (3, 4))),
        (2, "interleaved", ((1, 3), (2, 4))),
        (3, "contiguous", ((1, 2), (3,), (4,))),
        (3, "interleaved", ((1, 4), (2,), (3,))),
    ],
)
def test_classes_are_dealt_out_as_evenly_as_can_be(roots, num_folds, rule, expected):
    dataset = FolderDataset(roots["fss"], num_folds=num_folds, split_rule=rule)
    assert dataset.folds == expected
    split = dataset.class_split(1)
    assert split.novel == expected[1]
    assert sorted(split.train + expected[1]) == [1, 2, 3, 4]
    with pytest.raises(ValueError, match=rf"fold={num_folds} does not exist, expected one of 0..{num_folds - 1}"):
        dataset.class_split(num_folds)


def test_folds_by_file(roots, one_class, tmp_path):
    names = one_class[1]
    (tmp_path / "folds.txt").write_text(f"{names[3]}, {names[0]}\n{names[1]}\n")
    dataset = FolderDataset(roots["coco"], folds=str(tmp_path / "folds.txt"))
    assert [(dataset.class_split(k).test, dataset.class_split(k).train) for k in (0, 1)] == [
        ((1, 4), (2, 3)),
        ((2,), (1, 3, 4)),
    ]
    with pytest.raises(ValueError, match=r"num_folds=4, but .*folds.txt has 2: leave out one"):
        FolderDataset(roots["coco"], folds=str(tmp_path / "folds.txt"), num_folds=4)
    for line, reason in ((f"{names[0]},{names[0]}", "named twice"), ("unicorn", "is no class of")):
        (tmp_path / "folds.txt").write_text(line)
        with pytest.raises(ValueError, match=reason):
            FolderDataset(roots["coco"], folds=str(tmp_path / "folds.txt"))


def test_folds_of_classes_with_commas(tmp_path):
    for name in ("sofa, chair", 'a "bed"', "cup", "12, 24, 36"):
        save(tmp_path / f"data/{name}/1.jpg", np.zeros((8, 8, 3), np.uint8))
        save(tmp_path / f"data/{name}/1.png", np.ones((8, 8), np.uint8))
    file = tmp_path / "folds.txt"
    file.write_text('"sofa, chair", cup\n  "12, 24, 36","a ""bed"""\n')
    dataset = FolderDataset(tmp_path / "data", folds=str(file))
    novel = [{dataset.class_names[value - 1] for value in dataset.class_split(fold).novel} for fold in (0, 1)]
    assert novel == [{"sofa, chair", "cup"}, {"12, 24, 36", 'a "bed"'}]
    file.write_text('a "bed"\nsofa, chair\n')
    with pytest.raises(
        ValueError, match=r"'sofa' is no class of .* \(put a name with a comma in quotes: \"one, two\"\)"
    ):
        FolderDataset(tmp_path / "data", folds=str(file))
    file.write_text('"cup\n')
    with pytest.raises(ValueError, match=r"folds.txt: '\"cup' cannot be read .*: mend its quotes"):
        FolderDataset(tmp_path / "data", folds=str(file))


def test_lists(roots, one_class, tmp_path):
    ids = list(one_class[0])
    (tmp_path / "val.txt").write_text(f"{ids[5]}.jpg\n{ids[2]}\n")
    dataset = FolderDataset(roots["index"], val_list=str(tmp_path / "val.txt"), filter_novel=False)
    dataset.check()
    assert dataset.ids("val") == [ids[5], ids[2]]
    assert dataset.ids("train") == [image_id for image_id in ids if image_id not in (ids[5], ids[2])]
    assert dataset.fingerprint("train") != dataset.fingerprint("val")
    both = FolderDataset(roots["index"], train_list=str(tmp_path / "val.txt"), val_list=str(tmp_path / "val.txt"))
    with pytest.raises(ValueError, match="2 ids are in the train list and in the val list"):
        both.check()
    (tmp_path / "val.txt").write_text("nothing\n")
    with pytest.raises(FileNotFoundError, match=r"1 of 1 ids have no picture with a mask in .*, first 'nothing'"):
        dataset.check()


def test_training_never_sees_what_is_tested(roots):
    with pytest.raises(ValueError, match=r"filter_novel=false would train on the images that are tested"):
        FolderDataset(roots["fss"], filter_novel=False).check()


def test_the_fingerprint_tells_of_a_changed_mask_and_of_another_choice(copy, one_class):
    root = copy("binary")
    before = FolderDataset(root).fingerprint("val")
    assert FolderDataset(root).fingerprint("val") == before
    assert FolderDataset(root, classes=one_class[1][:2]).fingerprint("val") != before
    path = next((root / "masks").rglob("*.png"))
    path.write_bytes(path.read_bytes() + b"\0")
    assert FolderDataset(root).fingerprint("val") != before


# ------------------------------------------------------------------------------------------------------------- errors


def test_missing_things_are_refused_in_one_line(tmp_path, copy):
    with pytest.raises(ValueError, match=r"^dataset.root is not given"):
        FolderDataset(None)
    with pytest.raises(FileNotFoundError, match=r"folder .*none is missing: set dataset.root"):
        FolderDataset(tmp_path / "none")
    with pytest.raises(ValueError, match=r"has none of the known layouts, expected one of index .*set dataset.layout"):
        FolderDataset(tmp_path)
    root = copy("index")
    with pytest.raises(ValueError, match=r"dataset.layout='voc': expected one of index, binary, coco, fss"):
        FolderDataset(root, layout="voc")
    with pytest.raises(FileNotFoundError, match=r"folder .*labels is missing: correct dataset.images or dataset.masks"):
        FolderDataset(root, masks="labels")
    (root / "classes.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"has index masks and no list of classes: write classes.txt"):
        FolderDataset(root)
    with pytest.raises(
        ValueError, match="has index masks and 255 classes, expected 1 to 254, as such masks are of 8 bits"
    ):
        FolderDataset(root, classes=[str(number) for number in range(255)])


def test_two_layouts_at_once_have_to_be_named(copy, roots):
    root = copy("mixed-index")
    shutil.copy(roots["mixed-coco"] / "annotations.json", root)
    with pytest.raises(ValueError, match=r"fits coco and index, expected one of .*: set dataset.layout"):
        FolderDataset(root)
    assert FolderDataset(root, layout="index").tree.layout == "index"
    assert FolderDataset(root, layout="coco").tree.layout == "coco"


def test_a_class_that_is_not_there(roots):
    with pytest.raises(ValueError, match=r"class 'unicorn' of the list of classes is not in .*fss\d+, which has"):
        FolderDataset(roots["fss"], classes=["unicorn"])


def test_unequal_sizes_are_refused_with_their_paths(overlapping):
    dataset, *_ = overlapping
    save(dataset.root / "masks/wheel/1.png", np.zeros((4, 4), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"masks of '1' have unequal sizes .*car/1.png 8x8, .*wheel/1.png 4x4"):
        dataset.read_mask("1")
    save(dataset.root / "masks/car/2.png", np.full((4, 4), 255, dtype=np.uint8))
    (dataset.root / "masks/wheel/1.png").unlink()
    with pytest.raises(ValueError, match=r"car/2.png is 4x4 \(HxW\) but its picture is 8x8"):
        load_catalog(FolderDataset(dataset.root), "val", None, progress=False)


def test_a_broken_annotation_file(copy):
    root = copy("coco")
    content = json.loads((root / "annotations.json").read_text())
    path = root / "annotations.json"
    path.write_text(json.dumps(content | {"categories": [{"name": "cat"}]}))
    with pytest.raises(ValueError, match=r"annotations.json is no COCO-style annotation file \(KeyError: 'id'\)"):
        FolderDataset(root)
    content["annotations"][0]["segmentation"] = [[1, 2, 3]]
    path.write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"annotations.json, image '.*': an annotation cannot be read: a polygon is no"
    ):
        load_catalog(FolderDataset(root), "val", None, progress=False)
    content["images"][0]["file_name"] = "../a.png"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="leads outside"):
        FolderDataset(root)


def test_missing_pictures_of_a_json(copy):
    root = copy("coco")
    gone = next((root / "images").rglob("*.jpg"))
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 24 ids have no picture in .*, first '.*': restore them"):
        FolderDataset(root).check()
