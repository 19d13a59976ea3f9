"""The packaged segmenter by its three ways in: Python, predict, and a file that `save` wrote."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from hdmnet import Segmenter
from tests.helpers import commands


def photo(seed, top, left, size=(120, 160)):
    """A ball with a highlight on a lawn of noise, and its mask, (H, W, 3) and (H, W) uint8."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    distance = np.hypot(rows - top, columns - left) / 24
    picture = np.stack([50 + 0 * rows, 110 + 0 * rows, 40 + 0 * rows], -1) + rng.normal(0, 18, (*size, 3))
    ball = distance < 1
    light = np.clip(1.2 - np.hypot(rows - top + 8, columns - left + 8) / 30, 0.25, 1)
    picture[ball] = (np.array([220, 40, 30]) * light[..., None])[ball]
    return picture.clip(0, 255).astype(np.uint8), ball.astype(np.uint8)


def iou(one, other):
    return (one & other).sum() / (one | other).sum()


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter.pretrained(device="cpu", image_size=161).fit(*photo(0, 50, 50))


@pytest.mark.long
def test_it_finds_the_ball_elsewhere(segmenter):
    picture, truth = photo(1, 80, 110)
    prediction = segmenter.predict(picture)
    assert prediction.mask.shape == truth.shape
    assert iou(prediction.mask, truth) > 0.5  # every pixel foreground: 0.09
    maps = segmenter.predict(picture, maps=True).maps["object"]
    assert len(maps["prior"]) == 5


@pytest.mark.long
def test_a_saved_one_needs_nothing_else(segmenter, tmp_path):
    segmenter.save(tmp_path / "ball.pt")
    again = Segmenter.from_checkpoint(tmp_path / "ball.pt", device="cpu")
    assert again.image_size == (161, 161)
    picture, _ = photo(2, 40, 120)
    assert (again.predict(picture).probability == segmenter.predict(picture).probability).all()


@pytest.mark.long
def test_predict_takes_it_where_nothing_else_is_given(segmenter, tmp_path):
    for name, (picture, mask) in {"a": photo(0, 50, 50), "b": photo(1, 80, 110)}.items():
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
        Image.fromarray(mask * np.uint8(255)).save(tmp_path / f"{name}_mask.png")
    words = (f"support=[{tmp_path}/a.png:{tmp_path}/a_mask.png]", f"query=[{tmp_path}/b.png]")
    options = (f"output={tmp_path}/out", "image_size=161", "device=cpu")
    answer = commands.run("predict", tmp_path / "runs", *words, *options)
    assert "the packaged segmenter is taken" in answer.out
    mask = np.asarray(Image.open(tmp_path / "out" / "b_mask.png"))
    assert (mask == 255 * segmenter.predict(photo(1, 80, 110)[0]).mask).all()


@pytest.mark.long
@pytest.mark.parametrize("size", [0, [1, 2, 3], "large"])
def test_a_size_that_is_none_is_one_line(size):
    with pytest.raises(ValueError, match=r"image_size=.*: expected an integer of at least 1, or two of them"):
        Segmenter.pretrained(image_size=size)
