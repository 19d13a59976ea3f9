from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from pycocotools.coco import COCO

from hdmnet.data.datasets.lvis import LvisDataset
from tests.helpers.datasets import few_shot


@pytest.fixture
def dataset(raw_data_dir, tmp_path):
    return LvisDataset(raw_data_dir / "coco", num_classes=None, cache_dir=tmp_path)


@pytest.fixture
def content(raw_data_dir):
    return json.loads((raw_data_dir / "coco/annotations/lvis_v1_val.json").read_text())


def write_counts(folder, counts):
    """LVIS's JSONs of as many categories, each on as many validation pictures; without the pictures."""
    images = [
        {"id": 7 * n, "height": 4, "width": 4, "coco_url": f"http://h/x/val2017/{n:012d}.jpg"} for n in range(1, 12)
    ]
    annotations = [
        {"id": 1, "image_id": 7 * n, "category_id": category, "segmentation": [[0, 0, 2, 0, 2, 2]]}
        for category, count in counts.items()
        for n in [*range(1, count + 1), 1]  # two on the first picture, which counts once
    ]
    text = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": category, "name": f"n{category}"} for category in counts],
    }
    folder.mkdir(exist_ok=True)
    for split in ("train", "val"):
        (folder / f"lvis_v1_{split}.json").write_text(json.dumps(text))


def test_ten_folds_of_92_classes(tmp_path):
    """Matcher (ICLR 2024), 4.2: 920 classes in ten folds; its code: those on more than one picture, dealt out in turn.

    As many as in LVIS v1: 1,203 categories. How many of them are on several validation pictures cannot be told here.
    """
    counts = {category: 3 if category % 4 else 1 for category in range(1, 1204)}
    counts |= dict.fromkeys(range(4, 84, 4), 2)
    several = [category for category, count in counts.items() if count > 1]
    write_counts(tmp_path, counts)
    assert len(several) == 923  # the last three are in no fold
    dataset = LvisDataset(tmp_path, cache_dir=tmp_path)
    assert len(dataset.class_names) == 1203
    assert dataset.num_folds == len(dataset.folds) == 10
    for fold in range(10):
        split = dataset.class_split(fold)
        assert list(split.test) == several[:920][fold::10]
        assert split.test == split.val
        assert (len(split.test), len(split.train)) == (92, 1111)
    with pytest.raises(ValueError, match=r"fold=10 does not exist"):
        dataset.class_split(10)
    counts |= dict.fromkeys(range(84, 124, 4), 2)
    write_counts(tmp_path, counts)
    with pytest.raises(
        ValueError, match=r"^933 classes of .* 10 folds of 93, expected 920 .* dataset.num_classes=null"
    ):
        LvisDataset(tmp_path, cache_dir=tmp_path).class_split(0)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own, with NumPy 2
def test_masks_are_the_unions_of_annotations(dataset, raw_data_dir, content):
    """As pycocotools decodes them; pictures are where their URLs say, some of train2017."""
    ids = dataset.ids("val")
    assert len(ids) == len(content["images"])
    assert {one.split("/")[0] for one in ids} == {"train2017", "val2017"}
    reference = COCO(str(raw_data_dir / "coco/annotations/lvis_v1_val.json"))
    categories = sorted(one["id"] for one in content["categories"])
    assert dataset.class_names == tuple(reference.cats[one]["name"] for one in categories)
    for image in content["images"][:20] + content["images"][-5:]:
        image_id = "/".join(image["coco_url"].split("/")[-2:]).removesuffix(".jpg")
        found = dataset.class_areas(image_id)
        annotations = reference.imgToAnns[image["id"]]
        assert set(found) == {categories.index(one["category_id"]) + 1 for one in annotations}
        for value in found:
            own = [reference.annToMask(one) for one in annotations if one["category_id"] == categories[value - 1]]
            np.testing.assert_array_equal(dataset.read_class_mask(image_id, value), np.max(own, axis=0))
        assert (
            dataset.read_image(image_id).shape[:2] == dataset.image_size(image_id) == (image["height"], image["width"])
        )


def test_matchers_episodes_take_the_classes_in_turn(dataset):
    from hdmnet.data.episodes.rules import EvaluationRules

    rules = EvaluationRules(queries="turns", supports="repeated", score_at="network")
    changes = {"fold": 3, "shot": 1, "num_test_seeds": 1, "num_test_episodes": 48}
    module = few_shot(dataset, setup="test", rules=rules, **changes)
    manifest = module.test_manifests[0]
    shown = [value for value in module.class_split.test if value not in manifest.too_few]
    assert [spec.class_value for spec in manifest] == (shown * 48)[:48]
    assert set(Counter(spec.class_value for spec in manifest).values()) <= {48 // len(shown), 48 // len(shown) + 1}
    for spec in manifest:
        assert spec.query_id not in spec.support_ids
        for image_id in (spec.query_id, *spec.support_ids):
            assert spec.class_value in dataset.class_areas(image_id)


def test_what_lacks_is_named(raw_data_dir, tmp_path):
    with pytest.raises(ValueError, match=r"classes of .* are on more than one picture, which makes 10 folds of \d"):
        LvisDataset(raw_data_dir / "coco", cache_dir=tmp_path).check()
    with pytest.raises(FileNotFoundError, match=r"lvis_v1_train\.json is missing: unpack lvis_v1_train\.json\.zip"):
        LvisDataset(tmp_path / "nowhere", cache_dir=tmp_path).check()
    write_counts(tmp_path / "lvis", dict.fromkeys(range(1, 11), 2))
    with pytest.raises(FileNotFoundError, match=r"11 of 11 ids have no picture in .*, first 'val2017/000000000001'"):
        LvisDataset(tmp_path / "coco", num_classes=10, cache_dir=tmp_path).check()


def test_the_jsons_are_found_where_people_have_them(tmp_path):
    for place in ("coco", "coco/annotations", "coco/lvis", "lvis", "lvis/annotations"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        write_counts(tmp_path / place, dict.fromkeys(range(1, 11), 2))
        assert len(LvisDataset(tmp_path / "coco", num_classes=10, cache_dir=tmp_path).ids("val")) == 11
        for path in (tmp_path / place).glob("*.json"):
            path.unlink()
    write_counts(tmp_path / "else", dict.fromkeys(range(1, 11), 2))
    elsewhere = LvisDataset(tmp_path / "coco", annotations=str(tmp_path / "else"), num_classes=10, cache_dir=tmp_path)
    assert elsewhere.folds == tuple((value,) for value in range(1, 11))
