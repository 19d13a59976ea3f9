"""What was found in the formats of other programs: read back by their rules it is the same."""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import json

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from hdmnet.apps.found_objects import find_objects
from hdmnet.apps.label_writers import LabelWriters, closing
from hdmnet.apps.segmenter import Prediction
from hdmnet.data.io.outlines import LEAST_IOU
from tests.helpers.random_masks import random_masks

# pycocotools lacks the `copy` keyword that NumPy 2 asks of `__array__`.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CLASSES = ("cat", "big dog")
NUMBER = 200


def predicted(mask):
    """Probabilities that fall from left to right."""
    share = np.linspace(0.9, 0.6, mask.shape[1], dtype=np.float32)[None]
    return Prediction(mask, {name: np.where(mask == value, share, 0.1) for value, name in enumerate(CLASSES, 1)})


def write(folder, masks, formats, **settings):
    paths = [folder / "pictures" / f"p{number}.png" for number in range(len(masks))]
    with closing(LabelWriters(folder / "out", formats, CLASSES, paths, **settings)) as labels:
        for path, mask in zip(paths, masks, strict=True):
            labels.add(path, path.stem, predicted(mask))
    return folder / "out"


@pytest.fixture(scope="module")
def masks():
    return list(random_masks(NUMBER, len(CLASSES)))


@pytest.fixture(scope="module")
def written(masks, tmp_path_factory):
    """All masks in all formats, by the tolerance of the polygons."""
    return {
        tolerance: write(tmp_path_factory.mktemp("w"), masks, [*READERS], tolerance=tolerance, polygons=True)
        for tolerance in (0.0, 1.0)
    }


@functools.cache
def load_coco(path, _):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(path)


def read_coco(folder, number, size):
    """As pycocotools does."""
    path = folder / "coco" / "annotations.json"
    coco = load_coco(path, path.stat().st_mtime_ns)
    image = next(one for one in coco.dataset["images"] if one["file_name"] == f"p{number}.png")
    for one in coco.imgToAnns[image["id"]]:
        yield one["category_id"], coco.annToMask(one).astype(bool), one


def painted(found, size):
    canvas = np.zeros(size, dtype=np.uint8)
    found.paint(canvas, 1)
    return canvas.astype(bool)


def read_labelme(folder, number, size):
    """As labelme's `shapes_to_label` does."""
    content = json.loads((folder / "labelme" / f"p{number}.json").read_text())
    assert (content["imageHeight"], content["imageWidth"]) == size
    assert content["imagePath"] == f"../../pictures/p{number}.png"
    for shape in content["shapes"]:
        drawn = Image.fromarray(np.zeros(size, dtype=np.uint8))
        if shape["shape_type"] == "mask":
            mask = np.zeros(size, dtype=bool)
            (x1, y1), (x2, y2) = shape["points"]
            stored = Image.open(io.BytesIO(base64.b64decode(shape["mask"])))
            mask[y1 : y2 + 1, x1 : x2 + 1] = np.asarray(stored).astype(bool)
        else:
            ImageDraw.Draw(drawn).polygon([tuple(point) for point in shape["points"]], outline=1, fill=1)
            mask = np.asarray(drawn).astype(bool)
        yield CLASSES.index(shape["label"]) + 1, mask, shape


def read_yolo(folder, number, size):
    """As ultralytics and supervision do."""
    assert yaml.safe_load((folder / "yolo" / "data.yaml").read_text())["names"] == dict(enumerate(CLASSES))
    assert (folder / "yolo" / "images" / f"p{number}.png").is_symlink()
    for line in (folder / "yolo" / "labels" / f"p{number}.txt").read_text().splitlines():
        index, *shares = line.split()
        polygon = np.array(shares, dtype=np.float32).reshape(-1, 2) * np.array(size[::-1], dtype=np.float32)
        assert len(polygon) >= 3
        drawn = np.zeros(size, dtype=np.uint8)
        cv2.fillPoly(drawn, [polygon.astype(np.int32)], 1)
        yield int(index) + 1, drawn.astype(bool), line


def read_voc(folder, number, size):
    """As CVAT does: by colours."""
    colours = {}
    for line in (folder / "voc" / "labelmap.txt").read_text().splitlines()[1:]:
        name, colour, *_ = line.split(":")
        colours[tuple(map(int, colour.split(",")))] = name
    assert f"p{number}" in (folder / "voc/ImageSets/Segmentation/default.txt").read_text().splitlines()
    kinds = ("SegmentationClass", "SegmentationObject")
    shown, objects = (np.asarray(Image.open(folder / "voc" / kind / f"p{number}.png").convert("RGB")) for kind in kinds)
    for colour in np.unique(objects.reshape(-1, 3), axis=0):
        inside = (objects == colour).all(axis=2)
        names = {colours[tuple(int(value) for value in one)] for one in np.unique(shown[inside], axis=0)}
        if colour.any():
            (name,) = names
            yield CLASSES.index(name) + 1, inside, None
        else:
            assert names == {"background"}


READERS = {"coco": read_coco, "labelme": read_labelme, "yolo": read_yolo, "voc": read_voc}


