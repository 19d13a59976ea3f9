from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from hdmnet.data.datasets.folder.dataset import FolderDataset
from hdmnet.data.io.masks import read_mask
from scripts.data import prepare_cross_domain as script
from tests.helpers.cross_domain import WRITERS, prepare


def test_the_colours_and_classes_are_the_benchmarks():
    """DeepGlobe's readme names the colours; PATNet numbers the classes so."""
    assert list(script.COLOURS) == ["agriculture", "urban", "rangeland", "forest", "water", "barren"]
    colours = np.array([[*script.COLOURS.values(), (0, 0, 0), (120, 130, 250)]], dtype=np.uint8)
    assert script.classes_of_colours(colours).tolist() == [[1, 2, 3, 4, 5, 6, 0, 2]]
    with pytest.raises(ValueError, match="none of DeepGlobe's"):
        script.classes_of_colours(np.array([[(255, 0, 0)]], dtype=np.uint8))
    assert script.EXPECTED == {"deepglobe": 5666, "isic": 2594, "chest_xray": 566}


def test_a_picture_of_2448_is_cut_into_36_tiles_of_408():
    mask = np.zeros((2448, 2448), dtype=np.uint8)
    mask[:, ::2] = 1
    tiles = list(script.cut(np.zeros((2448, 2448, 3), dtype=np.uint8), mask))
    assert [name for name, *_ in tiles] == [f"{row}{column}" for row in range(6) for column in range(6)]
    assert {tile.shape for _, tile, _ in tiles} == {(408, 408, 3)}


@pytest.mark.parametrize(("share", "stays"), [(0.047, False), (0.049, True), (1.0, False)])
def test_a_tile_stays_where_each_of_several_colours_has_its_share(share, stays):
    mask = np.zeros((600, 600), dtype=np.uint8)
    mask[:100, :100].ravel()[:] = 0
    corner = np.zeros(10_000, dtype=np.uint8)
    corner[: round(share * 10_000)] = 3
    mask[:100, :100] = corner.reshape(100, 100)
    kept = [name for name, *_ in script.cut(np.zeros((600, 600, 3), dtype=np.uint8), mask)]
    assert kept == ["00"] * stays


def test_deepglobe(tmp_path, capsys):
    root = tmp_path / "data" / "deepglobe"
    assert prepare("deepglobe", tmp_path / "source", root) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"72 pictures in {root}: agriculture ")
    assert "the benchmark has 5,666 pictures" in captured.err
    dataset = FolderDataset(root, layout="index")
    assert dataset.class_names == tuple(script.COLOURS)
    assert len(dataset.ids("val")) == 72  # the picture of one colour keeps none
    name = "00_01"  # stripes 2 and 3
    assert dataset.class_areas(name) == {3: 128, 4: 128}
    assert dataset.read_image(name).shape == (16, 16, 3)
    assert read_mask(root / "masks" / f"{name}.png")[:, 0].tolist() == [3] * 16
    assert not dataset.left_out()


def test_isic(tmp_path, capsys):
    root = tmp_path / "isic"
    assert prepare("isic", tmp_path / "source", root, "--longest", "30") == 0
    assert "9 pictures" in capsys.readouterr().out
    dataset = FolderDataset(root, layout="binary")
    assert dataset.class_names == ("melanoma", "nevus", "seborrheic_keratosis")
    assert dataset.image_size("ISIC_0000000") == (20, 30)
    assert dataset.class_areas("ISIC_0000000") == {2: 10 * 15}


def test_chest_xray_has_the_masks_of_one_hospital_only(tmp_path, capsys):
    root = tmp_path / "chest_xray"
    assert prepare("chest_xray", tmp_path / "source", root) == 0
    assert "3 pictures in" in capsys.readouterr().out
    dataset = FolderDataset(root, layout="binary")
    assert dataset.ids("val") == [f"CHNCXR_{number:04d}_0" for number in range(3)]
    (area,) = dataset.class_areas("CHNCXR_0000_0").values()
    assert area == (np.hypot(*np.mgrid[-25:25, -35:35]) < 15).sum()


@pytest.mark.parametrize("dataset", WRITERS)
def test_what_is_there_stays_and_the_rest_is_done(dataset, tmp_path):
    root = tmp_path / dataset
    assert prepare(dataset, tmp_path / "source", root) == 0
    masks = sorted((root / "masks").rglob("[!.]*.png"))
    times = [mask.stat().st_mtime_ns for mask in masks]
    for marker in (root / "masks").glob(".20.done"):  # a picture without tiles is looked at again
        marker.unlink()
    if dataset != "deepglobe":
        masks.pop().unlink()
        times.pop()
    assert prepare(dataset, tmp_path / "source", root) == 0
    assert [mask.stat().st_mtime_ns for mask in masks] == times
    assert len(list((root / "masks").rglob("[!.]*.png"))) >= len(masks)


def refusal(capsys, *words):
    assert script.main([str(word) for word in words]) == 1
    return capsys.readouterr().err.splitlines()


def test_refusals(tmp_path, capsys):
    source = WRITERS["isic"](tmp_path / "isic")
    listed = ["--classes", source / "class_id.csv"]
    root = ["--root", tmp_path / "root", "--workers", "1"]
    assert "--classes is for isic" in refusal(capsys, "isic", source, *root)[0]
    assert "--classes is for isic" in refusal(capsys, "chest_xray", source, *root, *listed)[0]
    assert "holds no file *_mask.png" in refusal(capsys, "chest_xray", source, *root)[0]
    assert "is no folder" in refusal(capsys, "deepglobe", tmp_path / "nowhere", *root)[0]
    (source / "other.csv").write_text("name\nx\n")
    assert "columns ID and Class" in refusal(capsys, "isic", source, *root, "--classes", source / "other.csv")[0]
    (source / "other.csv").write_text("ID,Class\nx,nevus\n")
    assert "has no line of ISIC_0000000" in refusal(capsys, "isic", source, *root, "--classes", source / "other.csv")[0]
    picture = source / "ISIC2018_Task1-2_Training_Input" / "ISIC_0000004.jpg"
    Image.new("RGB", (7, 9)).save(picture)
    told = f"prepare_cross_domain: {picture}: it is (7, 9) (WxH), its mask (60, 44): expected the same size"
    assert told in refusal(capsys, "isic", source, *root, *listed)
    picture.unlink()
    assert "1 masks below" in refusal(capsys, "isic", source, *root, *listed)[0]
