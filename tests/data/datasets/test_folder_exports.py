"""What people's exports and file systems do: doubled ids, crowds, links, other extensions, files that are left out."""

from __future__ import annotations

import json
import shutil
from pathlib import PurePosixPath

import numpy as np
import pytest
from PIL import Image

from hdmnet.data.datasets.base import LeftOut
from hdmnet.data.datasets.folder.dataset import FolderDataset
from tests.helpers.folder_trees import WRITERS, write


@pytest.fixture(scope="module")
def roots(one_class, tmp_path_factory):
    """Folders by layout. Not to be written to."""
    found = {layout: tmp_path_factory.mktemp(layout) for layout in WRITERS}
    for layout, root in found.items():
        write(layout, root, one_class)
    return found


# --------------------------------------------------------------------------------------------------------- doubled ids


def change_json(root, change):
    path = root / "annotations.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return content


def test_two_images_of_one_id_are_refused(copy):
    root = copy("coco")
    names = []

    def double(content):
        first, last = content["images"][0], content["images"][-1]
        names.extend(one["file_name"] for one in (first, last))
        last["id"] = first["id"]

    change_json(root, double)
    line = rf"^images of .*annotations\.json: '{names[0]}' and '{names[1]}' have the same id 30, expected one each"
    with pytest.raises(ValueError, match=line):
        FolderDataset(root)


@pytest.mark.parametrize("number", [10, 10.0, "10"])
def test_two_categories_of_one_id_are_refused_unless_they_are_one(copy, one_class, number):
    root = copy("coco")
    expected = {image_id: FolderDataset(root).read_mask(image_id) for image_id in one_class[0]}
    content = change_json(root, lambda content: content["categories"].append(dict(content["categories"][0])))
    dataset = FolderDataset(root)
    assert dataset.class_names == one_class[1]
    for image_id, mask in expected.items():
        np.testing.assert_array_equal(dataset.read_mask(image_id), mask)
    change_json(root, lambda content: content["categories"].append({"id": number, "name": "unicorn"}))
    name = next(one["name"] for one in content["categories"] if one["id"] == 10)
    with pytest.raises(
        ValueError, match=rf"^categories of .*: '{name}' and 'unicorn' have the same id 10, expected one"
    ):
        FolderDataset(root)


def test_an_id_between_two_numbers_is_refused(copy):
    root = copy("coco")
    change_json(root, lambda content: content["categories"].append({"id": 10.5, "name": "unicorn"}))
    with pytest.raises(ValueError, match=r"category id is '10.5', expected an integer"):
        FolderDataset(root)


def test_two_annotations_of_one_id_do_no_harm(copy, one_class):
    """Nothing is looked up by it."""
    root = copy("coco")
    change_json(root, lambda content: [one.update(id=1) for one in content["annotations"]])
    dataset = FolderDataset(root)
    for image_id, entry in one_class[0].items():
        np.testing.assert_array_equal(dataset.read_mask(image_id), entry.mask)


@pytest.mark.parametrize("kind", [str, float])
@pytest.mark.parametrize("where", ["images", "annotations", "categories"])
def test_ids_that_differ_in_type_only_are_the_same(copy, roots, where, kind):
    """Some programs write 1 in one place and "1" in another."""
    root, whole = copy("coco"), FolderDataset(roots["coco"])

    def change(content):
        for one in content[where]:
            for key in ("image_id", "category_id") if where == "annotations" else ("id",):
                one[key] = kind(one[key])

    change_json(root, change)
    dataset = FolderDataset(root)
    dataset.check()
    assert (dataset.class_names, dataset.left_out()) == (whole.class_names, [])
    for image_id in whole.ids("val"):
        np.testing.assert_array_equal(dataset.read_mask(image_id), whole.read_mask(image_id))


def test_two_images_whose_ids_differ_in_type_only_are_refused(copy):
    root = copy("coco")
    change_json(root, lambda content: content["images"][-1].update(id=str(content["images"][0]["id"])))
    with pytest.raises(ValueError, match=r"^images of .* have the same id '30', expected one each"):
        FolderDataset(root)


