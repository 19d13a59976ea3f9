from __future__ import annotations

import pickle

import cv2
import numpy as np
import pytest

from hdmnet.data.transforms import (
    BaseLearnerAugment,
    RandomAugment,
    ResizeOnly,
    build_augment,
    derive_seed,
    resize_pair,
)

MEAN = (0.485, 0.456, 0.406)
FILL = (124, 116, 104)  # 255 times the mean, rounded


def picture(height=90, width=120):
    """A bright object (label 1) in the left half of a dark ground; ignored pixels nowhere."""
    mask = np.zeros((height, width), np.uint8)
    mask[20:60, 10:50] = 1
    image = np.full((height, width, 3), 50, np.uint8)
    image[mask == 1] = 200
    return image, mask


def official(scale=(0.9, 1.1), image_size=(64, 96)):
    return build_augment("official", image_size=image_size, scale=scale, mean=MEAN)


def equal(one, two):
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_derived_seeds_are_fixed_and_do_not_collide():
    assert derive_seed(0, 0, 0) == 0x8576E34627DC1415  # blake2b-64 of b"0/0/0", little endian
    seeds = {derive_seed(seed, index, role) for seed in range(3) for index in range(200) for role in range(6)}
    assert len(seeds) == 3 * 200 * 6


@pytest.mark.parametrize("name", ["official", "paper", "none"])
def test_result_has_the_size_and_is_a_function_of_the_seed(name):
    image, mask = picture()
    augment = build_augment(name, image_size=(64, 96), scale=(0.8, 1.25), mean=MEAN)
    first = [augment(image, mask, seed) for seed in range(8)]
    assert all(i.shape == (64, 96, 3) and m.shape == (64, 96) for i, m in first)
    assert all(i.dtype == m.dtype == np.uint8 for i, m in first)
    copy = pickle.loads(pickle.dumps(augment))
    # In another order, by another instance as a worker would have it: only the seed counts.
    assert all(equal(copy(image, mask, seed), first[seed]) for seed in reversed(range(8)))
    assert np.array_equal(image, picture()[0])  # inputs stay untouched
    if name != "none":
        assert not any(equal(first[a], first[b]) for a in range(8) for b in range(a))


def test_image_and_mask_move_together_and_labels_stay_labels():
    image, mask = picture()
    for name in ("official", "paper"):
        augment = build_augment(name, image_size=(80, 80), scale=(0.8, 1.25), mean=MEAN)
        for seed in range(30):
            changed, labels = augment(image, mask, seed)
            assert set(np.unique(labels)) <= {0, 1, 255}
            known = labels != 255
            agree = (changed[..., 0] > 125) == (labels == 1)
            assert agree[known].mean() > 0.96  # all but the outline, 160 of 6,400 pixels


def test_rotation_blur_and_flip_are_drawn_independently():
    image, mask = picture()
    augment = official(scale=(1.0, 1.0), image_size=(90, 120))
    seen = {}
    for seed in range(240):
        changed, labels = augment(image, mask, seed)
        rotated = bool((labels == 255).any())
        flipped = bool(np.nonzero(labels == 1)[1].mean() > 60)
        blurred = len(np.unique(changed[30:50, :, 0])) > (2 if not rotated else 40)
        if not rotated:  # a rotated outline is soft without blur too
            seen[flipped, blurred] = seen.get((flipped, blurred), 0) + 1
        seen[rotated, flipped, "any"] = seen.get((rotated, flipped, "any"), 0) + 1
    assert all(seen[a, b] >= 15 for a in (False, True) for b in (False, True))  # 30 expected
    assert all(seen[a, b, "any"] >= 40 for a in (False, True) for b in (False, True))  # 60 expected


def test_outside_is_mean_colour_and_ignored():
    image = np.full((90, 120, 3), 255, np.uint8)
    mask = np.ones((90, 120), np.uint8)
    augment = official(scale=(1.0, 1.0), image_size=(90, 120))
    rotated = [pair for pair in (augment(image, mask, seed) for seed in range(40)) if pair[1][0, 0] == 255]
    assert rotated
    plain = [image for image, _ in rotated if tuple(image[0, 0]) == FILL]
    assert len(plain) > len(rotated) // 4  # the others are blurred or rotated by a hair