@pytest.mark.long
@pytest.mark.parametrize("tolerance", [0.0, 1.0])
@pytest.mark.parametrize("name", READERS)
def test_200_masks_come_back_as_they_were(masks, written, name, tolerance):
    folder = written[tolerance]
    exact = tolerance == 0 or name == "voc"
    for number, mask in enumerate(masks):
        expected = [(one.index, painted(one, mask.shape)) for one in find_objects(predicted(mask))]
        found = list(READERS[name](folder, number, mask.shape))
        assert len(found) == len(expected)
        if name == "voc":  # has no order
            found = [next(one for one in found if (one[1] & region).any()) for _, region in expected]
        for (index, region, _), (value, whole) in zip(found, expected, strict=True):
            assert index == value
            overlap = (region & whole).sum() / (region | whole).sum()
            assert overlap == 1 if exact else overlap >= LEAST_IOU
        if exact:
            whole = np.zeros_like(mask)
            for index, region, _ in found:
                whole[region] = index
            assert (whole == mask).all()


def test_run_lengths_are_exact(masks, tmp_path):
    folder = write(tmp_path, masks, ["coco"])
    for number, mask in enumerate(masks):
        whole = np.zeros_like(mask)
        for index, region, one in read_coco(folder, number, mask.shape):
            assert isinstance(one["segmentation"]["counts"], str)
            whole[region] = index
        assert (whole == mask).all()


def test_boxes_areas_and_scores_of_objects(tmp_path):
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[2:5, 3:7], mask[5, 7], mask[10:20, 20:30], mask[12, 22] = 1, 1, 2, 0
    folder = write(tmp_path, [mask], ["coco"])
    objects = [one for _, _, one in read_coco(folder, 0, mask.shape)]
    assert [(one["category_id"], one["bbox"], one["area"], one["iscrowd"]) for one in objects] == [
        (1, [3, 2, 4, 3], 12, 0),
        (1, [7, 5, 1, 1], 1, 0),
        (2, [20, 10, 10, 10], 99, 0),
    ]
    share = np.linspace(0.9, 0.6, 30)
    assert objects[0]["score"] == pytest.approx(share[3:7].mean(), abs=1e-4)
    merged = [one for _, _, one in read_coco(write(tmp_path, [mask], ["coco"], instances=False), 0, mask.shape)]
    assert [(one["bbox"], one["area"]) for one in merged] == [([3, 2, 5, 4], 13), ([20, 10, 10, 10], 99)]
    assert merged[0]["score"] == pytest.approx((share[3:7].sum() * 3 + share[7]) / 13, abs=1e-4)


def test_unjoined_parts_of_one_object(tmp_path):
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[2:5, 3:7], mask[10:20, 20:30] = 1, 1
    folder = write(tmp_path, [mask], ["coco", "labelme", "yolo", "voc"], instances=False, polygons=True)
    ((_, region, one),) = read_coco(folder, 0, mask.shape)
    assert (region == mask).all()
    assert len(one["segmentation"]) == 2
    assert [shape["group_id"] for _, _, shape in read_labelme(folder, 0, mask.shape)] == [1, 1]
    assert len(list(read_yolo(folder, 0, mask.shape))) == 2
    assert not (folder / "voc" / "SegmentationObject").exists()


def test_an_interrupted_run_leaves_what_was_done(masks, tmp_path, capsys):
    paths = [tmp_path / f"p{number}.png" for number in range(9)]
    labels = LabelWriters(tmp_path / "out", ["coco", "yolo", "voc"], CLASSES, paths)

    def cut_off():
        with closing(labels):
            for path, mask in zip(paths[:3], masks, strict=False):
                labels.add(path, path.stem, predicted(mask))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_off()
    assert capsys.readouterr().out.splitlines() == [
        f"{name}: labels of 3 pictures: {tmp_path / 'out' / name}" for name in ("coco", "yolo", "voc")
    ]
    content = json.loads((tmp_path / "out/coco/annotations.json").read_text())
    assert [one["file_name"] for one in content["images"]] == ["p0.png", "p1.png", "p2.png"]
    assert (tmp_path / "out/voc/ImageSets/Segmentation/default.txt").read_text() == "p0\np1\np2\n"
    assert (tmp_path / "out/yolo/data.yaml").is_file()


def test_more_objects_than_voc_has_numbers_for_are_refused_and_the_other_formats_done(tmp_path):
    mask = np.zeros((34, 34), dtype=np.uint8)
    mask[::2, ::2] = 1
    path = tmp_path / "a.png"
    labels = LabelWriters(tmp_path / "out", ["voc", "coco"], CLASSES, [path])
    with pytest.raises(ValueError, match=r"a.png has 289 objects, and VOC's SegmentationObject numbers 254: take voc"):
        labels.add(path, "a", predicted(mask))
    labels.close()
    assert len(json.loads((tmp_path / "out/coco/annotations.json").read_text())["annotations"]) == 289
    assert not (tmp_path / "out" / "voc").exists()
    write(tmp_path / "merged", [mask], ["voc"], instances=False)


def test_names_of_pictures_of_several_folders(tmp_path):
    mask = np.ones((3, 3), dtype=np.uint8)
    paths = [tmp_path / "a" / "x.png", tmp_path / "b" / "x.png"]
    labels = LabelWriters(tmp_path / "out", ["coco"], CLASSES, paths)
    for path, name in zip(paths, ("x", "x_2"), strict=True):
        labels.add(path, name, predicted(mask))
    labels.close()
    content = json.loads((tmp_path / "out/coco/annotations.json").read_text())
    assert [one["file_name"] for one in content["images"]] == ["a/x.png", "b/x.png"]
    assert content["info"]["image_folder"] == "../.."