def test_ids_that_are_texts_are_not_numbers(copy, roots):
    """ "007" and "7" are two."""
    root, whole = copy("coco"), FolderDataset(roots["coco"])

    def change(content):
        first, second = (one["id"] for one in content["images"][:2])
        named = {first: "007", second: "7"}
        for one in content["images"]:
            one["id"] = named.get(one["id"], one["id"] + 100)
        for one in content["annotations"]:
            one["image_id"] = named.get(one["image_id"], one["image_id"] + 100)

    change_json(root, change)
    dataset = FolderDataset(root)
    for image_id in whole.ids("val"):
        np.testing.assert_array_equal(dataset.read_mask(image_id), whole.read_mask(image_id))


# -------------------------------------------------------------------------------------------------------------- crowds


def mark_crowds(root, chosen):
    """Mark every annotation for which `chosen(number of its category's annotations so far, category)` is true."""
    seen = {}

    def change(content):
        for annotation in content["annotations"]:
            number = seen.setdefault(annotation["category_id"], 0)
            seen[annotation["category_id"]] += 1
            annotation["iscrowd"] = int(chosen(number, annotation["category_id"]))

    return change_json(root, change)


def objects_of(dataset):
    return sum(len(dataset.class_areas(image_id)) for image_id in dataset.ids("val"))


def test_brush_masks_that_are_all_marked_as_crowds_are_objects(copy, roots):
    root = copy("coco")
    mark_crowds(root, lambda number, category: True)
    dataset, whole = FolderDataset(root), FolderDataset(roots["coco"])
    for image_id in whole.ids("val"):
        np.testing.assert_array_equal(dataset.read_mask(image_id), whole.read_mask(image_id))
    (told,) = dataset.left_out()
    assert "(iscrowd 1), taken as an object, 24 in all: their classes have no others" in told.tell()
    ignoring = FolderDataset(root, crowd="ignore")
    assert objects_of(ignoring) == 0
    assert ignoring.fingerprint("val") != dataset.fingerprint("val")


