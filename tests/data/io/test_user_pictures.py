"""Pictures and masks of any kind come out as a viewer shows them, or are refused in one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from hdmnet.data.io.user_pictures import read_user_mask, read_user_picture

GENERATOR = np.random.default_rng(0)
COLOURS = GENERATOR.integers(0, 256, (12, 20, 3), dtype=np.uint8)
OBJECT = np.zeros((12, 20), np.uint8)
OBJECT[2:7, 3:15] = 1


def saved(path, array, mode=None, **options):
    Image.fromarray(array).convert(mode).save(path, **options) if mode else Image.fromarray(array).save(path, **options)
    return path


def turned_file(path, upright, orientation):
    """A file whose stored pixels, turned by its EXIF orientation, are `upright`."""
    back = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270, 3: Image.Transpose.ROTATE_180}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(upright).transpose(back).save(path, exif=exif)
    return path


# ----------------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize(
    "image",
    [
        COLOURS,
        torch.from_numpy(COLOURS).permute(2, 0, 1),
        torch.from_numpy(COLOURS).permute(2, 0, 1).float() / 255,
        COLOURS.astype(np.uint16) * 257,
        COLOURS.astype(np.int64),
        np.dstack([COLOURS, COLOURS[..., 0]]),
        Image.fromarray(COLOURS),
        Image.fromarray(COLOURS).convert("RGBA"),
    ],
    ids=["array", "tensor", "float tensor", "16 bits", "int64", "with alpha", "PIL", "PIL RGBA"],
)
def test_the_kinds_of_a_picture_agree(image):
    picture, turned = read_user_picture(image)
    assert (picture == COLOURS).all()
    assert picture.dtype == np.uint8
    assert turned == 1


@pytest.mark.parametrize("grey", [COLOURS[..., 0], COLOURS[..., :1], COLOURS[..., 0].astype(np.uint16) << 8])
def test_grey_has_three_equal_channels(grey):
    assert (read_user_picture(grey)[0] == COLOURS[..., :1]).all()


def test_files_of_all_modes(tmp_path):
    deep = saved(tmp_path / "deep.png", (COLOURS[..., 0].astype(np.uint16) << 8) + 7)
    assert (read_user_picture(deep)[0] == COLOURS[..., :1]).all()
    for mode, suffix in (("RGBA", "png"), ("RGB", "bmp"), ("RGB", "png")):
        assert (read_user_picture(saved(tmp_path / f"a.{suffix}", COLOURS, mode))[0] == COLOURS).all()
    assert (read_user_picture(str(saved(tmp_path / "l.png", COLOURS[..., 0])))[0] == COLOURS[..., :1]).all()


@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("opened", [False, True], ids=["path", "PIL"])
def test_exif_rotation_is_applied(tmp_path, orientation, opened):
    path = turned_file(tmp_path / "a.png", COLOURS, orientation)
    picture, turned = read_user_picture(Image.open(path) if opened else path)
    assert (picture == COLOURS).all()
    assert turned == orientation


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((5, 5, 7)), "picture has shape .* expected 1, 3 or 4 channels"),
        (np.full((5, 5), 2.0), r"floats from 2 to 2: expected \[0, 1\]"),
        (np.full((5, 5), np.nan), r"expected \[0, 1\]"),
        (np.zeros((2, 0, 3)), "expected numbers"),
        (np.full((5, 5), -1), "values from -1 to -1: expected 8 or 16 bits"),
        (7, "picture is a int: expected a path"),
        ("nowhere.jpg", "picture nowhere.jpg not found"),
    ],
)
def test_what_is_no_picture_is_refused(image, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_user_picture(image)


def test_a_text_file_named_jpg_is_refused_in_one_line(tmp_path):
    path = tmp_path / "text.jpg"
    path.write_text("hello")
    with pytest.raises(ValueError, match=r"text\.jpg cannot be read") as refusal:
        read_user_picture(path)
    assert "\n" not in str(refusal.value)


# -------------------------------------------------------------------------------------------------------------- masks


def palette_image(indices):
    image = Image.fromarray(indices)
    image.putpalette([0, 0, 0, 10, 200, 3] + [1, 2, 3] * 254)
    return image


RED = np.dstack([OBJECT * 250, OBJECT * 10, OBJECT * 0])
CUT_OUT = np.dstack([COLOURS, OBJECT * 255])


@pytest.mark.parametrize(
    "mask",
    [
        OBJECT,
        OBJECT * 255,
        OBJECT * 5,
        OBJECT.astype(bool),
        OBJECT * 0.9,
        OBJECT.astype(np.uint16) * 65535,
        np.dstack([OBJECT * 255] * 3),
        RED,
        CUT_OUT,
        torch.from_numpy(OBJECT)[None],
        Image.fromarray(OBJECT * 255).convert("1"),
        palette_image(OBJECT * 3),
        (3, 2, 15, 7),
        np.array([3, 2, 15, 7]),
    ],
    ids=[
        "01",
        "0255",
        "05",
        "bool",
        "float",
        "16",
        "rgb",
        "red",
        "rgba",
        "tensor",
        "1bit",
        "palette",
        "box",
        "boxarray",
    ],
)
def test_the_kinds_of_a_mask_agree(mask, tmp_path):
    assert (read_user_mask(mask, COLOURS) == OBJECT).all()
    if isinstance(mask, np.ndarray) and mask.dtype == np.uint8 and mask.ndim > 1:
        assert (read_user_mask(saved(tmp_path / "m.png", mask), COLOURS) == OBJECT).all()
    if isinstance(mask, Image.Image):
        mask.save(tmp_path / "m.png")
        assert (read_user_mask(tmp_path / "m.png", COLOURS) == OBJECT).all()


def test_a_mask_of_another_scale_keeps_its_size():
    assert (read_user_mask(OBJECT.repeat(3, 0).repeat(3, 1), COLOURS) == OBJECT.repeat(3, 0).repeat(3, 1)).all()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (OBJECT * 0, "mask is empty"),
        (OBJECT[:, :10], r"mask is 12x10 \(HxW\) but its picture 12x20: expected the same size"),
        (OBJECT + 2, r"mask holds 2 classes \(2, 3\): expected one"),
        (
            np.dstack([OBJECT * 255, (1 - OBJECT) * 255, OBJECT * 0]),
            "mask holds several colours: expected one",
        ),
        ((30, 2, 40, 7), "box 30,2,40,7 holds no pixel"),
        ((9, 2, 3, 7), "box 9,2,3,7 holds no pixel"),
        ("nowhere.png", "mask nowhere.png not found"),
    ],
    ids=["empty", "shape", "classes", "colours", "outside", "reversed", "missing"],
)
def test_wrong_masks_are_refused(mask, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_user_mask(mask, COLOURS)


def test_masks_of_a_turned_picture(tmp_path, caplog):
    picture, turned = read_user_picture(turned_file(tmp_path / "a.png", COLOURS, 6))
    stored = np.rot90(OBJECT)  # what the file holds before it is turned
    assert (read_user_mask(stored.copy(), picture, turned) == OBJECT).all()
    assert (read_user_mask(OBJECT, picture, turned) == OBJECT).all()
    assert not caplog.records
    assert (read_user_mask(OBJECT, picture, 3) == OBJECT).all()  # upside down: nothing tells
    assert "taken as drawn on the picture as a viewer shows it" in caplog.text
    # A mask that has an orientation itself is turned by it.
    assert (read_user_mask(turned_file(tmp_path / "m.png", OBJECT, 8), picture, turned) == OBJECT).all()
