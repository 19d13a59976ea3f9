from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image

from hdmnet.data.io.colour_masks import ColourList, ColourMasks, find_colours
from hdmnet.data.io.masks import voc_palette

CVAT = """# label:color_rgb:parts:actions
background:0,0,0::
bird:48,112,32::
cat:176,112,32:head,tail:run
"""
CAMVID = """64 128 64\tAnimal
192 0 128\tArchway
0 0 0\tVoid
"""
TABLE = """name,r,g,b
Animal,64,128,64
"traffic light",0,64,64
Void,0,0,0
"""


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        (CVAT, [("background", 0x000000), ("bird", 0x307020), ("cat", 0xB07020)]),
        (CAMVID, [("Animal", 0x408040), ("Archway", 0xC00080), ("Void", 0)]),
        (TABLE, [("Animal", 0x408040), ("traffic light", 0x004040), ("Void", 0)]),
        ("\ufefftree: 1, 2, 3\r\nclass 2: 4,5,6\r\n", [("tree", 0x010203), ("class 2", 0x040506)]),
        ("a:b:10,20,30::\n", [("a:b", 0x0A141E)]),
        ("# comment\ntree #408040\n#C00080 sky\n", [("tree", 0x408040), ("sky", 0xC00080)]),
        (
            "id;name;r;g;b\n0;road;128;64;128\n1;wall (brick);102;102;156\n",
            [("road", 0x804080), ("wall (brick)", 0x66669C)],
        ),
        ("car 64 0 128\ncar 64 128 192\n", [("car", 0x400080), ("car", 0x4080C0)]),
        ("größe=(255, 0, 1)\n", [("größe", 0xFF0001)]),
    ],
)
def test_lists_as_tools_write_them(tmp_path, text, labels):
    found = find_colours(write(tmp_path / "list.txt", text))
    assert found == ColourList(tmp_path / "list.txt", tuple(labels))


@pytest.mark.parametrize("text", ["cat\ndog\n", "", "# cat\n", "class 1\nclass 2\n", "0: cat\n1: dog\n"])
def test_a_list_of_names_is_no_list_of_colours(tmp_path, text):
    assert find_colours(write(tmp_path / "classes.txt", text)) is None


def test_the_classes_of_a_list(tmp_path):
    text = "background:0,0,0::\ncar 1 1 1\nVoid 2 2 2\ntree 3 3 3\ncar 4 4 4\n__ignore__:5,5,5\nunlabelled 6 6 6\n"
    assert find_colours(write(tmp_path / "list.txt", text)).class_names == ("car", "tree")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("cat:1,2,3\ndog\n", "line 'dog' has no colour, expected NAME:R,G,B in each line"),
        ("cat:1,2,3\ndog:::\n", "line 'dog:::' has no colour"),
        ("cat:1,2,256\n", r"line 'cat:1,2,256' has no colour, expected three numbers from 0 to 255"),
        ("cat:1,2,3\ndog:1,2,3\n", "'cat' and 'dog' have one colour, 1,2,3, expected each once"),
    ],
)
def test_lists_that_are_wrong(tmp_path, text, reason):
    with pytest.raises(ValueError, match=f"list.txt: {reason}"):
        find_colours(write(tmp_path / "list.txt", text))


def test_lists_that_are_not_there_or_no_text(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"list of colours .*none.txt is missing"):
        find_colours(tmp_path / "none.txt")
    (tmp_path / "list.txt").write_text(CVAT, encoding="utf-16")
    with pytest.raises(ValueError, match=r"list.txt is no UTF-8 text"):
        find_colours(tmp_path / "list.txt")


# -------------------------------------------------------------------------------------------------------------- masks

CLASSES = np.array([[0, 1, 2], [2, 255, 0]], dtype=np.uint8)
LIST = "background:0,0,0::\nbird:48,112,32::\ncat:128,128,128::\nvoid:255,255,255::\n"
COLOURS = {0: (0, 0, 0), 1: (48, 112, 32), 2: (128, 128, 128), 255: (255, 255, 255)}


@pytest.fixture
def reader(tmp_path):
    return ColourMasks(find_colours(write(tmp_path / "labelmap.txt", LIST)), ("bird", "cat"))


def in_colours(classes):
    return np.array([[COLOURS[value] for value in row] for row in classes.tolist()], dtype=np.uint8)


def save(path, picture):
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path)
    return path


def with_palette(indices, colours):
    picture = Image.fromarray(indices)
    picture.putpalette([channel for colour in colours for channel in colour])
    return picture


