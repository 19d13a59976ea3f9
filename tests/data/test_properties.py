"""What must hold of folds, manifests and painted masks whatever the data are (hypothesis)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from hdmnet.data.catalog import Catalog
from hdmnet.data.class_split import split_classes
from hdmnet.data.datasets.base import label_table
from hdmnet.data.episodes.manifest import EpisodeManifest, read_manifest
from hdmnet.data.io.annotations import category_values, decode_segmentation, paint_annotations, run_lengths
from hdmnet.data.io.arrays import IGNORE
from hdmnet.data.io.masks import read_mask, write_mask

quick = settings(max_examples=40, deadline=None)

# --------------------------------------------------------------------------------------------------------------- folds


@quick
@given(st.integers(2, 6), st.integers(1, 12), st.sampled_from(["contiguous", "interleaved"]))
def test_folds_are_a_partition(num_folds, size, rule):
    num_classes = num_folds * size
    folds = [split_classes(num_classes, num_folds, index, rule) for index in range(num_folds)]
    assert sorted(value for fold in folds for value in fold.novel) == list(range(1, num_classes + 1))
    for fold in folds:
        assert len(fold.novel) == size
        assert sorted((*fold.train, *fold.novel)) == list(range(1, num_classes + 1))


@quick
@given(st.integers(2, 6), st.integers(1, 12), st.sampled_from(["contiguous", "interleaved"]), st.data())
def test_no_novel_pixel_passes_into_a_label_map(num_folds, size, rule, data):
    fold = split_classes(num_folds * size, num_folds, data.draw(st.integers(0, num_folds - 1)), rule)
    table = label_table(num_folds * size, fold.train)
    assert table[0] == 0
    assert table[IGNORE] == IGNORE
    assert not table[list(fold.novel)].any()
    assert table[list(fold.train)].tolist() == list(range(1, len(fold.train) + 1))
    assert (table[num_folds * size + 1 : IGNORE] == IGNORE).all()


# ------------------------------------------------------------------------------------------------------------ manifests


@st.composite
def views(draw, shot):
    """A view in which every class that occurs has more images than shots."""
    num_classes = draw(st.integers(1, 4))
    images = draw(
        st.lists(st.sets(st.integers(1, num_classes), min_size=1), min_size=shot + 1, max_size=shot + 8).filter(
            lambda several: all(
                not 0 < sum(value in one for one in several) <= shot for value in range(1, num_classes + 1)
            )
        )
    )
    pairs = np.array(
        [(index, value) for index, values in enumerate(images) for value in sorted(values)], dtype=np.int64
    )
    catalog = Catalog(
        ids=np.array([f"p{index}" for index in range(len(images))]),
        image_index=pairs[:, 0],
        class_value=pairs[:, 1],
        area=np.full(len(pairs), 100, dtype=np.int64),
        class_names=tuple("abcd"[:num_classes]),
    )
    return catalog.view(range(1, num_classes + 1), min_area=50), images


@quick
@given(st.data(), st.integers(1, 3), st.integers(0, 2**31), st.integers(0, 10**12))
def test_an_episode_is_of_its_class_and_of_nothing_but_its_index(data, shot, seed, index):
    view, images = data.draw(views(shot))
    about = {"dataset": "x", "fold": 0, "split": "train", "shot": shot, "seed": seed, "num_episodes": None}
    one = EpisodeManifest(view, **about)[index]
    manifest = EpisodeManifest(view, **about)
    _ = [manifest[other] for other in (0, index + 1, 7)]  # what was drawn before does not matter
    assert manifest[index] == one
    assert len(set(one.support_ids)) == shot
    assert one.query_id not in one.support_ids
    for image_id in (one.query_id, *one.support_ids):
        assert one.class_value in images[int(image_id[1:])]
    more = EpisodeManifest(view, **about | {"shot": 1})[index]
    assert (more.query_id, more.class_value, more.support_ids[0]) == (one.query_id, one.class_value, one.support_ids[0])


@quick
@given(st.data(), st.integers(1, 2), st.integers(0, 2**31))
def test_every_image_is_the_query_once_a_pass(data, shot, seed):
    view, _ = data.draw(views(shot))
    manifest = EpisodeManifest(view, dataset="x", fold=0, split="val", shot=shot, seed=seed, num_episodes=3 * len(view))
    for start in range(0, len(manifest), len(view)):
        queries = [manifest[index].query_id for index in range(start, start + len(view))]
        assert sorted(queries) == sorted(view.ids.tolist())


@quick
@given(st.data(), st.integers(0, 2**31))
def test_a_manifest_survives_its_file_and_no_edit_does(tmp_path_factory, data, seed):
    view, _ = data.draw(views(1))
    manifest = EpisodeManifest(view, dataset="x", fold=0, split="val", shot=1, seed=seed, num_episodes=5)
    path = tmp_path_factory.mktemp("manifest") / "m.jsonl"
    manifest.write(path)
    again = read_manifest(path)
    assert list(again) == list(manifest)
    assert again.sha256() == manifest.sha256()
    text = path.read_bytes()
    place = data.draw(st.integers(0, len(text) - 2))
    byte = data.draw(st.integers(0, 255))
    assume(byte != text[place] and chr(byte) not in " \t\r\n\x0b\x0c" and chr(text[place]) not in "\n")
    path.write_bytes(text[:place] + bytes([byte]) + text[place + 1 :])
    with pytest.raises(ValueError, match=r"manifest|damaged|format"):
        read_manifest(path)


# ---------------------------------------------------------------------------------------------------------------- masks

small_masks = st.integers(1, 12).flatmap(
    lambda height: st.integers(1, 12).flatmap(
        lambda width: st.binary(min_size=height * width, max_size=height * width).map(
            lambda data: np.frombuffer(data, np.uint8).reshape(height, width)
        )
    )
)


@quick
@given(small_masks)
def test_a_mask_survives_its_file(tmp_path_factory, mask):
    path = tmp_path_factory.mktemp("mask") / "m.png"
    write_mask(path, mask)
    np.testing.assert_array_equal(read_mask(path), mask)


@quick
@given(small_masks)
def test_run_lengths_are_those_of_pycocotools(mask):
    region = np.asfortranarray(mask > 127, dtype=np.uint8)
    code = coco_mask.encode(region)
    flat = np.concatenate([[0], region.flatten("F"), [2]])  # a run ends where the value changes
    lengths = run_lengths(code["counts"])
    assert sum(lengths) == region.size
    assert lengths[1::2] == [] or sum(lengths[1::2]) == region.sum()
    changes = np.flatnonzero(np.diff(flat))
    assert lengths == np.diff([0, *changes]).tolist()
    as_text = {"size": list(mask.shape), "counts": code["counts"].decode()}
    as_list = {"size": list(mask.shape), "counts": lengths}
    for form in (as_text, as_list):
        np.testing.assert_array_equal(decode_segmentation(form, *mask.shape), region.astype(bool))


@quick
@given(st.data())
def test_painting_is_the_last_region_over_the_others(data):
    height, width = data.draw(st.integers(2, 10)), data.draw(st.integers(2, 10))
    values = category_values([{"id": 10 * number} for number in range(1, 4)])
    expected = np.zeros((height, width), dtype=np.uint8)
    annotations = []
    for number in range(data.draw(st.integers(0, 5))):
        region = np.frombuffer(data.draw(st.binary(min_size=height * width, max_size=height * width)), np.uint8)
        region = (region > 160).reshape(height, width)
        category, crowd = 10 * data.draw(st.integers(1, 3)), data.draw(st.integers(0, 1))
        code = coco_mask.encode(np.asfortranarray(region, dtype=np.uint8))
        segmentation = {"size": code["size"], "counts": code["counts"].decode()}
        annotations.append({"id": number, "category_id": category, "iscrowd": crowd, "segmentation": segmentation})
        expected[region] = IGNORE if crowd else values[category]
    np.testing.assert_array_equal(paint_annotations(annotations, (height, width), values), expected)


coordinates = st.floats() | st.integers(-(2**70), 2**70) | st.none() | st.text(max_size=2) | st.booleans()


@quick
@given(
    st.lists(st.lists(coordinates, max_size=8), max_size=3)
    | st.fixed_dictionaries({
        "size": st.just([4, 5]) | st.lists(coordinates, max_size=3),
        "counts": st.lists(coordinates, max_size=4) | st.text(max_size=6) | st.binary(max_size=6) | coordinates,
    })
    | coordinates
)  # fmt: skip
def test_any_segmentation_is_decoded_or_refused(segmentation):
    """None may reach pycocotools that ends the process; this test's process would be gone."""
    outcome = None
    try:
        outcome = decode_segmentation(segmentation, 4, 5)
    except ValueError:
        return
    assert outcome.shape == (4, 5)
