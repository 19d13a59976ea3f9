"""Every kind of picture that Pillow reads is listed and read; all else is listed apart."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, features

from hdmnet.data.io.listing import IMAGE_SUFFIXES, list_files
from hdmnet.data.io.object_masks import read_object_mask
from hdmnet.data.io.pictures import read_image
from hdmnet.data.io.user_pictures import read_user_picture

LOSSLESS = {".gif": {}, ".ppm": {}, ".tga": {}, ".dib": {}, ".apng": {}, ".qoi": {}, ".jp2": {"irreversible": False}}
LOSSY = {".jfif": "JPEG", ".jpe": "JPEG", ".mpo": "MPO", ".avif": "AVIF"}


def picture():
    """Four colours, so that a GIF holds them."""
    values = np.zeros((24, 40, 3), dtype=np.uint8)
    values[:12, :20], values[12:, 20:], values[12:, :20] = (200, 30, 30), (30, 200, 30), (30, 30, 200)
    return values


@pytest.mark.parametrize("suffix", [*LOSSLESS, *LOSSY])
def test_other_kinds_of_pictures_are_listed_and_read(tmp_path, suffix):
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    path = tmp_path / f"a{suffix.upper()}"
    Image.fromarray(picture()).save(path, format=LOSSY.get(suffix), **LOSSLESS.get(suffix, {}))
    assert list_files(tmp_path).pictures == {"a": [path]}
    tolerance = 0 if suffix in LOSSLESS else 6  # of the mean: colours run at edges
    for read in (read_image, lambda one: read_user_picture(one)[0]):
        assert np.abs(read(path).astype(int) - picture()).mean() <= tolerance
    mask = np.zeros((24, 40), dtype=np.uint8)
    mask[4:20, 8:32] = 1  # in blocks of eight, which lossy kinds keep
    Image.fromarray(np.dstack([mask * 255] * 3)).save(path, format=LOSSY.get(suffix), **LOSSLESS.get(suffix, {}))
    np.testing.assert_array_equal(read_object_mask(path, "m"), mask)


def test_what_pillow_writes_is_called_as_pictures_are():
    Image.init()
    kinds = {"JPEG", "PNG", "GIF", "WEBP", "AVIF", "TIFF", "BMP", "MPO", "PPM", "JPEG2000", "TGA", "QOI"}
    named = {suffix for suffix, kind in Image.registered_extensions().items() if kind in kinds}
    assert named - IMAGE_SUFFIXES <= {".icb", ".vda", ".vst", ".pfm"}  # what nobody calls a picture; floats


def test_all_else_is_listed_apart(tmp_path):
    for name in ("a.png", "sub/b.JPG", "notes.txt", "sub/raw.NEF", "none", ".hidden.png", ".git/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "sub/site").symlink_to(tmp_path / "not mounted")
    (tmp_path / "sub/up").symlink_to(tmp_path)
    listing = list_files(tmp_path)
    assert listing.pictures == {"a": [tmp_path / "a.png"], "sub/b": [tmp_path / "sub/b.JPG"]}
    assert listing.others == (tmp_path / "none", tmp_path / "notes.txt", tmp_path / "sub/raw.NEF")
    assert listing.broken == (tmp_path / "sub/site",)
    assert listing.links == (f"{tmp_path}/sub/up leads to {tmp_path}, which is read already",)


def test_a_heic_file_says_what_to_do(tmp_path):
    path = tmp_path / "a.HEIC"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))
    assert list_files(tmp_path).pictures == {"a": [path]}
    with pytest.raises(ValueError, match=r"a\.HEIC cannot be read .*: convert it to JPEG or PNG"):
        read_image(path)


def test_lists_pictures_by_name_below_the_folder(tmp_path):
    for name in ("b.jpg", "a/1.PNG", "a/1.jpg", "a/.hidden.png", ".git/x.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    listed = {"a/1": [tmp_path / "a/1.PNG", tmp_path / "a/1.jpg"], "b": [tmp_path / "b.jpg"]}
    assert list_files(tmp_path).pictures == listed
    assert list(listed) == list(list_files(tmp_path).pictures)