def test_blur_is_the_five_by_five_of_opencv():
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    mask = np.zeros((40, 40), np.uint8)
    augment = official(scale=(1.0, 1.0), image_size=(40, 40))
    expected = cv2.GaussianBlur(image, (5, 5), 0).astype(int)
    errors = [np.abs(augment(image, mask, seed)[0].astype(int) - expected).max() for seed in range(40)]
    assert 0 < sum(error <= 5 for error in errors) < 20  # a quarter is blurred, neither rotated nor flipped
    assert min(error for error in errors if error > 5) > 50


def test_scale_changes_the_object_in_a_crop():
    mask = np.zeros((100, 100), np.uint8)
    mask[40:60, 40:60] = 1
    image = np.zeros((100, 100, 3), np.uint8)
    areas = {}
    for factor in (0.5, 2.0):
        augment = RandomAugment((200, 200), scale=(factor, factor), mean=MEAN, crop=True)
        areas[factor] = np.median([(augment(image, mask, seed)[1] == 1).sum() for seed in range(9)])
    assert areas[0.5] == pytest.approx(100, rel=0.1)
    assert areas[2.0] == pytest.approx(1600, rel=0.05)


def test_crop_pads_a_small_image_evenly():
    image, mask = np.full((4, 6, 3), 9, np.uint8), np.full((4, 6), 3, np.uint8)
    augment = RandomAugment((8, 8), scale=(1.0, 1.0), mean=MEAN, crop=True)
    results = [augment(image, mask, seed) for seed in range(40)]
    padded, labels = next(pair for pair in results if (pair[1] != 255).sum() == 24 and (pair[0] == 9).sum() == 72)
    expected = np.full((8, 8), 255)
    expected[2:6, 1:7] = 3
    assert np.array_equal(labels, expected)
    assert tuple(padded[0, 0]) == FILL
    assert (padded[2:6, 1:7] == 9).all()


def test_crop_prefers_the_foreground():
    mask = np.zeros((100, 100), np.uint8)
    mask[:8, :8] = 1
    image = np.zeros((100, 100, 3), np.uint8)
    augment = RandomAugment((50, 50), scale=(1.0, 1.0), mean=MEAN, crop=True)
    # Flipped pictures hold the object in other corners; a single draw would find it in about 3 % of the crops.
    assert sum((augment(image, mask, seed)[1] == 1).any() for seed in range(60)) > 8


def test_crop_without_any_foreground_is_kept():
    image = np.zeros((50, 50, 3), np.uint8)
    augment = build_augment("paper", image_size=(30, 30), scale=(0.9, 1.1), mean=MEAN)
    assert set(np.unique(augment(image, np.zeros((50, 50), np.uint8), 0)[1])) <= {0, 255}


def test_base_learner_crop_keeps_most_of_the_foreground_where_possible():
    mask = np.zeros((100, 100), np.uint8)
    mask[:, :20] = 4
    image = np.zeros((100, 100, 3), np.uint8)
    shares = {}
    for keep in (0.85, 0.01):
        augment = BaseLearnerAugment((100, 60), mean=MEAN, scale=(1.0, 1.0), keep=keep)
        kept = [(augment(image, mask, seed)[1] == 4).sum() / 2000 for seed in range(80)]
        shares[keep] = np.mean(np.array(kept) >= 0.85)
    assert shares[0.85] > 0.35 > 0.3 > shares[0.01]  # one draw: 4 offsets of 41


def test_base_learner_crop_of_the_release_heeds_the_first_class_alone():
    """Classes 1 and 4 at the two ends, of which no crop holds both."""
    mask = np.zeros((100, 100), np.uint8)
    mask[:, :2], mask[:, -40:] = 1, 4
    image = np.zeros((100, 100, 3), np.uint8)
    for keep_label, kept in ((None, 4), (1, 1)):
        augment = BaseLearnerAugment((100, 60), mean=MEAN, scale=(1.0, 1.0), keep_label=keep_label)
        found = [augment(image, mask, seed)[1] for seed in range(80)]
        whole = {c: np.mean([(one == c).sum() >= 0.85 * (mask == c).sum() for one in found]) for c in (1, 4)}
        # Two columns are whole in one of 41 places: ten draws find them for one seed in five.
        assert whole[kept] > 0.15 > whole[5 - kept]


