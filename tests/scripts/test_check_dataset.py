from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from hdmnet.data.io.masks import write_mask
from scripts.data import check_dataset
from tests.helpers.folder_trees import WRITERS, shapes_content, write


@pytest.fixture(scope="module")
def content():
    return shapes_content(num_pictures=12, one_class=True, side=48)


@pytest.fixture
def checked(content, tmp_path, capsys):
    """`checked("index", damage, *words)` writes a folder, damages it and gives exit code, stdout and stderr."""

    def check(layout, damage=lambda root: None, *words):
        root = tmp_path / "data"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        write(layout, root, content)
        damage(root)
        code = check_dataset.main([f"dataset.root={root}", f"paths.output_dir={tmp_path / 'out'}", *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return check


def lines(out, start):
    return [line.removeprefix(f"{start}: ") for line in out.splitlines() if line.startswith(f"{start}: ")]


@pytest.mark.long
@pytest.mark.parametrize("layout", WRITERS)
def test_a_whole_folder_is_found_right_with_a_bar(checked, content, layout):
    code, out, err = checked(layout)
    assert code == 0
    assert out.startswith(f"folder, layout {layout}: 12 images (12 train, 12 val), 4 classes, 0 images without any\n")
    assert out.endswith("\nnothing wrong\n")
    (sheet,) = lines(out, "contact sheet, to see whether names and masks fit")
    assert sheet.endswith("out/check_dataset/folder/contact_sheet.png")
    with Image.open(sheet) as picture:
        assert picture.size == (3 * 482 + 14, 2 * 148 + 14)
    for value, name in enumerate(content[1], start=1):
        count = sum((entry.mask == value).any() for entry in content[0].values())
        assert f"{name:<14}  novel       {count:>6}" in out
    assert "12/12" in err


def test_every_wrong_file_is_named(checked, content):
    first, second, third, *_ = content[0]

    def damage(root):
        (root / f"images/{first}.jpg").write_bytes(b"no picture")
        write_mask(root / f"masks/{second}.png", np.full((48, 48), 9, dtype=np.uint8))
        write_mask(root / f"masks/{third}.png", np.zeros((8, 8), dtype=np.uint8))
        write_mask(root / "masks/lost.png", np.zeros((8, 8), dtype=np.uint8))
        Image.new("RGB", (9, 9)).save(root / "images/new.png")

    code, out, _ = checked("index", damage)
    found = lines(out, "wrong")
    assert (code, len(found)) == (1, 4)
    for part in (f"{first}.jpg cannot be read", f"{second}.png holds class index 9", f"{third}.png is 8x8 (HxW) but"):
        assert sum(part in line for line in found) == 1
    assert any(line.endswith("masks/lost.png has no picture") for line in found)
    assert [line.endswith("new.png: no mask, left out") for line in lines(out, "note")] == [True]
    assert out.endswith("\n4 wrong\n")


def test_counts_are_those_of_the_fold_and_too_few_are_wrong(checked, content):
    names = content[1]
    code, out, _ = checked("fss", lambda root: None, "dataset.num_folds=2", "fold=1", "shot=2", "dataset.min_area=60")
    counts = [sum(int((entry.mask == value).sum() >= 60) for entry in content[0].values()) for value in range(1, 5)]
    for value, (name, count) in enumerate(zip(names, counts, strict=True), start=1):
        line = next(line for line in out.splitlines() if line.startswith(name))
        assert line.split()[2:4] == ["base" if value < 3 else "novel", str(count)]
        assert ("too few: shot=2 needs 3" in line) == (count < 3)
    few = [f"{name} ({count})" for name, count in zip(names, counts, strict=True) if count < 3]
    assert few
    assert [word for line in lines(out, "wrong") for word in few if word in line] == few
    assert code == 1


def test_a_fold_that_cannot_be_trained_or_tested_is_wrong(checked, content):
    code, out, _ = checked("fss", lambda root: None, "dataset.num_folds=2", "shot=11")
    (train, val) = lines(out, "wrong")
    assert train.startswith("none of the 2 classes of folder fold 0 train has the 12 images that shot=11 needs")
    assert val.startswith("none of the 2 classes of folder fold 0 val has")
    assert (code, out.splitlines()[-1]) == (1, "2 wrong")


def test_where_every_picture_holds_every_class_the_way_out_is_said(tmp_path, capsys):
    mask = np.repeat(np.arange(1, 5, dtype=np.uint8), 12)[None].repeat(48, axis=0)
    for number in range(6):
        write_mask(tmp_path / f"data/masks/{number}.png", mask)
        (tmp_path / "data/images").mkdir(exist_ok=True)
        Image.new("RGB", (48, 48)).save(tmp_path / f"data/images/{number}.jpg")
    (tmp_path / "data/classes.txt").write_text("sky\nroad\ncar\ntree\n")
    (tmp_path / "data/val.txt").write_text("0\n1\n2\n")
    words = [f"dataset.root={tmp_path / 'data'}", f"paths.output_dir={tmp_path}", "dataset.num_folds=2"]
    words.append("dataset.val_list=val.txt")
    assert check_dataset.main(words) == 1
    out = capsys.readouterr().out
    assert lines(out, "wrong") == [
        "all 3 training images of folder fold 0 hold a novel class (sky, road), and dataset.filter_novel=true leaves "
        "such images out: set dataset.novel_pixels=ignore to train on them, the novel pixels ignored"
    ]
    assert [line.split()[1:3] for line in out.splitlines() if line.startswith(("car", "tree"))] == [["base", "0"]] * 2
    assert check_dataset.main([*words, "dataset.novel_pixels=ignore"]) == 0
    assert capsys.readouterr().out.endswith("nothing wrong\n")


def test_a_sheet_that_cannot_be_written_is_said(checked, tmp_path):
    (tmp_path / "out").write_text("a file where the folder would be")
    code, out, _ = checked("index")
    assert (code, len(lines(out, "no contact sheet"))) == (0, 1)


def test_masks_of_0_and_255_as_indices_are_found_out(checked, content):
    def damage(root):
        for name, entry in content[0].items():
            write_mask(root / f"masks/{name}.png", (entry.mask > 0) * np.uint8(255))

    code, out, _ = checked("index", damage)
    assert code == 1
    assert "holds any class: 255 is ignored, so put masks of 0 and 255 as masks/CLASS/NAME.png" in out


def test_turned_pictures_whose_masks_cannot_be_told_are_noted(checked, content):
    name = next(iter(content[0]))

    def damage(root):
        exif = Image.Exif()
        exif[0x0112] = 6
        with Image.open(root / f"images/{name}.jpg") as picture:  # square
            picture.save(root / f"images/{name}.jpg", exif=exif)

    code, out, _ = checked("binary", damage)
    assert (code, lines(out, "note")) == (
        0,
        [f"{name}: turned by EXIF, the masks are taken as drawn on the upright pictures"],
    )


def test_empty_masks_are_noted(checked, content):
    name = next(iter(content[0]))

    def damage(root):
        write_mask(root / f"{name}.png", np.zeros((48, 48), dtype=np.uint8))

    code, out, _ = checked("fss", damage)
    assert (code, lines(out, "note")) == (0, [f"{name}: nothing is marked in the mask"])
    assert "4 classes, 1 images without any" in out


def test_what_vanishes_at_the_networks_size_is_counted(checked, content):
    owners = [name.split("/")[0] for name in content[0]]
    often = max(content[1], key=owners.count)
    first = next(name for name in content[0] if name.startswith(often))

    def damage(root):
        mask = np.zeros((48, 48), dtype=np.uint8)
        mask[1, 1] = content[1].index(often) + 1
        write_mask(root / f"masks/{first}.png", mask)

    code, out, _ = checked("index", damage, "dataset.image_size=24")
    begin = "objects (a class in an image) of folder fold 0 val that vanish at the network's 24x24: 1, of "
    (note,) = lines(out, "note")
    assert note.startswith(f"{begin}{often} (1); they are never supports")
    assert "   1 vanish" in next(row for row in out.splitlines() if row.startswith(often))
    assert code == 0
    code, out, _ = checked("index", damage, "dataset.image_size=48")
    assert lines(out, "note") == []


def test_links_and_what_is_left_out_are_noted(checked, tmp_path):
    def damage(root):
        (root / "images/again").symlink_to(root / "images")
        (root / "images/site").symlink_to(root / "not mounted")
        (root / "images/raw.nef").touch()

    code, out, _ = checked("binary", damage)
    images = tmp_path / "data/images"
    assert (code, lines(out, "wrong")) == (1, [f"link {images}/site leads nowhere"])
    assert lines(out, "note") == [
        f"{images}/raw.nef: no picture by its name, left out",
        f"{images}/again leads to {images}, which is read already: not followed",
    ]


def test_doubled_ids_are_one_line(checked):
    def damage(root):
        content = json.loads((root / "annotations.json").read_text())
        content["images"][0]["id"] = content["images"][1]["id"]
        (root / "annotations.json").write_text(json.dumps(content))

    code, _, err = checked("coco", damage)
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "have the same id" in err


def test_crowds_are_counted(checked):
    def damage(root):
        content = json.loads((root / "annotations.json").read_text())
        content["annotations"][0]["iscrowd"] = 1
        (root / "annotations.json").write_text(json.dumps(content))

    code, out, _ = checked("coco", damage)
    (note,) = lines(out, "note")
    assert code == 0
    assert "annotation marked as a crowd (iscrowd 1), ignored (255), 1 in all; if they are objects" in note
    code, out, _ = checked("coco", damage, "dataset.crowd=class")
    assert "0 images without any" in out


def test_what_a_json_names_and_is_not_there(checked):
    def damage(root):
        next((root / "images").rglob("*.jpg")).unlink()
        content = json.loads((root / "annotations.json").read_text())
        content["annotations"][0]["category_id"] = 77
        (root / "annotations.json").write_text(json.dumps(content))

    code, out, _ = checked("coco", damage)
    found = lines(out, "wrong")
    assert (code, len(found)) == (1, 2)
    assert "is missing: restore it" in found[0]
    assert found[1].endswith("no such image or category in the file")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["dataset.root=none/such"], "folder none/such is missing: set dataset.root"),
        (["dataset.rot=x"], "rot"),
        (["dataset.min_area=-1"], "dataset.min_area=-1: expected null or an integer of at least 0"),
    ],
)
def test_refuses_in_one_line(capsys, words, reason):
    assert check_dataset.main(words) == 1
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1
    assert err[0].startswith("check_dataset: ")
    assert reason in err[0]


def test_other_data_sets_too(data_dir, tmp_path, capsys):
    lists = data_dir / "pascal/ImageSets/Segmentation"
    words = [f"dataset.{split}_list={lists}/{split}.txt" for split in ("train", "val")]
    words += [f"paths.data_dir={data_dir}", f"paths.output_dir={tmp_path}", "dataset.min_area=128"]
    assert check_dataset.main(["dataset=pascal", *words]) == 0
    out = capsys.readouterr().out
    assert out.startswith("pascal: ")
    assert "aeroplane" in out
