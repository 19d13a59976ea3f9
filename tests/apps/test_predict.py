"""The predict command: pictures of all kinds in, masks of their own size out, one line for each that is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hdmnet import Segmenter
from hdmnet.apps.predict import find_queries
from hdmnet.apps.supports import parse_supports
from tests.helpers import commands
from tests.helpers.official_files import write_official

GENERATOR = np.random.default_rng(0)


def picture(height, width):
    coarse = Image.fromarray(GENERATOR.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def pixels(path):
    with Image.open(path) as opened:
        return np.asarray(opened)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A support with its masks, and queries of many kinds."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "queries").mkdir()
    mask = np.zeros((60, 80), np.uint8)
    mask[10:50, 20:60] = 255
    for name in "ab":
        picture(60, 80).save(root / f"{name}.png")
        Image.fromarray(mask).save(root / f"{name}_mask.png")
    Image.fromarray(mask.repeat(2, 0).repeat(2, 1)).save(root / "large_mask.png")
    Image.fromarray(mask * 0).save(root / "empty_mask.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(40, 60).save(root / "queries" / "turned.jpg", exif=exif)
    picture(200, 900).save(root / "queries" / "wide.png")
    picture(97, 97).convert("L").save(root / "queries" / "grey.png")
    picture(50, 70).convert("RGBA").save(root / "queries" / "rgba.png")
    picture(2000, 3000).save(root / "queries" / "large.jpg")
    (root / "queries" / "text.jpg").write_text("no picture")
    (root / "queries" / "notes.txt").write_text("no query")
    return root


SIZES = {"turned": (60, 40), "wide": (200, 900), "grey": (97, 97), "rgba": (50, 70), "large": (2000, 3000)}


def predict(tmp_path, start, *words):
    return commands.call("predict", tmp_path, f"ckpt={start}", "device=cpu", f"output={tmp_path / 'out'}", *words)


def test_what_a_folder_of_queries_holds(tmp_path, caplog):
    """Every kind of picture, by its name in any capitals; what is none is told, hidden files apart."""
    names = ("a.JPG", "b.jfif", "c.jpe", "d.avif", "e.gif", "f.jp2", "g.ppm", "h.mpo", "j.HEIC")
    for name in (*names, "notes.txt", ".hidden.jpg", "raw.NEF"):
        (tmp_path / name).touch()
    (tmp_path / "sub.png").mkdir()
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "not there")
    (tmp_path / "linked").symlink_to(tmp_path)
    assert find_queries(str(tmp_path)) == [tmp_path / name for name in names]
    left_out = ", ".join(f"{tmp_path}/{name}" for name in ("gone.jpg", "linked", "notes.txt", "raw.NEF", "sub.png"))
    assert caplog.messages == [f"query: {left_out}: no picture by its name, left out"]
    assert find_queries(f"{tmp_path}/linked") == [tmp_path / "linked" / name for name in names]


@pytest.mark.long
def test_queries_of_all_kinds_and_one_line_for_those_that_are_none(folder, start, tmp_path):
    words = (f"support=[{folder}/a.png:{folder}/a_mask.png]", f"query=[{folder}/queries,{folder}/gone.png]")
    answer = predict(tmp_path, start, *words)
    assert answer.code == 1
    lines = [line for line in answer.err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert len(lines) == 3, answer.err
    assert "text.jpg cannot be read" in lines[0]
    assert "gone.png not found" in lines[1]
    assert "2 of 7 queries could not be segmented" in lines[2]
    assert "predict: " in answer.err
    assert f"query: {folder}/queries/notes.txt: no picture by its name, left out" in answer.out
    found = {path.name for path in (tmp_path / "out").iterdir() if path.is_file()}
    kinds = ("mask.png", "probability.png", "overlay.jpg")
    assert found == {"review.csv", "review.png"} | {f"{name}_{kind}" for name in SIZES for kind in kinds}
    segmenter = Segmenter.from_checkpoint(start, device="cpu").fit(folder / "a.png", folder / "a_mask.png")
    for name, size in SIZES.items():
        mask, probability, overlay = (pixels(tmp_path / "out" / f"{name}_{kind}") for kind in kinds)
        assert mask.shape == probability.shape == overlay.shape[:2] == size
        assert set(np.unique(mask)) <= {0, 255}
        expected = segmenter.predict(next((folder / "queries").glob(f"{name}.*")))
        assert (mask == expected.mask * 255).all()
        assert probability.dtype == np.uint16
        np.testing.assert_allclose(probability / 65535, expected.probability, atol=1e-5)


@pytest.mark.long
def test_several_classes_boxes_and_maps(folder, start, tmp_path):
    support = f"support={{cat:[{folder}/a.png:10,20,50,60,{folder}/b.png:{folder}/large_mask.png],"
    support += f"big dog:[{folder}/b.png:{folder}/b_mask.png]}}"
    answer = predict(tmp_path, start, support, f"query={folder}/queries/gre*.png", "maps=true")
    assert answer.code == 0, answer.err
    supports = {
        "cat": ([folder / "a.png", folder / "b.png"], [(10, 20, 50, 60), folder / "large_mask.png"]),
        "big dog": (folder / "b.png", folder / "b_mask.png"),
    }
    expected = Segmenter.from_checkpoint(start, device="cpu").fit(supports).predict(folder / "queries" / "grey.png")
    with Image.open(tmp_path / "out" / "grey_mask.png") as mask:
        assert mask.mode == "P"
        assert (np.asarray(mask) == expected.mask).all()
    for name in ("cat", "big_dog"):
        for kind in ("prior_1", "prior_2", "correlation_1", "correlation_2", "correlation_3"):
            assert pixels(tmp_path / "out" / f"grey_{kind}_{name}.png").shape == (97, 97, 3)
        assert pixels(tmp_path / "out" / f"grey_probability_{name}.png").shape == (97, 97)


@pytest.mark.long
def test_supports_are_kept_and_used_again(folder, start, tmp_path):
    query, kept = f"query={folder}/queries/rgba.png", tmp_path / "kept.pt"
    first = predict(tmp_path / "a", start, f"support={folder}/a.png:{folder}/a_mask.png", query, f"save={kept}")
    second = predict(tmp_path / "b", kept, query)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    masks = [pixels(tmp_path / name / "out" / "rgba_mask.png") for name in "ab"]
    assert (masks[0] == masks[1]).all()


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["support=[a.png:empty_mask.png]"], "empty_mask.png is empty: expected the object marked in it"),
        (["support=[a.png:a_mask.png]", "query=null"], "query is not given; expected query=[IMG_OR_FOLDER,…]"),
        (["support=[a.png]"], "support has 'a.png': expected IMG:MASK or IMG:x0,y0,x1,y1"),
        (["support=[a.png:1,2,3]"], "expected four numbers for a box"),
        (["support=[a.png:90,10,95,20]"], "box 90,10,95,20 holds no pixel of a picture of 60x80 (HxW)"),
        (["support=[a.png:queries/wide.png]"], "queries/wide.png"),
        ([], "support is not given and ckpt="),
        (["ckpt=null"], "support is not given; expected support=[IMG:MASK,…]"),
        (
            ["support=[a.png:a_mask.png]", "ckpt=null", "official.dataset=coco"],
            "official.… says what the file of a release is, and ckpt is not given; expected ckpt=FILE",
        ),
        (
            ["support=[a.png:a_mask.png]", "ckpt=null", "backbone=resnet18"],
            "backbone=resnet18 without model: the packaged segmenter has a trunk of its own",
        ),
        (["support=[a.png:a_mask.png]", "ckpt=none.ckpt"], "checkpoint 'none.ckpt' not found"),
    ],
)
def test_refusals(folder, start, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(folder)
    answer = commands.call(
        "predict", tmp_path, f"ckpt={start}", "device=cpu", "query=a.png", f"output={tmp_path / 'out'}", *words
    )
    assert message in answer.refusal()
    assert answer.code == 1


@pytest.mark.long
def test_names_with_colons_and_all_that_hydra_knows(folder, start, tmp_path):
    for name in ("m:1", "x=y", "käfer 飛行機", "a[1]"):
        for kind in ("", "_mask"):
            shutil.copy(folder / f"a{kind}.png", tmp_path / f"{name}{kind}.png")
    support = f"support=[{tmp_path}/m:1.png:{tmp_path}/m:1_mask.png,{tmp_path}/x=y.png:{tmp_path}/x=y_mask.png]"
    query = f"query=[{tmp_path}/m:1.png,{tmp_path}/x=y.png,{tmp_path}/käfer 飛行機.png,{tmp_path}/a[1].png]"
    answer = predict(tmp_path, start, support, query)
    assert answer.code == 0, answer.err
    masks = [pixels(tmp_path / "out" / f"{name}_mask.png") for name in ("m:1", "x=y", "käfer 飛行機", "a[1]")]
    assert all((mask == masks[0]).all() for mask in masks)


def test_a_folder_s_other_content_is_no_query(tmp_path):
    for name in ("b.png", "a.JPG", "c.txt", ".hidden.png"):
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    assert find_queries(str(tmp_path)) == [tmp_path / "a.JPG", tmp_path / "b.png"]


def test_words_of_the_command_line(tmp_path):
    assert parse_supports(["a:b.jpg:m.png", "c.jpg:1", 2, 3.5, 4, "d.jpg: -1,2e1,30,40"]) == {
        "object": [
            (Path("a:b.jpg"), Path("m.png")),
            (Path("c.jpg"), (1.0, 2.0, 3.5, 4.0)),
            (Path("d.jpg"), (-1.0, 20.0, 30.0, 40.0)),
        ]
    }
    assert parse_supports(None) is None
    with pytest.raises(ValueError, match="support has no picture of dog"):
        parse_supports({"dog": []})
    for twice in ([["dog", "a.png:b.png"], ["dog", "c.png:d.png"]], {1: ["a.png:b.png"], "1": ["c.png:d.png"]}):
        with pytest.raises(
            ValueError, match=r"^support names class '(dog|1)' twice; expected all of its pictures in one"
        ):
            parse_supports(twice)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no picture"):
        find_queries([str(tmp_path / "empty")])


@pytest.mark.long
def test_queries_of_one_name_do_not_replace_each_other(folder, start, tmp_path):
    query = f"query=[{folder}/a.png,{folder}/queries/grey.png,{folder}/a.png]"
    assert predict(tmp_path, start, f"support=[{folder}/a.png:{folder}/a_mask.png]", query).code == 0
    assert (pixels(tmp_path / "out" / "a_mask.png") == pixels(tmp_path / "out" / "a_2_mask.png")).all()


@pytest.mark.long
def test_classes_whose_names_are_alike_as_files_do_not_replace_each_other(folder, start, tmp_path):
    support = f"support={{a b:[{folder}/a.png:{folder}/a_mask.png],a_b:[{folder}/b.png:1,2,30,40]}}"
    assert predict(tmp_path, start, support, f"query={folder}/queries/grey.png").code == 0
    found = [pixels(tmp_path / "out" / f"grey_probability_{name}.png") for name in ("a_b", "a_b_2")]
    assert (found[0] != found[1]).any()


def test_what_is_read_is_never_replaced(folder, start, tmp_path):
    for name in ("a.png", "a_mask.png"):
        shutil.copy(folder / name, tmp_path / name)
    before = (tmp_path / "a_mask.png").read_bytes()
    words = (f"support=[{tmp_path}/a.png:{tmp_path}/a_mask.png]", f"query={tmp_path}/a.png", f"output={tmp_path}")
    refusal = predict(tmp_path, start, *words).refusal()
    assert "holds a_mask.png, which is read and might be replaced: choose another folder" in refusal
    assert (tmp_path / "a_mask.png").read_bytes() == before


@pytest.mark.long
def test_all_formats_at_once(folder, start, tmp_path):
    support = f"support={{cat:[{folder}/a.png:{folder}/a_mask.png],dog:[{folder}/b.png:{folder}/b_mask.png]}}"
    words = (support, f"query={folder}/queries", "formats=[png,coco,labelme,yolo,voc]")
    answer = predict(tmp_path, start, *words)
    assert answer.code == 1
    out = tmp_path / "out"
    assert f"coco: labels of 5 pictures: {out / 'coco'}" in answer.out
    content = json.loads((out / "coco" / "annotations.json").read_text())
    assert [one["name"] for one in content["categories"]] == ["cat", "dog"]
    names = {one["file_name"]: (one["height"], one["width"]) for one in content["images"]}
    assert names == {path.name: SIZES[path.stem] for path in (folder / "queries").iterdir() if path.stem in SIZES}
    for name in SIZES:
        assert (pixels(out / "voc/SegmentationClass" / f"{name}.png") == pixels(out / f"{name}_mask.png")).all()
        for file in (f"labelme/{name}.json", f"yolo/labels/{name}.txt"):
            assert (out / file).is_file()
    refusal = predict(tmp_path, start, support, f"query={out}/yolo/images", "formats=[yolo]").refusal()
    assert "holds images/grey.png, which is read and might be replaced: choose another folder" in refusal
    refusal = predict(tmp_path, start, *words[:2], "formats=[coco]", "maps=true").refusal()
    assert "maps=true and formats=['coco']: expected png among them" in refusal
    assert "formats=['jpg']: expected a list of png, coco" in predict(tmp_path, start, "formats=[jpg]").refusal()


@pytest.mark.slow
def test_a_checkpoint_of_the_release(folder, tmp_path):
    path = write_official(tmp_path / "official.pth", "coco_r50_1shot")
    words = (f"support=[{folder}/a.png:{folder}/a_mask.png]", f"query={folder}/queries/grey.png", "image_size=65")
    release = ("official.dataset=coco", "official.backbone=resnet50_v2", f"save={tmp_path / 'kept.pt'}")
    first = predict(tmp_path / "a", path, *words, *release)
    assert first.code == 0, first.err
    assert predict(tmp_path / "b", tmp_path / "kept.pt", words[1]).code == 0
    masks = [pixels(tmp_path / name / "out" / "grey_probability.png") for name in "ab"]
    assert (masks[0] == masks[1]).all()
    assert "expected checkpoints/best.ckpt" in predict(tmp_path / "c", path, *words).refusal()
    assert Segmenter.from_checkpoint(path, device="cpu", dataset="coco", backbone="resnet50_v2").image_size == (
        633,
        633,
    )
    path.unlink()