def test_base_learner_augment_has_the_papers_scale():
    augment = BaseLearnerAugment((30, 40), mean=MEAN)
    assert augment.scale == (0.5, 2.0)
    assert augment(*picture(), 3)[1].shape == (30, 40)


def test_resize_pair_is_bilinear_and_nearest():
    image = np.zeros((2, 2, 3), np.uint8)
    image[:, 1] = 100
    mask = np.array([[0, 7], [255, 1]], np.uint8)
    large, labels = resize_pair(image, mask, (2, 4))
    assert large[0, :, 0].tolist() == [0, 25, 75, 100]
    assert labels.tolist() == [[0, 0, 7, 7], [255, 255, 1, 1]]
    same, _ = resize_pair(image, mask, (2, 2))
    assert same is image
    assert equal(ResizeOnly((2, 4))(image, mask, seed=3), (large, labels))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "offical"}, r"augment is 'offical'; expected one of official, paper, pfenet, crop, flip, none"),
        ({"scale": (1.1, 0.9)}, r"scale is \(1.1, 0.9\); expected 0 < low <= high"),
        ({"mean": (123.0, 116.0, 104.0)}, r"expected three values in \[0, 1\]"),
        ({"image_size": (0, 5)}, r"image_size is \(0, 5\)"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    given = {"name": "official", "image_size": (8, 8), "scale": (0.9, 1.1), "mean": MEAN} | arguments
    with pytest.raises(ValueError, match=message):
        build_augment(given.pop("name"), **given)
    with pytest.raises(ValueError, match=r"keep is 0"):
        BaseLearnerAugment((8, 8), mean=MEAN, keep=0)


def test_flip_only_turns_every_other_picture_and_its_mask_together():
    augment = build_augment("flip", image_size=(6, 8), scale=(1.0, 1.0), mean=(0.5, 0.5, 0.5))
    image = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    mask = np.arange(6 * 8, dtype=np.uint8).reshape(6, 8)
    same, turned = augment(image, mask, 2), augment(image, mask, 3)
    assert np.array_equal(same[0], image)
    assert np.array_equal(same[1], mask)
    assert np.array_equal(turned[0], image[:, ::-1])
    assert np.array_equal(turned[1], mask[:, ::-1])


@pytest.mark.parametrize("size", [(20, 30), (70, 30), (70, 90)])
def test_a_crop_is_a_part_of_the_picture_at_its_scale(size):
    """Smaller, larger in one direction, larger in both; flipped or not."""
    rows, columns = np.mgrid[1:51, 1:61]
    image = np.stack([rows, columns, rows + columns], axis=2).astype(np.uint8)
    mask = (columns > 30).astype(np.uint8)
    augment = build_augment("crop", image_size=size, scale=(0.9, 1.1), mean=(0.5, 0.5, 0.5))
    seen = set()
    for seed in range(40):
        cropped, labels = augment(image, mask, seed)
        assert equal(augment(image, mask, seed), (cropped, labels))
        assert cropped.shape == (*size, 3)
        if seed & 1:
            cropped, labels = cropped[:, ::-1], labels[:, ::-1]
        inside = labels != 255
        assert inside.sum() == min(size[0], 50) * min(size[1], 60)
        assert inside[: min(size[0], 50), : min(size[1], 60)].all()  # what is missing is at the right and the bottom
        assert not cropped[~inside].any()
        top, left = cropped[0, 0, :2].astype(int)
        seen.add((top, left))
        height, width = min(size[0], 50), min(size[1], 60)
        place = np.s_[top - 1 : top - 1 + height, left - 1 : left - 1 + width]
        np.testing.assert_array_equal(cropped[:height, :width], image[place])
        np.testing.assert_array_equal(labels[:height, :width], mask[place])
    assert (len(seen) == 1) == (size == (70, 90))
