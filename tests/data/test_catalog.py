"""Catalog: scanning, views, cache and errors, on hand-made masks."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hdmnet.data import catalog as catalog_module
from hdmnet.data.catalog import load_catalog
from hdmnet.data.datasets.base import LabelMapDataset, Split
from hdmnet.data.datasets.files import fingerprint_files, read_ids
from hdmnet.data.io.arrays import UInt8Array
from hdmnet.data.io.masks import read_mask


class FolderMasks(LabelMapDataset):
    """Palette PNGs of a folder, six classes; every read is counted."""

    name = "folder"
    class_names = ("one", "two", "three", "four", "five", "six")

    def __init__(self, root: Path, ids: list[str]) -> None:
        self.root = root
        self.id_list = ids
        self.num_reads = 0
        self.sizes: dict[str, tuple[int, int]] = {}

    def ids(self, split: Split) -> list[str]:
        return self.id_list

    def read_image(self, image_id: str) -> UInt8Array:
        return np.zeros((*self.read_mask(image_id).shape, 3), np.uint8)

    def read_mask(self, image_id: str) -> UInt8Array:
        self.num_reads += 1
        return read_mask(self.mask_location(image_id))

    def image_size(self, image_id: str) -> tuple[int, int] | None:
        return self.sizes.get(image_id, (10, 12))

    def mask_location(self, image_id: str) -> str:
        return str(self.root / f"{image_id}.png")

    def fingerprint(self, split: Split) -> str:
        return fingerprint_files(self.root)


def write_mask(path: Path, areas: dict[int, int], size: tuple[int, int] = (10, 12)) -> None:
    """Palette PNG of (H, W) with the given pixels a value, the rest background."""
    flat = np.zeros(size[0] * size[1], np.uint8)
    values = np.repeat(list(areas), list(areas.values())) if areas else []
    flat[: len(values)] = values
    image = Image.fromarray(flat.reshape(size))
    image.putpalette([(7 * i) % 256 for i in range(768)])  # also turns L into P; colours differ from indices
    image.save(path)


AREAS = {
    "c": {1: 30, 2: 9},
    "a": {2: 10, 5: 1, 255: 20},
    "e": {},
    "b": {3: 40, 1: 10},
    "d": {2: 11, 3: 10, 6: 50},
}


@pytest.fixture
def parallel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes even for a handful of masks."""
    monkeypatch.setattr(catalog_module, "_MIN_PARALLEL", 1)
    monkeypatch.setattr(catalog_module, "_CHUNK", 2)
    # Workers unpickle FolderMasks by its module's name, which pytest's importlib mode leaves off the path.
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))


@pytest.fixture
def dataset(tmp_path: Path) -> FolderMasks:
    root = tmp_path / "masks"
    root.mkdir()
    for image_id, areas in AREAS.items():
        write_mask(root / f"{image_id}.png", areas)
    return FolderMasks(root, list(AREAS))


def test_scan_finds_every_pixel(dataset: FolderMasks) -> None:
    catalog = load_catalog(dataset, "train", None, progress=False)
    assert catalog.ids.tolist() == ["c", "a", "e", "b", "d"]
    pairs = list(zip(catalog.image_index.tolist(), catalog.class_value.tolist(), catalog.area.tolist(), strict=True))
    assert pairs[:4] == [(0, 1, 30), (0, 2, 9), (1, 2, 10), (1, 5, 1)]
    assert pairs[4:] == [(3, 1, 10), (3, 3, 40), (4, 2, 11), (4, 3, 10), (4, 6, 50)]
    assert catalog.num_classes == 6
    assert len(catalog) == 5


def test_view_by_area(dataset: FolderMasks) -> None:
    view = load_catalog(dataset, "train", None, progress=False).view((3, 2, 1, 4), min_area=10)
    assert view.ids.tolist() == ["c", "a", "b", "d"]  # list order
    assert view.classes == (1, 2, 3, 4)
    assert view.class_names == ("one", "two", "three", "four")
    assert [view.classes_of(position).tolist() for position in range(len(view))] == [[1], [2], [1, 3], [2, 3]]
    assert [view.images_of(value).tolist() for value in view.classes] == [[0, 2], [1, 3], [2, 3], []]


