"""Pictures in tiles: weights that add up, no seams, ranges of the whole picture, and work that goes on after a stop."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image

from hdmnet import Segmenter
from hdmnet.apps.tiles import StoredProbability, Tiles, Tiling, as_16_bits, num_steps, ramps, segment_tiles
from hdmnet.apps.unfinished import FOLDER, Unfinished
from hdmnet.models.method import Segmentation
from hdmnet.models.prior import stretch
from tests.helpers import commands

ROUNDING = 0.51 / 65535  # twice: of a row of tiles, and where rows are joined
CLASSES = ("cat", "big dog")


def smooth(height, width):
    """A picture whose colours change by little from pixel to pixel."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = (127 + 120 * np.sin(x / 17 + y / 23), 127 + 120 * np.cos(x / 29 - y / 13))
    return np.stack([red, green, red * 0], axis=2).astype(np.uint8)


def by_colour(picture, ranges, *, rule=False):
    """A network that sees single pixels: the first class is red, the second green; by a rule only where it is dark."""
    outputs = {}
    for channel, name in enumerate(ranges):
        probability = torch.from_numpy(picture[None, :, :, channel].astype(np.float32) / 255)
        with ranges[name].part():
            stretch(probability.flatten(1))  # what it finds is the same, but there are ranges to find
        decided = (probability < 0.4).long() if rule else None
        scores = torch.stack([1 - probability, probability], dim=1)
        outputs[name] = Segmentation(scores, picture.shape[:2], is_probability=True, decided=decided)
    return outputs


def colours_of(picture):
    return [picture[:, :, channel].astype(np.float32) / 255 for channel in range(len(CLASSES))]


@pytest.mark.parametrize("overlap", [0, 0.1, 0.25, 0.5])
@pytest.mark.parametrize(("whole", "side"), [(100, 100), (101, 100), (97, 13), (64, 16), (1000, 7), (5, 1)])
def test_the_weights_of_all_tiles_add_up_to_one_everywhere(whole, side, overlap):
    starts = Tiling.of((whole, whole), (side, side), overlap).tops
    assert starts[0] == 0
    assert starts[-1] == whole - side
    assert all(after - before <= side * (1 - overlap) + 1 for before, after in itertools.pairwise(starts))
    total = np.zeros(whole)
    for start, weight in zip(starts, ramps(starts, side), strict=True):
        assert (weight > 0).all()
        total[start : start + side] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)


@pytest.mark.parametrize("rule", [False, True])
@pytest.mark.parametrize("tile", [(31, 40), (90, 25), (200, 200)])
def test_where_the_tiles_agree_the_picture_is_as_if_it_were_whole(tmp_path, tile, rule):
    picture = smooth(90, 120)
    tiles, steps = Tiles(tile, 0.25), []
    work = Unfinished(tmp_path / "work", {})
    answer = lambda part, ranges: by_colour(part, ranges, rule=rule)  # noqa: E731
    mask, found = segment_tiles(answer, picture, CLASSES, tiles, work, steps.append)
    assert sum(steps) == num_steps(tiles, picture.shape)
    probabilities = colours_of(picture)
    for probability, expected in zip(found.values(), probabilities, strict=True):
        np.testing.assert_allclose(probability[:], expected, atol=2 * ROUNDING)
    foreground = [(one < 0.4) if rule else (one > 0.5) for one in probabilities]
    scored = np.stack([np.where(inside, one, -1) for inside, one in zip(foreground, probabilities, strict=True)])
    expected_mask = np.where(scored.max(0) >= 0, scored.argmax(0) + 1, 0)
    close = np.abs(probabilities[0] - probabilities[1]) < 1e-4
    assert (mask == expected_mask)[~close].all()
    assert set(np.unique(mask)) == {0, 1, 2}


def test_where_the_tiles_differ_one_turns_into_the_other_without_a_seam(tmp_path):
    """Tiles that say 0.2 and 0.8 by turns: from pixel to pixel no more changes than the overlap asks for."""
    turns = itertools.cycle([0.2, 0.8])

    def answer(picture, ranges):
        probability = torch.full((1, *picture.shape[:2]), next(turns))
        return {
            "cat": Segmentation(torch.stack([1 - probability, probability], 1), picture.shape[:2], is_probability=True)
        }

    tiling = Tiling.of((40, 200), (40, 40), 0.25)
    assert len(tiling.lefts) % 2, "else the second pass would begin with another value"
    _, found = segment_tiles(answer, smooth(40, 200), ["cat"], Tiles((40, 40), 0.25), Unfinished(tmp_path / "w", {}))
    values = found["cat"][:]
    assert values.min() < 0.21
    assert values.max() > 0.79
    shared = tiling.lefts[0] + 40 - tiling.lefts[1]
    assert np.abs(np.diff(values, axis=1)).max() <= 0.6 / shared + 1e-3


def test_tiles_without_the_object_do_not_claim_it(tmp_path):
    """A method that stretches its map: alone each tile would hold the object, by the ranges of all only one does."""
    picture = np.full((60, 60, 3), 10, np.uint8)
    picture[::7] += 5  # something in every tile
    picture[42:55, 42:55] = 250

    def answer(part, ranges):
        red = torch.from_numpy(part[:, :, 0].astype(np.float32))[None]
        with ranges["cat"].part():
            found = stretch(red.flatten(1)).view_as(red)
        return {"cat": Segmentation(torch.stack([1 - found, found], 1), part.shape[:2], is_probability=True)}

    mask, _ = segment_tiles(answer, picture, ["cat"], Tiles((20, 20), 0.25), Unfinished(tmp_path / "work", {}))
    assert (mask == (picture[:, :, 0] == 250)).all()


