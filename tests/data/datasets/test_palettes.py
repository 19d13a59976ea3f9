"""A mask whose palette a program has changed is found, as its values name other classes."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from hdmnet.data.catalog import load_catalog
from hdmnet.data.datasets.folder.dataset import FolderDataset
from hdmnet.data.datasets.palettes import common_colours, refuse_other_palette
from hdmnet.data.datasets.pascal import PascalDataset
from hdmnet.data.io.masks import read_mask, voc_palette, write_mask
from scripts.data import check_dataset, prepare_pascal

NAMES = ("cat", "dog", "bird", "fish")


def mask_of(value):
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[5:12, 4:20] = value
    return mask


def renumber(path, order=None):
    """Write a palette PNG as an optimiser does: only the colours in use, sorted; a viewer shows the same."""
    values = read_mask(path)
    used = np.unique(values).tolist()
    with Image.open(path) as picture:
        colours = np.array(picture.getpalette("RGB")).reshape(-1, 3)[used].tolist()
        before = np.asarray(picture.convert("RGB"))
    order = sorted(range(len(used)), key=lambda place: colours[place], reverse=True) if order is None else order
    table = np.zeros(256, dtype=np.uint8)
    for new, old in enumerate(order):
        table[used[old]] = new
    changed = Image.fromarray(table[values])
    changed.putpalette([part for old in order for part in colours[old]])
    changed.save(path)
    assert (np.asarray(changed.convert("RGB")) == before).all()


@pytest.fixture
def root(tmp_path):
    """An index folder: four pictures of each of four classes, masks in VOC's colours."""
    for value, name in enumerate(NAMES, start=1):
        for number in range(4):
            path = tmp_path / f"images/{name}{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (30, 20)).save(path)
            write_mask(tmp_path / f"masks/{name}{number}.png", mask_of(value))
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    return tmp_path


@pytest.mark.long
@pytest.mark.parametrize("order", [None, [0, 1]], ids=["sorted", "only shortened"])
@pytest.mark.parametrize("name", ["dog1", "fish0"])
def test_a_renumbered_index_mask_is_refused(root, name, order, capsys):
    load_catalog(FolderDataset(root), "val", None, progress=False)
    renumber(root / f"masks/{name}.png", order)
    line = rf"mask .*{name}\.png shows value \d as RGB \(\d+, \d+, \d+\), but .*\.png shows \d as \(\d+, \d+, \d+\)"
    with pytest.raises(ValueError, match=line):
        load_catalog(FolderDataset(root), "val", None, progress=False)
    skipping = load_catalog(FolderDataset(root), "val", None, skip=True, progress=False)
    assert [image_id for image_id, _ in skipping.skipped] == [name]
    assert check_dataset.main([f"dataset.root={root}"]) == 1
    assert f"wrong: mask {root}/masks/{name}.png shows value" in capsys.readouterr().out


def test_where_all_are_renumbered_it_shows(root):
    for path in sorted((root / "masks").iterdir()):
        renumber(path, [0, 1])  # each class is value 1 now
    with pytest.raises(ValueError, match="shows value 1 as RGB"):
        load_catalog(FolderDataset(root), "val", None, progress=False)


def test_where_the_colours_are_listed_another_order_does_no_harm(root):
    lines = [
        f"{name}:{','.join(map(str, voc_palette()[3 * value : 3 * value + 3]))}" for value, name in enumerate(NAMES, 1)
    ]
    (root / "classes.txt").rename(root / "names")
    (root / "labelmap.txt").write_text("\n".join(["background:0,0,0", *lines]))
    expected = {path.stem: read_mask(path) for path in (root / "masks").iterdir()}
    for path in sorted((root / "masks").iterdir())[::2]:
        renumber(path)
    dataset = FolderDataset(root)
    load_catalog(dataset, "val", None, progress=False)
    for image_id, mask in expected.items():
        np.testing.assert_array_equal(dataset.read_mask(image_id), mask)


def test_palettes_that_change_no_value_are_taken(root):
    """Entries that are not in use, shorter palettes, grey ones that show the values, and grey files."""
    paths = sorted((root / "masks").iterdir())
    expected = [read_mask(path) for path in paths]
    for number, (path, mask) in enumerate(zip(paths, expected, strict=True)):
        picture = Image.fromarray(mask)
        colours = list(voc_palette()[: 3 * int(mask.max()) + 3])
        if number % 4 == 1:
            colours += [9, 9, 9] * 20
        if number % 4 == 2:
            colours = [value for value in range(256) for _ in range(3)]
        if number % 4 < 3:
            picture.putpalette(colours)
        picture.save(path)
    dataset = FolderDataset(root)
    load_catalog(dataset, "val", None, progress=False)
    for image_id, mask in zip(dataset.ids("val"), expected, strict=True):
        np.testing.assert_array_equal(dataset.read_mask(image_id), mask)


