from __future__ import annotations

import os
import zlib

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from hdmnet.data.io import masks, pictures
from hdmnet.data.io.annotations import decode_segmentation
from hdmnet.data.io.masks import read_mask, voc_palette, write_mask
from hdmnet.data.io.pictures import read_image, read_size

INDICES = np.array([[0, 1, 15], [20, 80, 255]], dtype=np.uint8)


def save(path, array, mode, **options):
    image = Image.fromarray(array)
    if mode == "P":
        image.putpalette(voc_palette())
    image.save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["P", "L"])
def test_mask_is_read_as_indices(tmp_path, mode):
    mask = read_mask(save(tmp_path / "m.png", INDICES, mode))
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, INDICES)


def test_binary_mask_is_read_as_0_and_1(tmp_path):
    mask = read_mask(save(tmp_path / "m.png", np.array([[True, False]]), "1"))
    np.testing.assert_array_equal(mask, [[1, 0]])


@pytest.mark.parametrize("channels", [3, 4])
def test_colour_mask_is_refused_with_a_remedy(tmp_path, channels):
    path = save(tmp_path / "m.png", np.zeros((2, 3, channels), dtype=np.uint8), "RGB")
    with pytest.raises(ValueError, match=r"m\.png is a picture of mode RGBA?, expected class indices.*: save it as"):
        read_mask(path)


def test_jpeg_mask_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"m\.jpg is a JPEG, whose compression changes indices"):
        read_mask(save(tmp_path / "m.jpg", INDICES, "L"))


def test_palette_is_that_of_voc():
    colours = np.reshape(voc_palette(), (256, 3)).tolist()
    assert colours[:4] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert colours[15] == [192, 128, 128]  # person
    assert colours[20] == [0, 64, 128]  # tvmonitor
    assert colours[255] == [224, 224, 192]


def test_written_mask_is_a_palette_png_and_leaves_nothing_else(tmp_path):
    write_mask(tmp_path / "m.png", INDICES)
    with Image.open(tmp_path / "m.png") as written:
        assert written.mode == "P"
        assert written.getpalette() == list(voc_palette())
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), INDICES)
    assert [path.name for path in tmp_path.iterdir()] == ["m.png"]


def test_pictures_of_every_mode_become_rgb(tmp_path):
    grey = np.array([[0, 200]], dtype=np.uint8)
    expected = np.repeat(grey[..., None], 3, axis=2)
    rgba = np.concatenate([expected, np.array([[[9], [255]]], dtype=np.uint8)], axis=2)
    save(tmp_path / "palette.png", np.array([[0, 1]], dtype=np.uint8), "P", transparency=b"\x00\xff")
    for name, array in (("grey", grey), ("rgb", expected), ("rgba", rgba)):
        image = read_image(save(tmp_path / f"{name}.png", array, name))
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, expected)
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), [[[0, 0, 0], [128, 0, 0]]])


def test_the_size_of_a_whole_file_needs_no_decoding(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 255, (64, 48, 3), dtype=np.uint8)
    jpeg, png = save(tmp_path / "x.jpg", noise, "RGB"), save(tmp_path / "x.png", noise, "RGB")
    gif = save(tmp_path / "x.gif", noise[..., 0], "L")
    jpeg.write_bytes(jpeg.read_bytes() + b"written by some camera")
    assert read_size(gif) == (64, 48)  # no mark that is known: decoded
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(jpeg.read_bytes()[:-400])
    with pytest.raises(ValueError, match=r"cut\.jpg cannot be read .*truncated"):
        read_size(cut)
    monkeypatch.setattr(Image.Image, "load", None)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    assert read_size(jpeg) == read_size(png) == (64, 48)


def test_exif_rotation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees"
    array = np.full((16, 40, 3), 90, dtype=np.uint8)
    path = save(tmp_path / "p.jpg", array, "RGB", exif=exif)
    assert read_image(path).shape == (16, 40, 3)
    assert read_size(path) == (16, 40)


def test_16_bit_picture_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"p\.png has mode I;16 .*convert it to 8-bit RGB"):
        read_image(save(tmp_path / "p.png", np.zeros((2, 2), dtype=np.uint16), "I;16"))


@pytest.mark.parametrize("read", [read_image, read_mask, read_size])
def test_missing_and_unreadable_files_are_named_in_one_line(tmp_path, read):
    path = tmp_path / "x.png"
    with pytest.raises(FileNotFoundError, match=r"x\.png is missing"):
        read(path)
    for content in (b"", b"no picture\n" * 9, b"\x89PNG\r\n\x1a\n\x00\x00"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.png cannot be read") as caught:
            read(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("suffix", "read"), [("jpg", read_image), ("png", read_mask)])
def test_truncated_files_are_refused(tmp_path, suffix, read):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    path = save(tmp_path / f"x.{suffix}", noise, "L")
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(ValueError, match=rf"x\.{suffix} cannot be read"):
        read(path)


def without_opencv(read, path, monkeypatch):
    """What Pillow alone makes of a file: the array, or the error's text."""
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "_decode_plain_jpeg", lambda path: None)
        patch.setattr(masks, "_decode_indices", lambda path: None)
        return outcome(read, path)


