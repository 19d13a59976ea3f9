"""SHAPES-5i: the same bytes everywhere, the fold's rules in every picture, labels that agree with what is drawn."""

from __future__ import annotations

import hashlib
import pickle
from collections import Counter

import numpy as np
import pytest

from hdmnet.data.class_split import split_classes
from hdmnet.data.datasets.shapes import dataset as module
from hdmnet.data.datasets.shapes.dataset import ShapesDataset
from hdmnet.data.datasets.shapes.render import Patch, Scene, render
from hdmnet.data.datasets.shapes.scene import Draws, class_names, class_parts
from hdmnet.data.datasets.shapes.tables import PATTERNS, PLAIN, SILHOUETTES, pattern_table, silhouette_table

# Of generator "shapes-1". A change that moves them must raise GENERATOR_VERSION, or old caches would be trusted.
GOLDEN_MASKS = "73a51d11562b131a2822b10db321f1960546b1e829b9d8deb0639b40e1ce8777"
GOLDEN_IMAGES = "17c4048f0aff00124d1c3f857fd764dc772e34842617044940ea3db60b78bfb6"


def digest(arrays):
    whole = hashlib.sha256()
    for array in arrays:
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()


@pytest.fixture(scope="module")
def dataset():
    return ShapesDataset(fold=1, num_train=150, num_val=120)


def test_masks_and_pictures_have_their_golden_checksums():
    mixed = ShapesDataset(
        generator_seed=7, picture_size=(96, 161), num_classes=80, split_rule="interleaved", vary_size=True
    )
    ids = [
        (ShapesDataset(fold=f), f"{split}-f{f}-{i:05d}") for f in (0, 3) for split in ("train", "val") for i in range(8)
    ]
    ids += [(mixed, f"{split}-{i:05d}") for split in ("train", "val") for i in range(8)]
    assert module.GENERATOR_VERSION == "shapes-1"
    assert digest(dataset.read_mask(image_id) for dataset, image_id in ids) == GOLDEN_MASKS
    assert digest(dataset.read_image(image_id) for dataset, image_id in ids) == GOLDEN_IMAGES


def test_a_picture_depends_on_nothing_but_its_id_and_the_seed(dataset):
    image_id = "val-f1-00031"
    image, mask = dataset.read_image(image_id), dataset.read_mask(image_id)
    assert image.shape == (129, 129, 3)
    assert image.dtype == mask.dtype == np.uint8
    image[:] = 0  # a caller's own copy
    module._draw.cache_clear()
    module._kept.clear()
    other = pickle.loads(pickle.dumps(ShapesDataset(fold=1, num_train=9, num_val=32)))
    assert np.array_equal(other.read_image(image_id), dataset.read_image(image_id))
    assert np.array_equal(other.read_mask(image_id), mask)
    assert not np.array_equal(ShapesDataset(generator_seed=1, fold=1).read_mask(image_id), mask)


def test_no_picture_is_drawn_twice_while_there_is_room(monkeypatch):
    drawn, draw = [], module._draw
    monkeypatch.setattr(module, "_kept", {})
    monkeypatch.setattr(module, "_kept_bytes", 0)
    monkeypatch.setattr(module, "_ROOM", 2 * 129 * 129 * 5)  # two pictures, each with mask and instances
    monkeypatch.setattr(module, "_draw", lambda *key: drawn.append(key[-1]) or draw(*key))
    dataset = ShapesDataset(fold=1, num_train=4, num_val=4)
    for _ in range(2):
        for image_id in dataset.ids("train"):
            dataset.read_image(image_id)
    assert drawn == [0, 1, 2, 3, 2, 3]


@pytest.mark.long
def test_different_ids_give_different_pictures(dataset):
    ids = dataset.ids("train") + dataset.ids("val")
    assert len(set(ids)) == 270
    assert len({digest([dataset.read_image(image_id)]) for image_id in ids}) == 270


@pytest.mark.long
@pytest.mark.parametrize("fold", range(4))
def test_training_pictures_hold_base_classes_and_validation_pictures_a_novel_one(fold):
    dataset = ShapesDataset(fold=fold, num_train=45, num_val=150)
    novel = set(split_classes(20, 4, fold, "contiguous").test)
    for image_id in dataset.ids("train"):
        assert not novel & set(dataset.sample(image_id).classes)
    for image_id in dataset.ids("val"):
        counts = np.bincount(dataset.read_mask(image_id).ravel(), minlength=256)
        assert max(counts[value] for value in novel) >= dataset.min_area
    others = Counter(value for image_id in dataset.ids("val") for value in dataset.sample(image_id).classes)
    assert set(others) == set(range(1, 21))


@pytest.mark.long
def test_classes_are_balanced(dataset):
    objects = Counter(value for image_id in dataset.ids("train") for value in dataset.sample(image_id).classes)
    assert set(objects) == set(split_classes(20, 4, 1, "contiguous").train)
    mean = sum(objects.values()) / 15
    assert mean == 4 * 150 / 15
    assert max(abs(count - mean) for count in objects.values()) < 0.3 * mean
    novel = Counter(
        value for image_id in dataset.ids("val") for value in dataset.sample(image_id).classes if 6 <= value <= 10
    )
    assert min(novel.values()) >= 24  # dealt in turn: 120 / 5 as the first object alone