def test_a_value_in_the_colour_of_another_is_refused_though_others_lack_it(tmp_path):
    for name, value in (("a", 3), ("b", 3), ("c", 7)):
        write_mask(tmp_path / f"{name}.png", mask_of(value))
    common = common_colours([tmp_path / "a.png", tmp_path / "b.png"])
    refuse_other_palette(tmp_path / "c.png", common)
    picture = Image.fromarray(mask_of(7))
    picture.putpalette([0, 0, 0] * 7 + list(voc_palette()[9:12]))
    picture.save(tmp_path / "c.png")
    with pytest.raises(
        ValueError, match=r"c\.png shows value 7 as RGB \(128, 128, 0\), but .* shows 3 as \(128, 128, 0\)"
    ):
        refuse_other_palette(tmp_path / "c.png", common)


def grey_palette(path, mask, *shades):
    """Save a mask as programs do that give a grey one a palette: its values are the shades' numbers."""
    picture = Image.fromarray(np.searchsorted(shades, mask).astype(np.uint8))
    picture.putpalette([part for shade in shades for part in (shade,) * 3])
    picture.save(path)


def test_a_grey_mask_with_a_palette_of_its_own_greys_is_refused(root):
    for path in sorted((root / "masks").iterdir()):
        Image.fromarray(read_mask(path)).save(path)
    load_catalog(FolderDataset(root), "val", None, progress=False)
    grey_palette(root / "masks/fish2.png", mask_of(4), 0, 4)  # value 1, which is a cat
    with pytest.raises(ValueError, match=r"fish2\.png shows value 1 as RGB \(4, 4, 4\), but .* shows 4 as \(4, 4, 4\)"):
        load_catalog(FolderDataset(root), "val", None, progress=False)


def test_a_grey_mask_that_was_a_palette_of_greys_is_refused(root):
    for path in sorted((root / "masks").iterdir()):
        grey_palette(path, read_mask(path) * 60 + (read_mask(path) > 0) * np.uint8(15), 0, 75, 135, 195, 255)
    assert read_mask(root / "masks/fish2.png").max() == 4
    load_catalog(FolderDataset(root), "val", None, progress=False)
    Image.fromarray(mask_of(255)).save(root / "masks/fish2.png")  # a fish is white
    with pytest.raises(ValueError, match=r"fish2\.png shows value 255 as RGB \(255, 255, 255\), but .* shows 4 as"):
        load_catalog(FolderDataset(root), "val", None, progress=False)


def test_classes_that_a_palette_has_no_colour_for_are_taken(tmp_path):
    """It is black for them, as for the background: this tells nothing of their numbers."""
    for name, value in (("a", 1), ("b", 2), ("c", 9)):
        picture = Image.fromarray(mask_of(value))
        picture.putpalette([*voc_palette()[:9], *[0] * 30])
        picture.save(tmp_path / f"{name}.png")
    common = common_colours([tmp_path / "a.png", tmp_path / "b.png"])
    refuse_other_palette(tmp_path / "c.png", common)


def test_in_a_voc_tree_too(data_dir, tmp_path):
    shutil.copytree(data_dir / "pascal", tmp_path / "pascal")
    lists = tmp_path / "pascal/ImageSets/Segmentation"
    dataset = PascalDataset(tmp_path / "pascal", str(lists / "train.txt"), str(lists / "val.txt"))
    image_id = dataset.ids("val")[3]
    renumber(dataset.mask_path(image_id))
    with pytest.raises(ValueError, match=rf"{image_id}\.png shows value"):
        load_catalog(dataset, "val", None, num_workers=0, progress=False)


def test_it_is_not_hidden_by_preparing(tmp_path, capsys):
    (tmp_path / "JPEGImages").mkdir()
    for number in range(6):
        Image.new("RGB", (30, 20)).save(tmp_path / f"JPEGImages/2007_{number:06}.jpg")
        write_mask(tmp_path / f"SegmentationClass/2007_{number:06}.png", mask_of(15))
    renumber(tmp_path / "SegmentationClass/2007_000002.png")
    assert prepare_pascal.main(["--root", str(tmp_path), "--workers", "1", "--allow-partial"]) == 1
    assert "2007_000002.png shows value 0 as RGB (192, 128, 128)" in capsys.readouterr().err
    assert not (tmp_path / "SegmentationClassAug/2007_000002.png").exists()
    assert (read_mask(tmp_path / "SegmentationClassAug/2007_000003.png") == mask_of(15)).all()
