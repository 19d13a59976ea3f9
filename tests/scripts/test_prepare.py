from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from scipy.io import savemat

from hdmnet.data.datasets.coco import CocoDataset
from hdmnet.data.datasets.pascal import PascalDataset
from hdmnet.data.io.annotations import category_values, paint_annotations
from hdmnet.data.io.masks import read_mask, write_mask
from scripts.data import prepare_coco, prepare_pascal
from scripts.data.prepare_common import is_complete_png, read_sbd

SIZE = (30, 40)


def one_line(capsys):
    """The only line on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


# ---- COCO ----------------------------------------------------------------------------------------------------------


def random_annotation(rng, number, image):
    annotation = {"id": 1000 - number, "image_id": image, "category_id": int(rng.choice([7, 3, 90])), "iscrowd": 0}
    kind = number % 3
    if kind == 0:
        parts = [np.round(rng.uniform(0, 40, 2 * corners), 2).tolist() for corners in (3, 5)]
        return annotation | {"segmentation": parts}
    code = coco_mask.encode(np.asfortranarray(rng.random(SIZE) < 0.2, dtype=np.uint8))
    if kind == 1:
        return annotation | {"segmentation": {"size": list(SIZE), "counts": code["counts"].decode()}}
    runs = [150, 300, 250, 60, SIZE[0] * SIZE[1] - 760]
    return annotation | {"segmentation": {"size": list(SIZE), "counts": runs}, "iscrowd": 1}


@pytest.fixture
def coco_tree(tmp_path):
    """Two splits of 6 pictures, 0 to 5 annotations each, not in the pictures' order; three categories."""
    rng = np.random.default_rng(0)
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    for folder in ("train2014", "val2014"):
        (root / folder).mkdir()
        images = [
            {"id": i, "file_name": f"COCO_{folder}_{i:012d}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in range(6)
        ]
        for image in images:
            Image.fromarray(np.zeros((*SIZE, 3), dtype=np.uint8)).save(root / folder / image["file_name"])
        owners = rng.permutation([i for i in range(6) for _ in range(i)]).tolist()
        annotations = [random_annotation(rng, number, image) for number, image in enumerate(owners)]
        write_json(root, folder, {"images": images, "annotations": annotations, "categories": CATEGORIES})
    return root


CATEGORIES = [{"id": i, "name": str(i)} for i in (90, 3, 7)]


def json_path(root, folder):
    return root / "annotations" / f"instances_{folder}.json"


def write_json(root, folder, content):
    json_path(root, folder).write_text(json.dumps(content))


def change_json(root, folder, change):
    content = json.loads(json_path(root, folder).read_text())
    change(content)
    write_json(root, folder, content)


def run_coco(root, *more):
    return prepare_coco.main(["--root", str(root), "--workers", "1", *more])


def coco_masks(root):
    return {path.name: read_mask(path) for path in sorted((root / "masks").glob("*/*.png"))}


def reference(root, folder, crowd_value):
    """Masks by pycocotools' own index and decoder; `crowd_value` None = the class."""
    coco = COCO()
    coco.dataset = json.loads(json_path(root, folder).read_text())
    coco.createIndex()
    values = {3: 1, 7: 2, 90: 3}
    masks = {}
    for image, info in coco.imgs.items():
        mask = np.zeros(SIZE, dtype=np.uint8)
        for annotation in coco.imgToAnns[image]:
            crowd = annotation["iscrowd"] and crowd_value is not None
            mask[coco.annToMask(annotation) == 1] = crowd_value if crowd else values[annotation["category_id"]]
        masks[info["file_name"].replace(".jpg", ".png")] = mask
    return masks


@pytest.mark.parametrize(("crowd", "value"), [("ignore", 255), ("zero", 0), ("class", None)])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own, with NumPy 2
def test_coco_masks_equal_pycocotools(coco_tree, capsys, crowd, value):
    assert run_coco(coco_tree, "--crowd", crowd) == 0
    expected = reference(coco_tree, "train2014", value) | reference(coco_tree, "val2014", value)
    painted = coco_masks(coco_tree)
    assert painted.keys() == expected.keys()
    assert {0, 1, 2, 3} <= set(np.unique(list(expected.values())))
    for name, mask in expected.items():
        np.testing.assert_array_equal(painted[name], mask)
    captured = capsys.readouterr()
    assert "train2014: 6 pictures in the JSON, 6 on the disk, 6 masks, 1 without annotations" in captured.out
    assert "has 3 categories, COCO 80" in captured.err
    dataset = CocoDataset(coco_tree)
    dataset.check()
    assert len(dataset.ids("train")) == 6


@pytest.mark.slow
def test_coco_on_two_processes_paints_the_same(coco_tree, monkeypatch):
    assert run_coco(coco_tree) == 0
    expected = coco_masks(coco_tree)
    for path in (coco_tree / "masks").glob("*/*.png"):
        path.unlink()
    monkeypatch.setattr("prepare_common.CHUNK_SIZE", 2)
    assert prepare_coco.main(["--root", str(coco_tree), "--workers", "2"]) == 0
    for name, mask in coco_masks(coco_tree).items():
        np.testing.assert_array_equal(mask, expected[name])


def test_coco_goes_on_where_it_was_stopped(coco_tree):
    assert run_coco(coco_tree) == 0
    folder = coco_tree / "masks/train2014"
    finished, truncated, missing = sorted(folder.glob("*.png"))[:3]
    expected = coco_masks(coco_tree)
    own = np.full(SIZE, 9, dtype=np.uint8)
    write_mask(finished, own)
    truncated.write_bytes(truncated.read_bytes()[:-6])
    missing.unlink()
    assert run_coco(coco_tree) == 0
    np.testing.assert_array_equal(read_mask(finished), own)  # left alone
    for path in (truncated, missing):
        np.testing.assert_array_equal(read_mask(path), expected[path.name])
    assert {path.suffix for path in folder.iterdir()} == {".png"}


def test_coco_refuses_to_mix_crowd_rules_but_takes_masks_of_others(coco_tree, capsys):
    (coco_tree / "masks/train2014").mkdir(parents=True)
    foreign = coco_tree / "masks/train2014/COCO_train2014_000000000005.png"
    Image.fromarray(np.full(SIZE, 80, dtype=np.uint8)).save(foreign)  # grey, as others write it
    assert run_coco(coco_tree) == 0
    assert "holds masks of another program" in capsys.readouterr().err
    assert (read_mask(foreign) == 80).all()
    assert run_coco(coco_tree, "--crowd", "zero") == 1
    assert "'crowd': 'ignore', 'num_classes': 3}, and {'crowd': 'zero'" in capsys.readouterr().err


def test_coco_names_missing_pictures(coco_tree, capsys):
    (coco_tree / "val2014/COCO_val2014_000000000002.jpg").unlink()
    assert run_coco(coco_tree) == 1
    captured = capsys.readouterr()
    assert "val2014: 6 pictures in the JSON, 5 on the disk, 5 masks" in captured.out
    assert "1 of 6 pictures are missing, the first is" in captured.err
    assert "COCO 2014 val images zip from the COCO site" in captured.err
    assert run_coco(coco_tree, "--allow-partial") == 0


def test_coco_of_2017(coco_tree, capsys):
    assert run_coco(coco_tree) == 0
    expected = {name.rpartition("_")[2] + name[5:8]: mask for name, mask in coco_masks(coco_tree).items()}
    shutil.rmtree(coco_tree / "masks")
    for folder in ("train", "val"):
        (coco_tree / f"{folder}2014").rename(coco_tree / f"{folder}2017")
        json_path(coco_tree, f"{folder}2014").rename(json_path(coco_tree, f"{folder}2017"))
        for path in (coco_tree / f"{folder}2017").iterdir():
            path.rename(path.with_name(path.name.rpartition("_")[2]))

        def shorten(content):
            for image in content["images"]:
                image["file_name"] = image["file_name"].rpartition("_")[2]

        change_json(coco_tree, f"{folder}2017", shorten)
    capsys.readouterr()
    assert run_coco(coco_tree) == 1
    assert "train2014 is missing, but train2017 is there: for that add --year 2017" in capsys.readouterr().err
    assert run_coco(coco_tree, "--year", "2017") == 0
    dataset = CocoDataset(coco_tree, year=2017, min_area=1)
    ids = dataset.ids("train") + dataset.ids("val")
    assert len(ids) == len(expected) == 12
    for one in ids:
        folder, _, name = one.partition("/")
        np.testing.assert_array_equal(dataset.read_mask(one), expected[f"{name}.png{folder[:3]}"])


def test_coco_names_pictures_of_another_size(coco_tree, capsys):
    Image.new("RGB", (41, 30)).save(coco_tree / "train2014/COCO_train2014_000000000003.jpg")
    assert run_coco(coco_tree) == 1
    wrong = r"COCO_train2014_000000000003.jpg is 30 x 41 (H x W), but its annotations 30 x 40"
    assert [line for line in capsys.readouterr().err.splitlines() if wrong in line]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("val2014", r"val2014 is missing: it is in the COCO 2014 val images zip"),
        ("annotations", r"instances_train2014.json is missing: it is in the COCO 2014 train/val annotations zip"),
    ],
)
def test_coco_names_missing_folders(coco_tree, capsys, name, message):
    (coco_tree / name).rename(coco_tree / "away")
    assert run_coco(coco_tree) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be used"),
        ("[]", "is no COCO instances file"),
        ('{"images": [], "annotations": []}', "not found in it: 'categories'"),
    ],
)
def test_coco_refuses_a_damaged_json_in_one_line(coco_tree, capsys, content, message):
    json_path(coco_tree, "train2014").write_text(content)
    assert run_coco(coco_tree) == 1
    assert message in one_line(capsys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"][1].update(id=c["images"][0]["id"]), "have the same id 0, expected one each"),
        (lambda c: c["images"][1].update(file_name=c["images"][0]["file_name"]), "more than once"),
        (lambda c: c["categories"].append({"id": 7, "name": "other"}), "'7' and 'other' have the same id 7"),
    ],
)
def test_coco_refuses_doubled_ids_in_one_line(coco_tree, capsys, change, message):
    change_json(coco_tree, "train2014", change)
    assert run_coco(coco_tree) == 1
    assert message in one_line(capsys)
    assert not list((coco_tree / "masks").glob("*/*.png"))