@pytest.mark.long
def test_the_mask_follows_the_objects_and_255_marks_the_hardly_visible(dataset):
    hidden = partly = repeated = 0
    for image_id in dataset.ids("train") + dataset.ids("val"):
        sample = dataset.sample(image_id)
        assert len(sample.classes) == 4
        expected = np.zeros_like(sample.mask)
        for position, (value, visible) in enumerate(zip(sample.classes, sample.visible, strict=True)):
            expected[sample.instances == position + 1] = value if visible >= 0.4 else 255
            hidden += visible < 0.4
            partly += 0.4 <= visible < 0.9
        assert np.array_equal(sample.mask, expected)
        repeated += len(set(sample.classes)) < len(sample.classes)
    assert hidden > 0
    assert partly > 100
    assert 10 < repeated < 60


def test_mixed_pictures_keep_enough_for_every_fold():
    dataset = ShapesDataset(num_train=100, num_val=20)
    assert dataset.ids("val")[3] == "val-00003"
    classes = [set(dataset.sample(image_id).classes) for image_id in dataset.ids("train")]
    for fold in range(4):
        novel = set(split_classes(20, 4, fold, "contiguous").test)
        assert 60 <= sum(not novel & held for held in classes) < 80
    assert set().union(*(dataset.sample(image_id).classes for image_id in dataset.ids("val"))) == set(range(1, 21))


def test_sizes_vary_where_asked():
    dataset = ShapesDataset(picture_size=(96, 128), vary_size=True, num_train=30)
    shapes_seen = {dataset.read_mask(image_id).shape for image_id in dataset.ids("train")}
    assert len(shapes_seen) > 20
    assert all(72 <= min(shape) <= 96 and 96 <= max(shape) <= 128 for shape in shapes_seen)
    assert {height > width for height, width in shapes_seen} == {True, False}


def test_classes_are_pairs_of_a_pattern_and_a_silhouette():
    assert len(PATTERNS) == len(SILHOUETTES) == 20
    names = class_names(80)
    assert len(set(names)) == 80
    assert names[:3] == ("striped star", "checkered gear", "dotted heart")
    assert names[20] == "striped drop"
    assert len({class_parts(value) for value in range(1, 401)}) == 400
    assert ShapesDataset().class_names == names[:20]


def test_tables_are_distinct_and_chunky():
    silhouettes = [silhouette_table(row) >= 128 for row in range(20)]
    for row, table in enumerate(silhouettes):
        assert 0.35 < table.sum() / (np.pi * 128**2) < 0.95, list(SILHOUETTES)[row]
        square = table.reshape(288, 288)
        assert square[1:-1, 1:-1].sum() == square.sum()  # samples out of range are clipped to an empty rim
    assert len({digest([pattern_table(row)]) for row in range(20)}) == 20
    assert all(table.min() >= 0 and table.max() <= 256 for table in map(pattern_table, range(23)))


def _patch(value=1, centre=(40.0, 40.0), colour=(200, 10, 60)):
    matrix = (1 / 16, 0.0, 0.0, 1 / 16)
    disc = list(SILHOUETTES).index("disc")
    return Patch(disc, PLAIN, value, centre, matrix, (16.0, 16.0), matrix, (0.0, 0.0), (colour, colour), (0, 0))


def test_render_draws_a_disc_where_it_is_told():
    grey = ((100, 100, 100), (100, 100, 100))
    patches = (_patch(), _patch(value=2, centre=(40.0, 84.0)))
    scene = Scene((80, 90), patches, grey, ((0, 0),) * 6, (0, 0, 0), (256, 0, 0), 0)
    image, instances, areas = render(scene)
    y, x = np.mgrid[:80, :90]
    truth = np.hypot(y - 40, x - 40) < 0.88 * 16
    assert np.count_nonzero((instances == 1) != truth) < 12
    assert tuple(image[40, 40]) == (200, 10, 60)
    assert tuple(image[2, 2]) == (100, 100, 100)
    # The second disc leaves the picture at the right: all of it counts as its area.
    assert abs(areas[0] - areas[1]) <= 2
    assert np.count_nonzero(instances == 2) < 0.8 * areas[1]


def test_draws_are_raw_philox_words_in_range():
    draws = Draws("key", 5, 300)
    assert draws.words == Draws("key", 5, 300).words != Draws("key", 6, 300).words
    assert sorted(draws.order(7)) == list(range(7))
    assert {draws.between(2, 4) for _ in range(100)} == {2, 3, 4}
    assert all(-1 <= draws.uniform(-1, 1) < 1 for _ in range(100))


def test_the_fingerprint_tells_data_sets_apart():
    prints = [
        ShapesDataset(generator_seed=seed, fold=fold, picture_size=size).fingerprint(split)
        for seed in (0, 1)
        for fold in (None, 0, 1)
        for size in (129, 96)
        for split in ("train", "val")
    ]
    assert len(set(prints)) == len(prints)
    assert ShapesDataset().fingerprint("train") == ShapesDataset().fingerprint("train")
    ShapesDataset().check()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"picture_size": 20}, r"picture_size is 20, expected sides of 48\.\.512"),
        ({"picture_size": (64, 600)}, r"expected sides of 48\.\.512"),
        ({"picture_size": (64, 64, 3)}, r"expected a side or \[height, width\]"),
        ({"num_classes": 21}, "num_classes is 21, expected a multiple of 4"),
        ({"num_val": 0}, "num_val=0, expected 1 to 1,000,000"),
        ({"object_scale": 3.0}, r"object_scale is 3\.0"),
        ({"fold": 7}, r"^fold=7 does not exist, expected one of 0\.\.3"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ShapesDataset(**arguments)


@pytest.mark.parametrize("image_id", ["val-f0-00000", "val-00000", "val-f1-00120", "nonsense"])
def test_unknown_ids_are_refused(dataset, image_id):
    with pytest.raises(ValueError, match="shapes has no picture"):
        dataset.read_mask(image_id)
