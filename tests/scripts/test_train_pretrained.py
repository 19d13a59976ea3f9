"""The script that trains the packaged segmenter: on few small pictures, from folder to a file that segments."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
from PIL import Image

from hdmnet.run.pretrained import build_pretrained, read_about
from tests.helpers.commands import ROOT

FOLDER = ROOT / "scripts" / "pretrained"


@pytest.fixture(scope="module")
def train():
    sys.path.insert(0, str(FOLDER))
    spec = importlib.util.spec_from_file_location("train_pretrained", FOLDER / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    """Eight pictures of class 1 (aeroplane, as COCO's airplane in fold 0) and eight of class 2 (bicycle, in fold 1)."""
    root = tmp_path_factory.mktemp("data") / "photos"
    rng = np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClass"):
        (root / folder).mkdir(parents=True)
    for index in range(16):
        picture = rng.integers(0, 90, (60, 80, 3), dtype=np.uint8)
        mask = np.zeros((60, 80), np.uint8)
        mask[10:58, 5:65] = 1 + index % 2
        picture[mask > 0, index % 2] += 150
        Image.fromarray(picture).save(root / "JPEGImages" / f"{index:02}.jpg")
        Image.fromarray(mask).save(root / "SegmentationClass" / f"{index:02}.png")
    return root


@pytest.mark.long
def test_held_out_classes_are_not_learnt_from_and_are_what_is_tested(train, voc, tmp_path):
    out = tmp_path / "own.safetensors"
    words = [str(voc), "--out", str(out), "--cache", str(tmp_path / "cache"), "--side", "65", "--batch", "4"]
    assert train.main([*words, "--steps", "3", "--held-out", "0", "--episodes", "4", "--whole-only"])
    about = read_about(out)
    assert "airplane" in about["held_out"]
    assert "bicycle" not in about["held_out"]
    tested = about["1-shot"]["photos"]
    assert set(tested["classes"]["prototype"]) == {"airplane"}
    assert tested["episodes"] == 4
    assert 0 <= tested["trained +0.00"] <= 100
    assert len(about["photos"]) == 16
    build_pretrained(out)


def test_views_and_pool(train, voc):
    from episodes import Pool
    from photos import crop_views, mosaic_views, number_of, read_folder, whole_views

    photos = read_folder(voc)
    views = [*whole_views(photos, 33), *crop_views(photos[:2], 33, 0), *mosaic_views(photos, 33, 0)]
    assert len(views) == 16 + 2 + 4
    assert len({view.name for view in views}) == len(views)
    labels = {}
    for view in views:
        image, labels[view.name] = view.read()
        assert image.shape == (33, 33, 3)
        assert labels[view.name].shape == (33, 33)
    plane, bicycle = number_of("aeroplane"), number_of("bicycle")
    assert (plane, bicycle) == (5, 2)
    pool = Pool(views, labels, held_out=[plane])
    assert set(pool.names) == {bicycle}
    rng = np.random.default_rng(0)
    for episode in pool.draw(rng, 50, 2):
        assert not pool.photos[episode.query] & frozenset().union(*(pool.photos[one] for one in episode.supports))
        mask = pool.mask(episode.query, bicycle)
        assert (mask == 1).any()
        assert ((mask == 255).numpy() == (labels[episode.query] == plane)).all()  # neither a part of it nor background