def test_coco_counts_crowds_and_what_is_left_out(coco_tree, capsys):
    def change(content):
        for number, annotation in enumerate(content["annotations"]):
            annotation["iscrowd"] = int(number < 3 and not isinstance(annotation["segmentation"], list))
        content["annotations"][3].update(segmentation=[], iscrowd=0)
        change.crowds = sum(annotation["iscrowd"] for annotation in content["annotations"])

    change_json(coco_tree, "val2014", change)
    (coco_tree / "val2014/other.jpg").touch()
    assert run_coco(coco_tree, "--crowd", "zero") == 0
    out = capsys.readouterr().out
    crowds = f"val2014: {change.crowds} annotations are marked as crowds (iscrowd 1) and drawn by --crowd zero"
    assert (crowds in out) == (change.crowds > 0)
    assert "val2014: 1 annotations have no segmentation and are not drawn" in out
    assert "val2014: 1 files in val2014 are not named by the JSON and left out" in out


def test_pictures_that_are_not_painted_are_told_by_the_data_set(coco_tree):
    assert run_coco(coco_tree) == 0
    dataset = CocoDataset(coco_tree)
    assert dataset.left_out() == []
    lost = sorted((coco_tree / "masks/val2014").glob("*.png"))[2]
    lost.unlink()
    (told,) = dataset.left_out()
    assert told.names == (f"val2014/{lost.stem}",)
    assert told.what.startswith("no mask, left out")