def test_after_a_stop_no_row_is_computed_twice(tmp_path):
    picture, tiles = smooth(100, 100), Tiles((30, 30), 0.25)
    whole, calls = Unfinished(tmp_path / "whole", {}), []

    def counting(part, ranges):
        calls.append(part.shape)
        return by_colour(part, ranges)

    expected, probabilities = segment_tiles(counting, picture, CLASSES, tiles, whole)
    number, row = len(calls), len(tiles.cover(picture.shape).lefts)
    once = tiles.cover_once(picture.shape)
    for stop in (1, len(once) - 1, len(once) + 1, number - 1):

        def stopping(part, ranges, stop=stop):
            if len(calls) == stop:
                raise KeyboardInterrupt
            return counting(part, ranges)

        folder = tmp_path / str(stop)
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            segment_tiles(stopping, picture, CLASSES, tiles, Unfinished(folder, {"tile": 30}))
        (folder / ".row_00099.npy.1a2b3c4d.tmp").write_bytes(b"half of a row")
        calls.clear()
        work = Unfinished(folder, {"tile": 30})
        assert work.goes_on
        assert not list(folder.glob(".*.tmp"))
        mask, found = segment_tiles(counting, picture, CLASSES, tiles, work)
        assert len(calls) <= number - stop + row - 1
        assert (mask == expected).all()
        for name in CLASSES:
            assert (found[name].stored() == probabilities[name].stored()).all()


def test_what_a_command_of_other_settings_left_does_not_count(tmp_path):
    first = Unfinished(tmp_path / "work", {"tile": 30})
    segment_tiles(by_colour, smooth(60, 60), CLASSES, Tiles((30, 30), 0), first)
    assert Unfinished(tmp_path / "work", {"tile": 30}).goes_on
    assert not Unfinished(tmp_path / "work", {"tile": 20}).goes_on
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["facts.json"]


def test_a_stored_probability_is_read_as_an_array_is(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (13, 17), dtype=np.uint16)
    values.tofile(tmp_path / "stored")
    stored, array = (
        StoredProbability(tmp_path / "stored", values.shape),
        (values / np.float32(65535)).astype(np.float32),
    )
    for region in (np.s_[:], np.s_[3:9], np.s_[2:5, 4:11], values > 9000):
        assert (stored[region] == array[region]).all()
        assert stored[region].dtype == np.float32
    assert (np.asarray(stored) == array).all()
    assert (as_16_bits(stored) == values).all()
    assert (as_16_bits(array) == values).all()


# -------------------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiles")
    generator = np.random.default_rng(0)
    for name, size in {"a": (80, 60), "large": (300, 200), "small": (50, 40)}.items():
        coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(root / f"{name}.png")
    mask = np.zeros((60, 80), np.uint8)
    mask[10:50, 20:60] = 255
    Image.fromarray(mask).save(root / "mask.png")
    return root


def predict(folder, start, output, *words):
    support = f"support={{cat:[{folder}/a.png:{folder}/mask.png],dog:[{folder}/a.png:0,0,19,59]}}"
    query = f"query=[{folder}/large.png,{folder}/small.png]"
    return commands.call("predict", output, f"ckpt={start}", "device=cpu", f"output={output}", support, query, *words)


def test_the_command_and_the_segmenter_say_the_same(folder, start, tmp_path):
    answer = predict(folder, start, tmp_path, "tile=[90,110]", "formats=[png,coco]")
    assert answer.code == 0, answer.err
    supports = {"cat": (folder / "a.png", folder / "mask.png"), "dog": (folder / "a.png", (0, 0, 19, 59))}
    segmenter = Segmenter.from_checkpoint(start, device="cpu").fit(supports)
    large, small = segmenter.predict([folder / "large.png", folder / "small.png"], tile=[90, 110])
    whole = segmenter.predict(folder / "small.png")
    assert (small.mask == whole.mask).all(), "smaller than a tile: nothing to cut up"
    for name, expected in {"large": large, "small": small}.items():
        with Image.open(tmp_path / f"{name}_mask.png") as mask:
            assert (np.asarray(mask) == expected.mask).all()
        with Image.open(tmp_path / f"{name}_probability_dog.png") as probability:
            np.testing.assert_allclose(np.asarray(probability) / 65535, expected.probabilities["dog"], atol=1e-5)
    content = json.loads((tmp_path / "coco" / "annotations.json").read_text())
    areas = {
        index: sum(
            one["area"] for one in content["annotations"] if one["image_id"] == 1 and one["category_id"] == index
        )
        for index in (1, 2)
    }
    assert areas == {index: int((large.mask == index).sum()) for index in (1, 2)}
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tile=0"], "tile=0: expected a side in pixels of the picture, or two of them: [H,W]"),
        (["tile=[64,64,3]"], "tile=[64, 64, 3]: expected a side in pixels"),
        (["tile=true"], "tile=True: expected a side in pixels"),
        (["tile=64", "tile_overlap=0.7"], "tile_overlap=0.7: expected a share of a tile's side, from 0 to 0.5"),
        (["tile=64", "maps=true"], "maps=true and tile=64: a picture in tiles has no maps; expected one of them"),
    ],
)
def test_refusals(folder, start, tmp_path, words, message):
    assert message in predict(folder, start, tmp_path, *words).refusal()