def outcome(read, path):
    try:
        return read(path).tolist()
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize(
    ("mode", "settings", "by_opencv"),
    [
        ("RGB", {"subsampling": 0}, True),
        ("RGB", {"subsampling": 2, "quality": 40}, True),
        ("RGB", {"keep_rgb": True}, True),
        ("L", {}, True),
        ("RGB", {"progressive": True}, False),
        ("RGB", {"restart_marker_blocks": 2}, False),
        ("CMYK", {}, False),
    ],
)
def test_jpegs_have_the_same_pixels_by_opencv_and_by_pillow(tmp_path, monkeypatch, mode, settings, by_opencv):
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees"
    noise = np.random.default_rng(0).bytes(37 * 50 * len(Image.new(mode, (1, 1)).getbands()))
    path = tmp_path / "x.jpg"
    Image.frombytes(mode, (50, 37), noise).save(path, exif=exif, **settings)
    assert (pictures._decode_plain_jpeg(path) is not None) == by_opencv
    assert outcome(read_image, path) == without_opencv(read_image, path, monkeypatch)
    assert read_image(path).shape == (37, 50, 3)
    path.write_bytes(path.read_bytes() + b"written by some camera")
    assert pictures._decode_plain_jpeg(path) is None
    assert read_image(path).shape == (37, 50, 3)


@pytest.mark.parametrize(
    ("mode", "settings", "by_opencv"),
    [("P", {}, True), ("L", {}, True), ("P", {"transparency": b"\x00\xff"}, True), ("P", {"bits": 4}, False)],
)
def test_indices_are_the_same_by_opencv_and_by_pillow(tmp_path, monkeypatch, mode, settings, by_opencv):
    indices = np.random.default_rng(0).integers(0, 16 if "bits" in settings else 256, (37, 50), dtype=np.uint8)
    path = save(tmp_path / "x.png", indices, mode, **settings)
    assert (masks._decode_indices(path) is not None) == by_opencv
    assert read_mask(path).tolist() == without_opencv(read_mask, path, monkeypatch) == indices.tolist()


@pytest.mark.parametrize(("suffix", "mode"), [("jpg", "RGB"), ("png", "L")])
def test_damage_is_judged_as_by_pillow_alone(tmp_path, monkeypatch, capfd, suffix, mode):
    """Some damaged bytes, or a shorter file: the same pixels or the same error."""
    rng = np.random.default_rng(0)
    read = read_image if suffix == "jpg" else read_mask
    path = save(
        tmp_path / f"x.{suffix}", rng.integers(0, 255, (24, 40, 3)[: 3 if mode == "RGB" else 2], dtype=np.uint8), mode
    )
    whole = path.read_bytes()
    stuffed = [place + 1 for place in range(700, len(whole)) if whole[place : place + 2] == b"\xff\x00"]
    seen = set()
    for number in range(150):
        content = bytearray(whole)
        # Of a JPEG every other time the 0 after a 255, which makes a marker of them.
        place = int(rng.choice(stuffed)) if stuffed and number % 2 else int(rng.integers(len(whole)))
        content[place] = rng.integers(256)
        path.write_bytes(content[: int(rng.integers(len(whole)))] if number % 5 == 0 else content)
        found = outcome(read, path)
        assert found == without_opencv(read, path, monkeypatch), number
        seen.add(type(found))
    assert str in seen
    assert list in seen or suffix == "png"  # of a PNG the sums find all
    capfd.readouterr()  # what the libraries write about damaged files


def coco_with(annotations, size=(30, 40)):
    coco = COCO()
    coco.dataset = {"images": [{"id": 1, "height": size[0], "width": size[1]}], "annotations": annotations}
    coco.createIndex()
    return coco


def segmentations(size=(30, 40)):
    block = np.zeros(size, dtype=np.uint8, order="F")
    block[4:20, 10:33] = 1
    compressed = coco_mask.encode(block)
    compressed["counts"] = compressed["counts"].decode()
    return {
        "parts": [[1.5, 2.5, 12.2, 3.1, 9.9, 15.7], [20, 20, 35.5, 20, 35.5, 28.3, 20, 28]],
        "overlapping parts": [[2, 2, 20, 2, 20, 20, 2, 20], [10, 10, 30, 10, 30, 25, 10, 25]],
        "outside": [[-5, -5, 50, -5, 50, 10, -5, 10]],
        "compressed": compressed,
        "uncompressed": {"size": list(size), "counts": [100, 200, 300, 50, 550]},
    }


@pytest.mark.parametrize("kind", segmentations())
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own, with NumPy 2
def test_decoding_equals_pycocotools(kind):
    segmentation = segmentations()[kind]
    annotation = {"id": 7, "image_id": 1, "category_id": 1, "segmentation": segmentation}
    expected = coco_with([annotation]).annToMask(annotation).astype(bool)
    decoded = decode_segmentation(segmentation, 30, 40)
    assert expected.any()
    np.testing.assert_array_equal(decoded, expected)


def test_run_lengths_go_down_the_columns():
    decoded = decode_segmentation({"size": [2, 3], "counts": [1, 3, 2]}, 2, 3)
    np.testing.assert_array_equal(decoded, [[0, 1, 0], [1, 1, 0]])


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_picture_of_more_pixels_than_any_camera_has_is_not_decoded(tmp_path, mode):
    """Its header is enough; decoding would take gigabytes."""
    path = tmp_path / "a.png"
    Image.new(mode, (32, 24)).save(path)
    data = bytearray(path.read_bytes())
    data[16:20] = (6_000_000).to_bytes(4, "big")
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    path.write_bytes(data)
    for read in (read_mask, read_image):
        with pytest.raises(ValueError, match=r"cannot be read \(144,000,000 pixels, expected at most 128,000,000"):
            read(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for read in (read_mask, read_image):
        with pytest.raises(ValueError, match=r"a.png cannot be read \(it is no file\)"):
            read(tmp_path / "a.png")