def test_coco_refuses_file_names_that_lead_elsewhere(coco_tree, capsys):
    change_json(coco_tree, "train2014", lambda content: content["images"][0].update(file_name="../../x.jpg"))
    assert run_coco(coco_tree) == 1
    assert "file_name '../../x.jpg' holds a folder" in one_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--crowd", "maybe"], "invalid choice: 'maybe'"),
        (["--workers", "0"], "--workers is 0, expected at least 1"),
        (["--zips", "no.zip"], "archive no.zip is missing"),
        ([], "is no folder"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, capsys, arguments, message):
    assert prepare_coco.main(["--root", str(tmp_path / "no"), *arguments]) == 1
    assert message in one_line(capsys)


def test_coco_unpacks_zips(coco_tree, tmp_path):
    archive = tmp_path / "all.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in coco_tree.rglob("*.*"):
            file.write(path, path.relative_to(coco_tree))
        file.writestr("other/readme.txt", "left out")
    assert run_coco(tmp_path / "new", "--zips", str(archive)) == 0
    assert len(coco_masks(tmp_path / "new")) == 12
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "annotations",
        "masks",
        "train2014",
        "val2014",
    ]
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("../train2014/COCO_evil.jpg", "x")
    assert run_coco(tmp_path / "new", "--zips", str(archive)) == 1
    assert not (tmp_path / "train2014").exists()


