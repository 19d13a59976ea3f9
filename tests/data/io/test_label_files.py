"""Labels of LabelMe, YOLO and Label Studio: every kind of mark as masks, and one line for what is wrong."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from hdmnet.data.io.label_files import (
    decode_brush,
    encode_brush,
    find_task_picture,
    find_yolo,
    read_label_studio,
    read_labelme,
    read_yolo,
)

SIZE = (20, 30)
# 5 x 7 pixels with a frame in their alpha, coded by label-studio-sdk 2.1.2.
STROKE = [0, 0, 0, 140, 57, 27, 254, 35, 0, 191, 255, 108, 2, 63, 248, 192, 39, 255, 182, 1, 127, 255, 15, 128, 0]


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "images" / "a b.png"
    path.parent.mkdir()
    Image.fromarray(np.zeros((*SIZE, 3), dtype=np.uint8)).save(path)
    return path


def marked(rows, columns):
    mask = np.zeros(SIZE, dtype=np.uint8)
    mask[rows, columns] = 1
    return mask


def png(mask):
    stored = io.BytesIO()
    Image.fromarray(mask).save(stored, format="PNG")
    return base64.b64encode(stored.getvalue()).decode()


def labelme(*shapes):
    keys = ("label", "shape_type", "points", "mask")
    return {"imagePath": "images\\a b.png", "shapes": [dict(zip(keys, shape, strict=False)) for shape in shapes]}


def test_shapes_of_labelme(picture, tmp_path, caplog):
    frame = np.pad(np.zeros((2, 2), dtype=np.uint8), 1, constant_values=255)
    content = labelme(
        ("cat", "polygon", [[1, 2], [5, 2], [5, 8], [1, 8]]),
        ("cat", "rectangle", [[12, 9], [10, 6]]),
        ("dog", "circle", [[20, 10], [23, 10]]),
        ("fox", "mask", [[3, 4], [6, 7]], png(frame)),
        ("dot", "point", [[3, 4]]),
        ("__ignore__", "rectangle", [[0, 0], [30, 4]]),
        ("_background_", "rectangle", [[0, 0], [30, 4]]),
    )
    labels = read_labelme(tmp_path / "a.json", content)
    assert labels.picture == picture
    assert set(labels.masks) == {"cat", "dog", "fox"}
    cat = marked(slice(2, 8), slice(1, 5)) | marked(slice(6, 9), slice(10, 12))
    assert (labels.masks["cat"] == np.where(cat | marked(slice(4, None), slice(None)), cat, 255)).all()
    fox = marked(slice(4, 8), slice(3, 7)) - marked(slice(5, 7), slice(4, 6))
    assert ((labels.masks["fox"] == 1) == fox).all()
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    assert ((labels.masks["dog"] == 1) == (np.hypot(columns - 20, rows - 10) <= 3)).all()
    assert caplog.messages == [f"{tmp_path / 'a.json'}: point: marks without an area, left out"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"imagePath": "gone.png", "shapes": []}, "a.json: picture gone.png is neither in"),
        (labelme(("cat", "polygon", [[1, 2], [5, "x"]])), "a.json is no JSON of LabelMe"),
        (labelme(("cat", "polygon", [[1, 2], [5, 1e9], [1, 1]])), "a.json: a polygon has a coordinate"),
        (labelme(("cat", "mask", [[0, 0], [3, 3]], png(np.ones((2, 2), np.uint8)))), "from 0,0 to 3,3: they do not"),
        (labelme(("cat", "mask", [[28, 0], [31, 3]], png(np.ones((4, 4), np.uint8)))), "they do not fit"),
        (labelme(("cat", "mask", [[0, 0], [3, 3]], "bm9uZQ==")), "a.json is no JSON of LabelMe"),
        ({"imagePath": "a b.png", "shapes": None}, "a.json is no JSON of LabelMe"),
    ],
)
def test_jsons_of_labelme_that_are_refused(picture, tmp_path, content, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_labelme(tmp_path / "a.json", content)


def write_yolo(tmp_path, text, names="names: [cat, dog]\n"):
    (tmp_path / "labels").mkdir(exist_ok=True)
    (tmp_path / "labels" / "a b.txt").write_text(text)
    if names is not None:
        (tmp_path / "data.yaml").write_text(names)
    return find_yolo(tmp_path)


@pytest.mark.parametrize("names", ["names: [cat, dog]\n", "names:\n  0: cat\n  1: dog\n", None])
def test_lines_of_yolo(picture, tmp_path, names):
    if names is None:
        (tmp_path / "classes.txt").write_text("cat\ndog\n")
    polygon = "0.1 0.1 0.5 0.1 0.5 0.4 0.1 0.4"
    files = write_yolo(tmp_path, f"0 {polygon}\n1 0.5 0.5 0.2 0.2\n\n0 0.9 0.9 0.2 0.1 0.77\n1 {polygon} 0.5\n", names)
    (labels,) = read_yolo(files)
    assert labels.picture == picture
    assert labels.file == tmp_path / "labels" / "a b.txt"
    first, box = marked(slice(2, 8), slice(3, 15)), marked(slice(8, 12), slice(12, 18))
    assert (labels.masks["cat"] == (first | marked(slice(17, 19), slice(24, 30)))).all()
    assert (labels.masks["dog"] == (first | box)).all()


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        ("2 0.5 0.5 0.2 0.2\n", "names: [cat]\n", "class 2 has no name: mend data.yaml or classes.txt"),
        ("0 0.5 0.5 0.2\n", "names: [cat]\n", "a b.txt: a line of 4 numbers, expected CLASS x y w h"),
        ("cat 0.5 0.5 0.2 0.2\n", "names: [cat]\n", "a b.txt is no text of YOLO"),
        ("0 0.5 0.5 0.2 0.2\n", "nc: 1\n", "data.yaml is no list of classes"),
        ("0 0.5 0.5 0.2 0.2\n", None, "no names of its classes: write data.yaml"),
    ],
)
def test_texts_of_yolo_that_are_refused(picture, tmp_path, text, names, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_yolo(write_yolo(tmp_path, text, names))


def test_a_text_of_yolo_without_its_picture(tmp_path):
    files = write_yolo(tmp_path, "0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(FileNotFoundError, match=r"no picture a b\.\* in .*labels or .*images"):
        read_yolo(files)


def result(kind, names, **value):
    return {"type": kind, "original_width": 30, "original_height": 20, "value": {**value, kind: names}}


def task(results, image="/data/upload/1/0a1b2c3d-a%20b.png"):
    return {"data": {"text": "x", "image": image}, "annotations": [{"result": results}]}


def test_marks_of_label_studio(picture, tmp_path, caplog):
    tasks = [
        task(
            [
                result("polygonlabels", ["cat"], points=[[10, 10], [50, 10], [50, 40], [10, 40]]),
                result("rectanglelabels", ["dog", "pet"], x=40, y=40, width=20, height=20, rotation=0),
                result("rectanglelabels", ["turned"], x=50, y=50, width=20, height=10, rotation=90),
                result("ellipselabels", ["egg"], x=50, y=50, radiusX=10, radiusY=15, rotation=0),
                result("keypointlabels", ["dot"], x=50, y=50, width=1),
            ]
        )
    ]
    (labels,) = read_label_studio(tmp_path / "export.json", tasks)
    assert labels.picture == picture
    assert (labels.masks["cat"] == marked(slice(2, 8), slice(3, 15))).all()
    assert (labels.masks["dog"] == marked(slice(8, 12), slice(12, 18))).all()
    assert (labels.masks["pet"] == labels.masks["dog"]).all()
    assert (labels.masks["turned"] == marked(slice(10, 16), slice(13, 15))).all()
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    assert (labels.masks["egg"] == (np.hypot(columns - 15, rows - 10) <= 3)).all()
    assert caplog.messages == [f"{tmp_path / 'export.json'}: keypointlabels: marks without an area, left out"]


def test_brush_strokes_of_label_studio(tmp_path):
    Image.fromarray(np.zeros((5, 7, 3), dtype=np.uint8)).save(tmp_path / "b.png")
    stroke = {"type": "brushlabels", "original_width": 7, "original_height": 5}
    stroke["value"] = {"format": "rle", "rle": STROKE, "brushlabels": ["cat"]}
    frame = np.zeros((5, 7), dtype=np.uint8)
    frame[1:4, 2:6], frame[2, 3] = 1, 0
    first, second = {"result": [stroke]}, {"result": [], "ground_truth": True}
    tasks = [{"data": {"image": "s3://bucket/b.png"}, "annotations": [{"was_cancelled": True}, first]}]
    (labels,) = read_label_studio(tmp_path / "x.json", tasks)
    assert (labels.masks["cat"] == frame).all()
    tasks[0]["annotations"] = [first, second]
    assert read_label_studio(tmp_path / "x.json", tasks) == []
    tasks[0]["annotations"] = [{"result": [stroke | {"original_width": 9}]}]
    with pytest.raises(
        ValueError, match=r"x.json: a brush stroke of 140 values, expected 4 for each pixel of \(5, 9\)"
    ):
        read_label_studio(tmp_path / "x.json", tasks)
    with pytest.raises(FileNotFoundError, match=r"x.json: picture gone.png is neither in"):
        read_label_studio(tmp_path / "x.json", [task([stroke], "gone.png")])


def test_codes_of_brush_strokes():
    def bits(*pairs):
        text = "".join(f"{value:0{width}b}" for value, width in pairs)
        return [int(text[at : at + 8].ljust(8, "0"), 2) for at in range(0, len(text), 8)]

    header = ((7, 32), (7, 5), (2, 4), (3, 4), (7, 4), (15, 4))
    repeated = ((1, 1), (0, 2), (2, 3), (9, 8))  # three times 9
    plain = ((0, 1), (1, 2), (3, 4), (1, 8), (2, 8), (3, 8), (255, 8))
    assert decode_brush(bits(*header, *repeated, *plain)).tolist() == [9, 9, 9, 1, 2, 3, 255]
    for code in (bits(*header, *repeated), bits(*header, *repeated, *plain[:-2]), [0, 0]):
        with pytest.raises(ValueError, match="cut short"):
            decode_brush(code)
    with pytest.raises(ValueError, match="expected up to"):
        decode_brush(bits((2**31, 32), *header[1:]))


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (300, 200)])
def test_strokes_come_back(size):
    rng = np.random.default_rng(0)
    for share in (0, 0.001, 0.3, 1):
        mask = rng.random(size) < share
        pixels = decode_brush(encode_brush(mask)).reshape(*size, 4)
        assert ((pixels == 255) == mask[..., None]).all()
        assert np.isin(pixels, (0, 255)).all()


def test_no_task_leads_out_of_its_folder(tmp_path):
    (tmp_path / "project").mkdir()
    Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(tmp_path / "other.png")
    with pytest.raises(FileNotFoundError, match=r"picture other.png is neither in"):
        find_task_picture(tmp_path / "project" / "export.json", {"image": "/data/local-files/?d=../other.png"})
