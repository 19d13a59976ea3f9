from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageOps

from hdmnet.data.folder_files import fit_mask, list_files, orientation, read_binary, read_upright, turn, upright_size

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


@pytest.mark.parametrize("value", [1, 5, 6, 7, 8])
def test_masks_of_the_stored_and_of_the_upright_size_both_fit(tmp_path, value):
    path = save(tmp_path / "a.png", COLOURS, value)
    stored = BLOB.astype(np.uint8)
    upright = turn(stored, value)
    np.testing.assert_array_equal(fit_mask(stored, path), upright)
    np.testing.assert_array_equal(fit_mask(upright, path), upright)
    other = np.zeros((3, 3), dtype=np.uint8)
    assert fit_mask(other, path) is other  # for the catalog to refuse


def test_a_mask_is_taken_as_upright_where_sizes_do_not_tell(tmp_path):
    path = save(tmp_path / "a.png", COLOURS, 3)
    np.testing.assert_array_equal(fit_mask(BLOB.astype(np.uint8), path), BLOB)
    square = save(tmp_path / "b.png", COLOURS[:, :5], 6)
    np.testing.assert_array_equal(fit_mask(BLOB[:, :5].astype(np.uint8), square), BLOB[:, :5])


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


def palette(colours):
    picture = Image.fromarray(BLOB.astype(np.uint8))
    picture.putpalette(colours)
    return picture


KINDS = {
    "0/1": lambda: Image.fromarray(BLOB.astype(np.uint8)),
    "0/255": lambda: Image.fromarray(BLOB * np.uint8(255)),
    "1 bit": lambda: Image.fromarray(BLOB),
    "soft": lambda: Image.fromarray(np.where(BLOB, np.uint8(128), np.uint8(127))),
    "16 bits": lambda: Image.fromarray(np.where(BLOB, np.uint16(40000), np.uint16(20000))),
    "rgb": lambda: Image.fromarray(np.repeat(BLOB[:, :, None] * np.uint8(255), 3, axis=2)),
    "red": lambda: Image.fromarray(np.dstack([BLOB * np.uint8(200), *[np.zeros((5, 8), dtype=np.uint8)] * 2])),
    "rgba": lambda: Image.fromarray(np.dstack([*[BLOB * np.uint8(255)] * 3, np.full((5, 8), 255, dtype=np.uint8)])),
    "la": lambda: Image.fromarray(np.dstack([BLOB * np.uint8(255), np.full((5, 8), 255, dtype=np.uint8)])),
    "palette of colours": lambda: palette([0, 0, 0, 128, 0, 0]),
    "palette of greys": lambda: palette([0, 0, 0, 255, 255, 255]),
    "palette of grey 0/1": lambda: palette([0, 0, 0, 1, 1, 1]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_reads_every_usual_binary_mask(tmp_path, kind):
    KINDS[kind]().save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_binary(tmp_path / "m.png"), BLOB)


def test_an_empty_mask_is_empty(tmp_path):
    assert not read_binary(save(tmp_path / "m.png", np.zeros((4, 4), dtype=np.uint8))).any()


@pytest.mark.parametrize("highest", [2, 7, 127])
def test_refuses_values_that_are_no_binary_mask(tmp_path, highest):
    path = save(tmp_path / "m.png", BLOB * np.uint8(highest))
    with pytest.raises(ValueError, match=rf"m.png holds values 0..{highest}, expected 0/1, 0/255 or soft"):
        read_binary(path)


def test_lists_pictures_by_name_below_the_folder(tmp_path):
    for name in ("b.jpg", "a/1.PNG", "a/1.jpg", "a/.hidden.png", ".git/x.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    listed = {"a/1": [tmp_path / "a/1.PNG", tmp_path / "a/1.jpg"], "b": [tmp_path / "b.jpg"]}
    assert list_files(tmp_path) == listed
    assert list(listed) == list(list_files(tmp_path))