# ---- PASCAL --------------------------------------------------------------------------------------------------------

VOC = ["2007_000032", "2007_000033"]  # train, val
BOTH = "2007_000032"
SBD = ["2008_000008", "2008_000015"]


def jpeg_bytes(size):
    buffer = io.BytesIO()
    Image.new("RGB", size[::-1]).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def voc_tar(tmp_path):
    mask = np.full(SIZE, 1, dtype=np.uint8)
    mask[0] = 255
    write_mask(tmp_path / "voc.png", mask)
    files = {f"JPEGImages/{i}.jpg": jpeg_bytes(SIZE) for i in VOC + SBD}
    files |= {f"SegmentationClass/{i}.png": (tmp_path / "voc.png").read_bytes() for i in VOC}
    files |= {
        "ImageSets/Segmentation/train.txt": b"2007_000032\n",
        "ImageSets/Main/x.txt": b"",
        "Annotations/a.xml": b"",
    }
    return write_tar(tmp_path / "voc.tar", {f"VOCdevkit/VOC2012/{name}": content for name, content in files.items()})


def write_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def sbd(tmp_path):
    """SBD's folder: value 5 in two pictures of its own and in one that VOC has too."""
    folder = tmp_path / "benchmark_RELEASE/dataset/cls"
    folder.mkdir(parents=True)
    for image_id in [*SBD, BOTH]:
        savemat(folder / f"{image_id}.mat", {"GTcls": {"Segmentation": np.full(SIZE, 5, dtype=np.uint8)}})
    return folder


def run_pascal(root, *more):
    return prepare_pascal.main(["--root", str(root), "--workers", "1", *map(str, more)])


@pytest.mark.parametrize("form", ["cls", "dataset", "top", "tgz"])
def test_pascal_masks_from_archives(tmp_path, voc_tar, sbd, capsys, form):
    source = {"cls": sbd, "dataset": sbd.parent, "top": tmp_path}.get(form, tmp_path / "benchmark.tgz")
    if form == "tgz":
        contents = {f"benchmark_RELEASE/dataset/cls/{path.name}": path.read_bytes() for path in sbd.iterdir()}
        write_tar(source, contents | {"benchmark_RELEASE/dataset/inst/x.mat": b"left out"}, "w:gz")
    root = tmp_path / "pascal"
    assert run_pascal(root, "--voc-tar", voc_tar, "--sbd", source, "--allow-partial") == 0
    masks = {path.stem: path for path in (root / "SegmentationClassAug").iterdir()}
    assert sorted(masks) == sorted(VOC + SBD)
    expected = np.full(SIZE, 1, dtype=np.uint8)
    expected[0] = 255
    for image_id in VOC:
        np.testing.assert_array_equal(read_mask(masks[image_id]), expected)  # VOC's own wins
    for image_id in SBD:
        np.testing.assert_array_equal(read_mask(masks[image_id]), np.full(SIZE, 5))
        with Image.open(masks[image_id]) as mask:
            assert mask.mode == "P"
    assert sorted(path.name for path in root.iterdir()) == [
        *("ImageSets", "JPEGImages", "SegmentationClass", "SegmentationClassAug")
    ]
    captured = capsys.readouterr()
    assert "masks: 4 found, 12,031 expected; of the 5,953 training ids 3, of the 1,449 validation ids 1" in captured.out
    assert PascalDataset(root, "trainaug").ids("train") == [BOTH, *SBD]


