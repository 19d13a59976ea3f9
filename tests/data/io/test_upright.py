from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageOps

from hdmnet.data.io.upright import fit_mask, orientation, read_upright, turn, upright_size

COLOURS = np.random.default_rng(0).integers(0, 256, (5, 8, 3), dtype=np.uint8)
BLOB = np.zeros((5, 8), dtype=bool)
BLOB[1:3, 2:7] = True


def save(path, array, orientation=1, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(array).save(path, exif=exif, **options)
    return path


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_turns_upright_as_pillow_does(tmp_path, value, suffix):
    path = save(tmp_path / f"a.{suffix}", COLOURS, value)
    with Image.open(path) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    np.testing.assert_array_equal(read_upright(path), expected)
    assert upright_size(path) == expected.shape[:2]
    assert orientation(path) == (1 if suffix == "tif" else value)  # Pillow turns TIFFs itself


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("scale", [1, 3])
def test_masks_of_the_stored_and_of_the_upright_shape_both_fit(value, scale):
    stored = BLOB.astype(np.uint8).repeat(scale, 0).repeat(scale, 1)
    upright = turn(stored, value)
    size = turn(COLOURS, value).shape[:2]
    # Without sides that change places nothing tells: such a mask is taken as drawn on the upright picture.
    np.testing.assert_array_equal(fit_mask(stored, size, value), upright if value >= 5 else stored)
    np.testing.assert_array_equal(fit_mask(upright, size, value), upright)
    square = np.arange(9, dtype=np.uint8).reshape(3, 3)
    assert fit_mask(square, size, value) is square  # of neither shape: for the caller to refuse
    assert fit_mask(square, (12, 12), value) is square


def test_reads_grey_rgba_palette_and_16_bits(tmp_path):
    grey = COLOURS[:, :, 0]
    thrice = np.repeat(grey[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(read_upright(save(tmp_path / "l.png", grey)), thrice)
    deep = grey.astype(np.uint16) * 257
    np.testing.assert_array_equal(read_upright(save(tmp_path / "i.png", deep, 6)), turn(thrice, 6))
    np.testing.assert_array_equal(read_upright(save(tmp_path / "i.tif", deep)), thrice)
    rgba = np.dstack([COLOURS, grey])
    np.testing.assert_array_equal(read_upright(save(tmp_path / "a.png", rgba, 8)), turn(COLOURS, 8))
    Image.fromarray(COLOURS).quantize(256).save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_upright(tmp_path / "p.png"), COLOURS)


def test_refuses_what_is_no_picture_in_one_line(tmp_path):
    (tmp_path / "a.jpg").write_text("no picture")
    with pytest.raises(ValueError, match=r"^picture .*a.jpg cannot be read .*"):
        read_upright(tmp_path / "a.jpg")
    Image.fromarray(np.full((2, 2), 70000, dtype=np.int32)).save(tmp_path / "b.tif")
    with pytest.raises(ValueError, match=r"b.tif has values 70000..70000, expected 8 or 16 bits"):
        read_upright(tmp_path / "b.tif")


def test_damaged_exif_data_are_passed_over(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert orientation(tmp_path / "a.jpg") == 1