def test_in_a_mixed_export_crowds_are_ignored_and_counted(copy, roots):
    """One of each class but one, of which all are."""
    root = copy("coco")
    mark_crowds(root, lambda number, category: number == 0 or category == 20)
    dataset, whole = FolderDataset(root), FolderDataset(roots["coco"])
    told = {one.what.split(",")[1].strip(): one for one in dataset.left_out()}
    ignored = told["ignored (255)"]
    assert ignored.what.startswith("annotation marked as a crowd (iscrowd 1), ignored (255), 3 in all; if they are")
    assert ignored.what.endswith("set dataset.crowd=class")
    for image_id in whole.ids("val"):
        expected = whole.read_mask(image_id)
        if image_id in ignored.names:
            expected = np.where(expected > 0, 255, 0)
        np.testing.assert_array_equal(dataset.read_mask(image_id), expected)
    for crowd, missing in (
        ("class", 0),
        ("ignore", len(whole.ids("val")) // 4 + 3),
        ("zero", len(whole.ids("val")) // 4 + 3),
    ):
        other = FolderDataset(root, crowd=crowd)
        assert objects_of(other) == objects_of(whole) - missing
        assert (other.read_mask(ignored.names[0]).max() == 255) == (crowd == "ignore")


@pytest.mark.parametrize("empty", [[], None, [[]]])
def test_boxes_beside_brush_masks_do_not_make_these_crowds(copy, roots, empty):
    """Half of the annotations of a class mark nothing: its others, all crowds, are its objects."""
    root, whole = copy("coco"), FolderDataset(roots["coco"])
    mark_crowds(root, lambda number, category: number % 2)

    def change(content):
        for one in content["annotations"]:
            one.update({} if one["iscrowd"] else {"segmentation": empty})

    content = change_json(root, change)
    dataset = FolderDataset(root)
    kept = [one["image_id"] for one in content["annotations"] if one["iscrowd"]]
    marked = {
        PurePosixPath(one["file_name"]).with_suffix("").as_posix() for one in content["images"] if one["id"] in kept
    }
    for image_id in whole.ids("val"):
        expected = whole.read_mask(image_id) * (image_id in marked)
        np.testing.assert_array_equal(dataset.read_mask(image_id), expected)


def test_marks_of_crowds_in_other_types(copy, roots):
    root, whole = copy("coco"), FolderDataset(roots["coco"])
    for value in ("0", False, None, 0.0):
        change_json(root, lambda content, value=value: [one.update(iscrowd=value) for one in content["annotations"]])
        assert FolderDataset(root).left_out() == []
    for value in ("1", True):
        change_json(root, lambda content, value=value: [one.update(iscrowd=value) for one in content["annotations"]])
        (told,) = FolderDataset(root).left_out()
        assert "(iscrowd 1), taken as an object, 24 in all" in told.what
        assert objects_of(FolderDataset(root)) == objects_of(whole)


@pytest.mark.parametrize("value", [2, 0.5, "", "yes", []])
def test_a_mark_that_is_neither_0_nor_1_is_refused(copy, value):
    root = copy("coco")
    number = change_json(root, lambda content: content["annotations"][3].update(iscrowd=value))["annotations"][3]["id"]
    line = rf"^annotation {number} of .*annotations\.json has iscrowd '{value}', expected 0 or 1: export it again$"
    with pytest.raises(ValueError, match=line.replace("[]", r"\[\]")):
        FolderDataset(root)


def test_another_rule_for_crowds_is_refused(roots):
    with pytest.raises(ValueError, match=r"^dataset.crowd=maybe: expected ignore, zero, class or null"):
        FolderDataset(roots["coco"], crowd="maybe")


# --------------------------------------------------------------------------------------------------------------- links


def link_away(folder, elsewhere):
    """Move every other subfolder of a folder to another place and link to it."""
    for path in sorted(one for one in folder.iterdir() if one.is_dir())[::2]:
        shutil.move(path, elsewhere / folder.name / path.name)
        path.symlink_to(elsewhere / folder.name / path.name)


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize("every", [False, True], ids=["some", "all"])
def test_linked_folders_hold_the_same(copy, roots, tmp_path, layout, every):
    root, whole = copy(layout), FolderDataset(roots[layout])
    for folder in (
        [root] if layout == "fss" else [root / name for name in ("images", "masks") if (root / name).is_dir()]
    ):
        link_away(folder, tmp_path / "disk")
        if every and layout != "fss":
            shutil.move(folder, tmp_path / "disk" / f"all {folder.name}")
            folder.symlink_to(tmp_path / "disk" / f"all {folder.name}")
    assert any(path.is_symlink() for path in root.rglob("*"))
    dataset = FolderDataset(root)
    assert dataset.tree.layout == layout
    assert dataset.ids("val") == whole.ids("val")
    assert dataset.left_out() == []
    for image_id in whole.ids("val"):
        np.testing.assert_array_equal(dataset.read_mask(image_id), whole.read_mask(image_id))
        np.testing.assert_array_equal(dataset.read_image(image_id), whole.read_image(image_id))


@pytest.mark.parametrize("layout", ["index", "binary", "fss"])
def test_circles_and_broken_links_are_told(copy, roots, layout):
    root = copy(layout)
    place = root if layout == "fss" else root / "images"
    (place / "again").symlink_to(place)
    (place / "site").symlink_to(root / "not mounted")
    dataset = FolderDataset(root)
    assert dataset.ids("val") == FolderDataset(roots[layout]).ids("val")
    told = [one.tell() for one in dataset.left_out()]
    assert f"{place}/again leads to {place}, which is read already: not followed" in told
    assert f"link {place}/site leads nowhere: left out" in told


# ---------------------------------------------------------------------------------------------------- what is left out


def test_what_each_layout_leaves_out(copy, one_class):
    stray = next(iter(one_class[0]))
    for layout in WRITERS:
        root = copy(layout)
        folder = root / ("" if layout == "fss" else "images") / stray.split("/")[0]
        Image.new("RGB", (9, 9)).save(folder / "new.bmp")
        (folder / "notes.txt").touch()
        if layout != "coco":
            masks = folder if layout == "fss" else root / "masks"
            Image.new("L", (9, 9)).save(masks / "lost.png")
        told = {one.what: one for one in FolderDataset(root).left_out()}
        unlabelled = told.pop("not named by annotations.json, left out" if layout == "coco" else "no mask, left out")
        assert unlabelled.names == (str(folder / "new.bmp"),)
        if layout != "coco":  # there every file that counts is named
            assert told.pop("no picture by its name, left out").names == (str(folder / "notes.txt"),)
            assert told.pop("left out").names == (f"mask {masks / 'lost.png'} has no picture",)
        assert told == {}


def test_a_folder_that_a_json_does_not_name_is_told(copy, roots):
    """Not only the pictures beside those that it names; what it names through a link is none of them."""
    root, whole = copy("coco"), FolderDataset(roots["coco"])
    Image.new("RGB", (9, 9)).save(root / "images/lone.jpg")
    (root / "images/new/deep").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(root / "images/new/deep/a.webp")
    (told,) = FolderDataset(root).left_out()
    assert told.names == (str(root / "images/lone.jpg"), str(root / "images/new/deep/a.webp"))
    first = PurePosixPath(whole.ids("val")[0]).parent
    (root / "images/link").symlink_to(root / "images" / first)

    def change(content):
        for one in content["images"]:
            name = PurePosixPath(one["file_name"])
            one["file_name"] = f"link/{name.name}" if name.parent == first else str(name)

    change_json(root, change)
    (told,) = FolderDataset(root).left_out()
    assert len(told.names) == 2


@pytest.mark.parametrize(
    "empty",
    [[], None, [[]], [[1, 2, 9, 8]], {}, {"size": [48, 48], "counts": []}, {"size": [48, 48], "counts": ""}],
    ids=["[]", "null", "[[]]", "two points", "{}", "no runs", "no compressed runs"],
)
def test_annotations_that_mark_nothing_are_told(copy, empty):
    root = copy("coco")
    content = change_json(root, lambda content: content["annotations"][0].update(segmentation=empty))
    dataset = FolderDataset(root)
    (told,) = dataset.left_out()
    assert told.what == "annotation without a segmentation, which marks nothing"
    number = content["annotations"][0]["image_id"]
    name = next(one["file_name"] for one in content["images"] if one["id"] == number)
    assert told.names == (PurePosixPath(name).with_suffix("").as_posix(),)
    assert not dataset.read_mask(told.names[0]).any()
    change_json(root, lambda content: content["annotations"][0].pop("segmentation"))
    assert FolderDataset(root).left_out() == [told]


def test_what_is_left_out_in_words():
    few, many = LeftOut("left out", ("a", "b")), LeftOut("left out", tuple("abcdefghij" * 20))
    assert few.tell() == "a, b: left out"
    assert many.tell() == "a, b, c, d, e and 195 more (200 in all): left out"
    assert few.as_dict() == {"what": "left out", "count": 2, "names": ["a", "b"]}
    assert (many.as_dict()["count"], len(many.as_dict()["names"])) == (200, 100)


@pytest.mark.parametrize("layout", WRITERS)
def test_pictures_of_other_extensions_are_read(copy, roots, layout):
    """Half of them, whatever their capitals; JPEGs as JPEGs, so that the pixels are the same."""
    root, whole = copy(layout), FolderDataset(roots[layout])
    for number, path in enumerate(sorted(root.rglob("*.jpg"))):
        path.rename(path.with_suffix((".jpg", ".jfif", ".JPE", ".Jpeg")[number % 4]))
    if layout == "coco":
        there = {path.stem: path.name for path in (root / "images").rglob("*.*")}

        def rename(content):
            for image in content["images"]:
                name = PurePosixPath(image["file_name"])
                image["file_name"] = str(name.with_name(there[name.stem]))

        change_json(root, rename)
    dataset = FolderDataset(root)
    dataset.check()
    assert (dataset.ids("val"), dataset.left_out()) == (whole.ids("val"), [])
    for image_id in whole.ids("val"):
        np.testing.assert_array_equal(dataset.read_image(image_id), whole.read_image(image_id))
        np.testing.assert_array_equal(dataset.read_mask(image_id), whole.read_mask(image_id))


def test_masks_in_palettes_of_another_order(copy, roots):
    """A mask of one class is what a viewer shows."""
    for layout in ("binary", "fss"):
        root, whole = copy(layout), FolderDataset(roots[layout])
        for path in sorted(root.rglob("*.png")):
            with Image.open(path) as mask:
                values = np.asarray(mask.convert("L"))
            red = (values > values.max() // 2) * np.uint8(220)
            Image.fromarray(np.dstack([red, 0 * red, 0 * red])).quantize(8).save(path)
        dataset = FolderDataset(root)
        for image_id in whole.ids("val"):
            np.testing.assert_array_equal(dataset.read_mask(image_id), whole.read_mask(image_id))
