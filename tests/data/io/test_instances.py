from __future__ import annotations

import json
import os
import pickle
import tempfile

import pytest

from hdmnet.data.io import instances as module
from hdmnet.data.io.instances import open_instances

IMAGES = [
    {"id": 5, "file_name": "b.jpg", "height": 4, "width": 6},
    {"id": 2, "file_name": "a.jpg", "height": 5, "width": 7},
    {"id": 9, "file_name": "none.jpg", "height": 5, "width": 7},
]
ANNOTATIONS = [
    {"id": 1, "image_id": 2, "category_id": 30, "segmentation": [[0, 0, 2, 0, 2, 2]]},
    {"id": 2, "image_id": 5, "category_id": 7, "segmentation": [[1, 1, 3, 1, 3, 3]], "note": 'ü "]}, 20 €'},
    {"id": 3, "image_id": 2, "category_id": 7, "segmentation": {"size": [5, 7], "counts": [35]}, "iscrowd": 1},
    {"id": 4, "image_id": 2, "category_id": 7, "segmentation": []},
]
CATEGORIES = [{"id": 30, "name": "café"}, {"id": 7, "name": "tree"}]
CONTENT = {"info": {"year": 2017}, "annotations": ANNOTATIONS, "images": IMAGES, "categories": CATEGORIES, "n": [1, []]}


def write(path, content=CONTENT, **format):
    path.write_bytes(json.dumps(content, **format).encode())
    return path


@pytest.mark.parametrize(
    "format",
    [{}, {"indent": 2}, {"separators": (",", ":")}, {"ensure_ascii": False}, {"ensure_ascii": False, "indent": 0}],
)
def test_annotations_are_found_in_the_file(tmp_path, format):
    found = open_instances(write(tmp_path / "i.json", **format), tmp_path / "cache")
    assert found.image_names() == ["a.jpg", "b.jpg", "none.jpg"]
    assert found.read("a.jpg") == ((5, 7), [ANNOTATIONS[0], ANNOTATIONS[2], ANNOTATIONS[3]])
    assert found.read("b.jpg") == ((4, 6), [ANNOTATIONS[1]])
    assert found.read("none.jpg") == ((5, 7), [])
    assert found.categories.tolist() == [7, 30]
    assert [name.decode() for name in found.category_names.tolist()] == ["tree", "café"]
    assert found.images_per_category().tolist() == [2, 1]
    assert not found.has("c.jpg")
    with pytest.raises(ValueError, match=r"i\.json has no image 'c\.jpg'"):
        found.read("c.jpg")


def test_a_byte_order_mark_shifts_nothing(tmp_path):
    path = tmp_path / "i.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(CONTENT).encode())
    assert open_instances(path, tmp_path).read("b.jpg")[1] == [ANNOTATIONS[1]]


def test_the_tables_are_made_once_and_anew_for_another_file(tmp_path, monkeypatch):
    path, cache = write(tmp_path / "i.json"), tmp_path / "cache"
    open_instances(path, cache)
    assert len(list(cache.iterdir())) == 1
    module._open.cache_clear()
    monkeypatch.setattr(module, "_tables", None)  # would fail
    assert open_instances(path, cache).read("b.jpg")[1] == [ANNOTATIONS[1]]
    monkeypatch.undo()
    write(path, CONTENT | {"images": IMAGES[:2]})
    assert open_instances(path, cache).image_names() == ["a.jpg", "b.jpg"]


def test_another_process_maps_them_into_its_memory(tmp_path):
    path = write(tmp_path / "i.json")
    found = open_instances(path, tmp_path / "cache")
    assert type(found.annotations).__name__ == "memmap"
    copy = pickle.loads(pickle.dumps(found))
    assert type(copy.annotations).__name__ == "memmap"
    assert copy.read("a.jpg") == found.read("a.jpg")


@pytest.mark.parametrize("unwritable", ["cache", "both"])
def test_where_nothing_can_be_written_the_tables_are_elsewhere(tmp_path, monkeypatch, unwritable):
    (tmp_path / "data").mkdir()
    path = write(tmp_path / "data" / "i.json")
    (tmp_path / "file").touch()  # no folder can be made below it, whoever asks
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("file" if unwritable == "both" else "temporary")))
    found = open_instances(path, tmp_path / "file" / "cache")
    assert pickle.loads(pickle.dumps(found)).read("a.jpg") == ((5, 7), [ANNOTATIONS[0], *ANNOTATIONS[2:]])
    assert os.listdir(tmp_path / "data") == ["i.json"]
    assert (tmp_path / "temporary").is_dir() == (unwritable == "cache")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": []}, "lacks images, annotations or categories"),
        ({"images": [*IMAGES, IMAGES[0] | {"file_name": "z.jpg"}]}, "'b.jpg' and 'z.jpg' have the same id 5"),
        ({"images": [*IMAGES, IMAGES[0] | {"id": 10}]}, "names a picture twice"),
        ({"images": IMAGES[1:]}, "has an annotation of an image that it does not name"),
        ({"images": [{"id": 1}]}, "KeyError: 'coco_url'"),
        ({"annotations": [{"image_id": 5}]}, "KeyError: 'category_id'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        open_instances(write(tmp_path / "i.json", CONTENT | change), None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", '{"images": [', '{"images" []}', '{"images": [] "b": []}', '{"a": 1'])
def test_other_texts_are_refused(tmp_path, text):
    (tmp_path / "i.json").write_text(text)
    with pytest.raises(ValueError, match=r"i\.json is no instances JSON"):
        open_instances(tmp_path / "i.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no\.json are missing"):
        open_instances(tmp_path / "no.json", tmp_path)