def test_view_excludes_any_pixel(dataset: FolderMasks) -> None:
    """The novel filter knows no area: one pixel of class 5 drops image a."""
    catalog = load_catalog(dataset, "train", None, progress=False)
    view = catalog.view((1, 2, 3), min_area=10, exclude=(5, 6))
    assert view.ids.tolist() == ["c", "b"]
    assert view.images_of(2).tolist() == []  # only 9 px in c
    assert len(catalog.view((4,), min_area=1)) == 0


def test_view_refuses_wrong_classes(dataset: FolderMasks) -> None:
    catalog = load_catalog(dataset, "train", None, progress=False)
    with pytest.raises(ValueError, match=r"classes holds class value 7, expected 1\.\.6"):
        catalog.view((1, 7), min_area=1)
    with pytest.raises(ValueError, match=r"exclude holds class value 0, expected 1\.\.6"):
        catalog.view((1,), min_area=1, exclude=(0,))
    with pytest.raises(ValueError, match="got no classes"):
        catalog.view((), min_area=1)


@pytest.mark.usefixtures("parallel")
def test_worker_processes_give_the_same(dataset: FolderMasks, caplog: pytest.LogCaptureFixture) -> None:
    alone = load_catalog(dataset, "train", None, num_workers=1, progress=False)
    dataset.num_reads = 0
    with caplog.at_level(logging.WARNING):
        pooled = load_catalog(dataset, "train", None, num_workers=2, progress=False)
    assert not caplog.records  # no fall-back
    assert dataset.num_reads == 0  # this process read nothing
    for name in ("ids", "image_index", "class_value", "area"):
        np.testing.assert_array_equal(getattr(pooled, name), getattr(alone, name))


@pytest.mark.usefixtures("parallel")
def test_error_in_worker_names_the_file(dataset: FolderMasks) -> None:
    write_mask(dataset.root / "b.png", {9: 3})
    with pytest.raises(ValueError, match=r"b\.png holds class index 9, expected 0\.\.6 or 255") as caught:
        load_catalog(dataset, "train", None, num_workers=2, progress=False)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("parallel")