def test_pascal_reduced_tree_must_be_allowed(tmp_path, voc_tar, capsys):
    assert run_pascal(tmp_path / "pascal", "--voc-tar", voc_tar) == 1
    error = capsys.readouterr().err
    assert "12,029 of 12,031 masks are missing: they come from the PASCAL VOC 2012 train/val tar" in error
    assert "for a reduced tree pass --allow-partial" in error


def test_pascal_goes_on_where_it_was_stopped(tmp_path, voc_tar, sbd):
    root = tmp_path / "pascal"
    arguments = ("--voc-tar", voc_tar, "--sbd", sbd, "--allow-partial")
    assert run_pascal(root, *arguments) == 0
    finished, truncated = (root / "SegmentationClassAug" / f"{image_id}.png" for image_id in SBD)
    write_mask(finished, np.full(SIZE, 9, dtype=np.uint8))
    truncated.write_bytes(truncated.read_bytes()[:40])
    picture = root / "JPEGImages" / f"{BOTH}.jpg"
    picture.write_bytes(picture.read_bytes()[:40])
    assert run_pascal(root, *arguments) == 0
    assert (read_mask(finished) == 9).all()
    assert (read_mask(truncated) == 5).all()
    assert picture.read_bytes() == jpeg_bytes(SIZE)


def test_pascal_refuses_archives_that_lead_outside_or_are_cut(tmp_path, voc_tar, capsys):
    evil = write_tar(tmp_path / "evil.tar", {"../../JPEGImages/x.jpg": b"x"})
    assert run_pascal(tmp_path / "a/pascal", "--voc-tar", evil) == 1
    assert "evil.tar is refused" in capsys.readouterr().err
    cut = tmp_path / "cut.tar"
    cut.write_bytes(voc_tar.read_bytes()[:1000])
    assert run_pascal(tmp_path / "pascal", "--voc-tar", cut) == 1
    assert "cut.tar is damaged or cut short" in capsys.readouterr().err
    assert not list(tmp_path.rglob("x.jpg"))
    assert not list(tmp_path.rglob("*.tmp"))
    other = write_tar(tmp_path / "other.tar", {"a.txt": b"x"})
    assert run_pascal(tmp_path / "pascal", "--voc-tar", other) == 1
    assert "holds none of the files expected" in capsys.readouterr().err


def test_pascal_names_what_is_missing(tmp_path, voc_tar, sbd, capsys):
    assert run_pascal(tmp_path / "no") == 1
    assert "JPEGImages is missing: it is in the PASCAL VOC 2012 train/val tar" in one_line(capsys)
    with tarfile.open(voc_tar) as tar:
        tar.extractall(tmp_path / "raw", filter="data")
    assert run_pascal(tmp_path / "raw") == 1
    assert f"pass --root {tmp_path / 'raw/VOCdevkit/VOC2012'}" in one_line(capsys)
    root = tmp_path / "raw/VOCdevkit/VOC2012"
    assert run_pascal(root, "--sbd", tmp_path / "no.tgz") == 1
    assert "no.tgz is missing" in one_line(capsys)
    assert run_pascal(root, "--sbd", root) == 1
    assert "holds no cls/*.mat: it should be the Semantic Boundaries Dataset" in one_line(capsys)
    (root / "JPEGImages" / f"{SBD[0]}.jpg").write_bytes(jpeg_bytes((9, 9)))
    (root / "JPEGImages" / f"{SBD[1]}.jpg").unlink()
    assert run_pascal(root, "--sbd", sbd, "--allow-partial") == 1
    error = capsys.readouterr().err
    assert "1 masks have no picture" in error
    assert f"{SBD[0]}.jpg is 9 x 9 (H x W), but its mask {sbd / SBD[0]}.mat 30 x 40" in error


# ---- what both take ------------------------------------------------------------------------------------------------


def test_only_a_whole_png_is_complete(tmp_path):
    path = tmp_path / "m.png"
    assert not is_complete_png(path)
    write_mask(path, np.eye(4, dtype=np.uint8))
    assert is_complete_png(path)
    content = path.read_bytes()
    for kept in (0, 5, len(content) - 1):
        path.write_bytes(content[:kept])
        assert not is_complete_png(path)