@pytest.mark.parametrize("kind", ["RGBA", "palette", "several of a palette"])
def test_what_is_transparent_is_background(reader, tmp_path, kind):
    """Whatever colour stands there; Pillow's way from a palette with several of them to RGB warns, and shows it."""
    hidden = np.array([[1, 0, 0], [0, 0, 1]], dtype=bool)
    if kind == "RGBA":
        picture = Image.fromarray(np.where(hidden[..., None], COLOURS[1], in_colours(CLASSES)).astype(np.uint8))
        picture.putalpha(Image.fromarray(np.where(hidden, 0, 255).astype(np.uint8)))
        picture.save(tmp_path / "mask.png")
    else:
        indices = np.where(hidden, 4, np.where(CLASSES == 255, 3, CLASSES)).astype(np.uint8)
        picture = with_palette(indices, [*COLOURS.values(), COLOURS[1]])
        picture.save(tmp_path / "mask.png", transparency=4 if kind == "palette" else bytes([255, 255, 200, 255, 0]))
    np.testing.assert_array_equal(reader.read(tmp_path / "mask.png"), np.where(hidden, 0, CLASSES))


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "palette of its own", "palette in another order", "grey", "bits"])
def test_what_a_viewer_shows_decides(reader, tmp_path, kind):
    classes = CLASSES
    if kind == "bits":
        classes = np.array([[0, 255], [255, 0]], dtype=np.uint8)
    elif kind == "grey":  # programs that make files smaller store a picture without colours so
        classes = np.where(CLASSES == 1, 0, CLASSES).astype(np.uint8)
    picture = Image.fromarray(in_colours(classes))
    if kind == "RGBA":
        picture.putalpha(Image.fromarray(np.full(classes.shape, 7, np.uint8)))
    elif kind == "palette of its own":
        picture = with_palette(np.where(classes == 255, 3, classes).astype(np.uint8), list(COLOURS.values()))
    elif kind == "palette in another order":
        picture = picture.quantize(8)
    elif kind in ("grey", "bits"):
        picture = picture.convert("L" if kind == "grey" else "1")
    saved = save(tmp_path / "mask.png", picture)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(reader)).read(saved), classes)


@pytest.mark.parametrize("palette", [None, "VOC's"])
def test_places_in_the_list(reader, tmp_path, palette):
    """Datumaro without colours: 0 is background, the first line, 3 is void, the fourth; 255 is ignored as ever."""
    places = np.array([[0, 1, 2], [2, 3, 255]], dtype=np.uint8)
    picture = Image.fromarray(places) if palette is None else with_palette(places, [voc_palette()])
    read = reader.read(save(tmp_path / "mask.png", picture))
    np.testing.assert_array_equal(read, [[0, 1, 2], [2, 255, 255]])


def test_places_in_colours_of_their_own_are_not_guessed_at(reader, tmp_path):
    places = with_palette(np.array([[0, 1, 2]], dtype=np.uint8), [(0, 0, 0), (9, 9, 9), (200, 9, 9)])
    with pytest.raises(ValueError, match=r"does not list \(9,9,9 and 1 more; 2 pixels\)"):
        reader.read(save(tmp_path / "mask.png", places))


def test_places_of_another_list(tmp_path):
    colours = find_colours(write(tmp_path / "labelmap.txt", LIST))
    reader = ColourMasks(colours, ("bird", "cat"), places=("background", "cat", "bird"))
    read = reader.read(save(tmp_path / "mask.png", np.array([[0, 1, 2]], dtype=np.uint8)))
    np.testing.assert_array_equal(read, [[0, 2, 1]])


def test_classes_that_were_not_chosen_are_background(tmp_path):
    reader = ColourMasks(find_colours(write(tmp_path / "labelmap.txt", LIST)), ("cat",))
    read = reader.read(save(tmp_path / "mask.png", in_colours(CLASSES)))
    np.testing.assert_array_equal(read, [[0, 0, 1], [1, 255, 0]])


def test_black_and_vocs_border_need_no_line(tmp_path):
    reader = ColourMasks(find_colours(write(tmp_path / "list.txt", "car 64 0 128\n")), ("car",))
    picture = np.array([[(0, 0, 0), (64, 0, 128), (224, 224, 192)]], dtype=np.uint8)
    np.testing.assert_array_equal(reader.read(save(tmp_path / "mask.png", picture)), [[0, 1, 255]])


@pytest.mark.parametrize("palette", [False, True])
def test_a_colour_that_is_not_listed(reader, tmp_path, palette):
    picture = in_colours(CLASSES)
    picture[0, :2] = (1, 2, 3)
    saved = save(tmp_path / "mask.png", Image.fromarray(picture).quantize(8) if palette else picture)
    with pytest.raises(
        ValueError,
        match=r"mask .*mask.png holds colours that .*labelmap.txt does not list \(1,2,3; 2 pixels\): add them, e.g. "
        r"'background:1,2,3', or 'void:1,2,3' for what is not to be counted",
    ):
        reader.read(saved)


def test_index_masks_and_a_list_without_background_are_not_guessed_at(tmp_path):
    reader = ColourMasks(find_colours(write(tmp_path / "list.txt", CAMVID)), ("Animal", "Archway"))
    with pytest.raises(ValueError, match=r"does not list \(1,1,1; 1 pixels\)"):
        reader.read(save(tmp_path / "mask.png", np.array([[0, 1]], dtype=np.uint8)))


@pytest.mark.parametrize(
    ("name", "reason"), [("a.jpg", "is a JPEG, whose compression changes colours"), ("a.png", "over 8 bits")]
)
def test_masks_of_other_kinds(reader, tmp_path, name, reason):
    picture = np.full((16, 16, 3), (48, 112, 200), np.uint8) if name == "a.jpg" else np.ones((4, 4), np.uint16)
    with pytest.raises(ValueError, match=reason):
        reader.read(save(tmp_path / name, picture))


def test_a_mask_that_is_missing(reader, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"mask .* is missing"):
        reader.read(tmp_path / "none.png")