def test_broken_pool_falls_back(
    dataset: FolderMasks, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise catalog_module.BrokenProcessPool("killed")

    monkeypatch.setattr(catalog_module, "_scan_in_pool", broken)
    with caplog.at_level(logging.WARNING):
        assert len(load_catalog(dataset, "train", None, num_workers=2, progress=False).area) == 9
    assert "scanning in this process" in caplog.text


def test_cache_is_used_and_renewed(dataset: FolderMasks, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "deep"
    first = load_catalog(dataset, "train", cache, progress=False)
    dataset.num_reads = 0
    again = load_catalog(dataset, "train", cache, progress=False)
    assert dataset.num_reads == 0
    np.testing.assert_array_equal(again.area, first.area)
    assert [path.suffix for path in cache.iterdir()] == [".npz"]  # nothing temporary left

    write_mask(dataset.root / "e.png", {4: 60})  # other content, other mtime
    os.utime(dataset.root / "e.png", ns=(1, 1))
    assert 4 in load_catalog(dataset, "train", cache, progress=False).class_value
    dataset.id_list = ["a", "b"]
    assert load_catalog(dataset, "train", cache, progress=False).ids.tolist() == ["a", "b"]
    assert load_catalog(dataset, "val", cache, progress=False).ids.tolist() == ["a", "b"]
    assert len(list(cache.iterdir())) == 4


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "array", "other"])
def test_damaged_cache_is_rebuilt(
    dataset: FolderMasks, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    first = load_catalog(dataset, "train", cache, progress=False)
    (path,) = cache.iterdir()
    data = path.read_bytes()
    with path.open("wb") as file:
        if damage == "other":
            np.savez(file, digest=np.array("another"), pairs=np.zeros((1, 3), np.int64))
        elif damage == "array":
            np.save(file, np.zeros((1, 3), np.int64))
        else:
            file.write({"cut": data[: len(data) // 2], "garbage": b"x" * 100, "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        again = load_catalog(dataset, "train", cache, progress=False)
    np.testing.assert_array_equal(again.area, first.area)
    assert "scanning the masks again" in caplog.text
    dataset.num_reads = 0
    load_catalog(dataset, "train", cache, progress=False)
    assert dataset.num_reads == 0


@pytest.mark.filterwarnings("ignore::UserWarning")  # NumPy remarks on some broken headers before it fails
def test_no_flipped_byte_of_the_cache_passes(dataset: FolderMasks, tmp_path: Path) -> None:
    load_catalog(dataset, "train", tmp_path / "cache", progress=False)
    (path,) = (tmp_path / "cache").iterdir()
    key = catalog_module.cache_key(dataset, "train", dataset.ids("train"), skip=False)
    pairs, _ = catalog_module.read_cache(path, key)
    data = path.read_bytes()
    refused = 0
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
        found = catalog_module.read_cache(path, key)
        refused += found is None
        if found is not None:  # e.g. a byte of the zip's time stamps
            np.testing.assert_array_equal(found[0], pairs)
    assert refused > len(data) // 2


def test_unwritable_cache_does_not_stop(dataset: FolderMasks, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        assert len(load_catalog(dataset, "train", tmp_path / "file" / "cache", progress=False)) == 5
    assert "cannot be written" in caplog.text


def test_progress_bar(dataset: FolderMasks, capsys: pytest.CaptureFixture[str]) -> None:
    load_catalog(dataset, "train", None, progress=False)
    assert capsys.readouterr().err == ""
    load_catalog(dataset, "train", None, progress=True)
    assert "folder train masks: 100%" in capsys.readouterr().err


def test_errors_name_the_file(dataset: FolderMasks) -> None:
    def fails(kind: type[Exception], message: str) -> None:
        with pytest.raises(kind, match=message) as caught:
            load_catalog(dataset, "train", None, progress=False)
        assert "\n" not in str(caught.value)

    dataset.sizes = {"a": (12, 10)}
    fails(ValueError, r"a\.png is 10x12 \(HxW\) but its picture is 12x10")
    dataset.sizes = {"a": (10, 12)}
    assert len(load_catalog(dataset, "train", None, progress=False)) == 5
    (dataset.root / "d.png").write_bytes((dataset.root / "d.png").read_bytes()[:60])
    fails(ValueError, r"d\.png cannot be read")
    Image.fromarray(np.zeros((10, 12, 3), np.uint8)).save(dataset.root / "d.png")
    fails(ValueError, r"d\.png is a picture of mode RGB, expected class indices")
    (dataset.root / "d.png").unlink()
    fails(FileNotFoundError, r"d\.png is missing")
    dataset.id_list = ["a", "b", "a"]
    fails(ValueError, r"train list of folder holds id 'a' more than once")
    dataset.id_list = []
    fails(ValueError, r"train list of folder is empty")


def test_errors_of_a_dataset_that_names_nothing(dataset: FolderMasks, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(image_id: str) -> UInt8Array:
        raise KeyError("no\nsuch key")

    monkeypatch.setattr(dataset, "read_mask", fail)
    with pytest.raises(ValueError, match=r"c\.png cannot be read: KeyError: .*such key"):
        load_catalog(dataset, "train", None, progress=False)
    monkeypatch.setattr(dataset, "read_mask", lambda image_id: np.zeros((4, 4), np.int32))
    with pytest.raises(ValueError, match=r"c\.png has shape \(4, 4\) and type int32, expected \(H, W\) uint8"):
        load_catalog(dataset, "train", None, progress=False)


def test_id_list_and_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.txt is missing"):
        read_ids(tmp_path / "none.txt")
    with pytest.raises(FileNotFoundError, match=r"folder of masks .* is missing"):
        fingerprint_files(tmp_path / "none")
    (tmp_path / "list.txt").write_text("b\r\n\r\n a \n")
    assert read_ids(tmp_path / "list.txt") == ["b", "a"]
    (tmp_path / "list.txt").write_text("b\nb\n")
    with pytest.raises(ValueError, match=r"list\.txt holds id 'b' more than once"):
        read_ids(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        read_ids(tmp_path / "list.txt")

    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"1")
    only_a = fingerprint_files(folder, names=["a.png", "b.png"])
    assert only_a == fingerprint_files(folder, names=["a.png", "b.png"])
    (folder / "z.png").write_bytes(b"1")
    assert fingerprint_files(folder, names=["a.png", "b.png"]) == only_a  # not asked for
    assert fingerprint_files(folder) != only_a
    (folder / "b.png").write_bytes(b"1")
    assert fingerprint_files(folder, names=["a.png", "b.png"]) != only_a
    assert fingerprint_files(folder, extra=["crowd=0"]) != fingerprint_files(folder)