def test_classes_are_positions_in_ascending_category_id():
    assert category_values([{"id": 90}, {"id": 3}, {"id": 13}]) == {3: 1, 13: 2, 90: 3}
    with pytest.raises(ValueError, match="found 0 categories"):
        category_values([])
    with pytest.raises(ValueError, match="found 255 categories, expected 1 to 254"):
        category_values([{"id": i} for i in range(255)])


def square(left, top, side, **more):
    corners = [left, top, left + side, top, left + side, top + side, left, top + side]
    return {"segmentation": [corners], "category_id": 3, "iscrowd": 0, "id": 1} | more


def test_later_annotations_cover_earlier_ones_whatever_their_ids():
    painted = paint_annotations([square(0, 0, 4, id=9), square(2, 2, 4, id=1, category_id=5)], (8, 8), {3: 1, 5: 2})
    expected = np.zeros((8, 8), dtype=np.uint8)
    expected[:4, :4] = 1
    expected[2:6, 2:6] = 2
    np.testing.assert_array_equal(painted, expected)
    assert painted.dtype == np.uint8


@pytest.mark.parametrize(("crowd", "value"), [("ignore", 255), ("zero", 0), ("class", 2)])
def test_crowd_regions_take_their_turn_with_the_value_asked_for(crowd, value):
    region = {"size": [4, 4], "counts": [8, 8]}  # the right half
    annotations = [
        square(0, 0, 4),
        {"segmentation": region, "category_id": 5, "iscrowd": 1, "id": 2},
        square(3, 0, 1, id=3),
    ]
    painted = paint_annotations(annotations, (4, 4), {3: 1, 5: 2}, crowd)
    expected = np.array([[1, 1, value, value]] * 4)
    expected[0, 3] = 1
    np.testing.assert_array_equal(painted, expected)


@pytest.mark.parametrize("empty", [[], None, [[0, 0, 3, 3]], {"size": [4, 4], "counts": ""}])
def test_an_annotation_without_parts_paints_nothing(empty):
    """Nor does one of two points, which pycocotools takes for a box."""
    assert not paint_annotations([square(0, 0, 4, segmentation=empty)], (4, 4), {3: 1}).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": 4}, "annotation 1 has category 4, not among the file's 1 categories"),
        ({"segmentation": [[1, 2]]}, "annotation 1 cannot be decoded: a polygon is no list of x, y pairs"),
        ({"segmentation": 5}, "neither polygons nor a run-length code"),
        ({"segmentation": {"size": [4, 5], "counts": [20]}}, r"size \[4, 5\], its picture \[4, 4\]"),
        ({"segmentation": {"size": [4, 4], "counts": [20]}}, "add up to 20, expected 16"),
    ],
)
def test_malformed_annotations_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        paint_annotations([square(0, 0, 2, **change)], (4, 4), {3: 1})


def test_sbd_is_read_from_paths_and_streams(tmp_path):
    expected = np.array([[0, 1, 20]], dtype=np.uint8)
    savemat(tmp_path / "a.mat", {"GTcls": {"Segmentation": expected, "Boundaries": np.zeros((20, 1))}})
    np.testing.assert_array_equal(read_sbd(tmp_path / "a.mat", "a"), expected)
    np.testing.assert_array_equal(read_sbd(io.BytesIO((tmp_path / "a.mat").read_bytes()), "a"), expected)


def test_bad_sbd_is_named(tmp_path):
    savemat(tmp_path / "a.mat", {"GTinst": {"Segmentation": np.zeros((2, 2))}})
    with pytest.raises(ValueError, match=r"A holds no readable GTcls\.Segmentation"):
        read_sbd(tmp_path / "a.mat", "A")
    savemat(tmp_path / "a.mat", {"GTcls": {"Segmentation": np.full((2, 2), 21, dtype=np.uint8)}})
    with pytest.raises(ValueError, match=r"A: GTcls\.Segmentation .* values 21\.\.21, expected .* 0\.\.20: unpack"):
        read_sbd(tmp_path / "a.mat", "A")
    (tmp_path / "a.mat").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"A holds no readable GTcls\.Segmentation"):
        read_sbd(tmp_path / "a.mat", "A")
