"""One reader for masks of one object: every way of saving them gives the same, and several classes are refused."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from hdmnet.data.io.masks import voc_palette
from hdmnet.data.io.object_masks import object_mask, pil_object_mask, read_object_mask
from hdmnet.data.io.upright import turn

BLOB = np.zeros((16, 24), dtype=bool)
BLOB[4:12, 5:20] = True
ONE = BLOB.astype(np.uint8)
ROWS, COLUMNS = np.indices(BLOB.shape, dtype=np.uint8)
SOFT = np.asarray(Image.fromarray(ONE * np.uint8(255)).resize((96, 64), Image.Resampling.BICUBIC))
FULL = np.full(BLOB.shape, 255, dtype=np.uint8)


def stacked(*channels):
    return np.dstack([np.asarray(channel, dtype=np.uint8) for channel in channels])


def palette(values, colours, **info):
    picture = Image.fromarray(values)
    picture.putpalette(colours)
    picture.info |= info
    return picture


def index_mask(*values):
    """(20, 30): bands of equal size."""
    return np.repeat(np.array(values, dtype=np.uint8), 20 * 30 // len(values)).reshape(20, 30)


BANDS = index_mask(0, 1, 2)


def shown(colour, edge=0):
    """The blob in one colour on black, with a soft edge, as a viewer shows it."""
    picture = Image.fromarray(stacked(*(ONE * np.uint8(part) for part in colour)))
    return picture.filter(ImageFilter.GaussianBlur(edge)) if edge else picture


ADAPTIVE = Image.Palette.ADAPTIVE

KINDS = {
    "0/1": ONE,
    "0/255": ONE * 255,
    "0/5": ONE * 5,
    "0/200": ONE * 200,
    "1 bit": BLOB,
    "16 bits 0/1": ONE.astype(np.uint16),
    "16 bits": ONE.astype(np.uint16) * 65535,
    "16 bits soft": np.where(BLOB, np.uint16(40000), np.uint16(20000)),
    "two shades": np.where(BLOB, np.uint8(128), np.uint8(127)),
    "trimap": np.where(BLOB, np.uint8(255), np.uint8(0)) + np.where(BLOB, 0, np.uint8(100)),
    "rgb": stacked(ONE * 255, ONE * 255, ONE * 255),
    "red": stacked(ONE * 200, ONE * 10, 0 * ONE),
    "dark red": stacked(ONE * 64, 0 * ONE, 0 * ONE),
    "rgba": stacked(ONE * 255, ONE * 255, ONE * 255, FULL),
    "faint on nothing": stacked(ONE * 220, 0 * ONE, 0 * ONE, ONE * 90),
    "faint on black": stacked(ONE * 220, 0 * ONE, 0 * ONE, FULL - ONE * 165),
    "faint on a faint picture's place": stacked(FULL, FULL, FULL, ONE * 100 + 60),
    "turned on nothing": stacked(ONE * 255, ONE * 255, ONE * 255, np.where(COLUMNS < 3, 0, FULL)),
    "grey, turned on nothing": stacked(ONE * 255, np.where(COLUMNS < 3, 0, FULL)),
    "cut-out": stacked(FULL // 3, FULL // 2, FULL, ONE * 255),
    "grey and alpha": stacked(ONE * 255, FULL),
    "grey cut-out": stacked(FULL // 2, ONE * 255),
    "palette of colours": palette(ONE * 3, [0, 0, 0, 9, 9, 0, 0, 0, 9, 128, 0, 0]),
    "palette of greys": palette(ONE, [0, 0, 0, 255, 255, 255]),
    "palette of grey 0/1": palette(ONE, [0, 0, 0, 1, 1, 1]),
    # The same with palettes in another order, as programs write them that make palettes or optimise them.
    "red first": palette(1 - ONE, [220, 0, 0, 0, 0, 0]),
    "white first and an unused green": palette(1 - ONE, [255, 255, 255, 0, 0, 0, 10, 200, 30]),
    "grey inverted": palette(255 - 255 * ONE, [value for value in range(255, -1, -1) for _ in range(3)]),
    "two reds, two blacks": palette((1 - ONE) * 2 + COLUMNS % 2, [220, 0, 0] * 2 + [0, 0, 0] * 2),
    "quantize": shown((220, 0, 0)).quantize(2),
    "quantize to 16": shown((220, 0, 0)).quantize(16),
    "adaptive": shown((30, 40, 200)).convert("P", palette=ADAPTIVE, colors=8),
    "the web's palette": shown((255, 255, 255)).convert("P"),
    "the web's palette, green": shown((0, 153, 51)).convert("P"),
    "soft red": shown((220, 0, 0), 1).convert("P", palette=ADAPTIVE, colors=16),
    "soft white": shown((255, 255, 255), 1).convert("P"),
    "white on nearly black": palette(1 - ONE, [255, 255, 255, 2, 2, 2]),
    "dim shades": palette(ONE * 2 + (ROWS == 3), [0, 0, 0, 20, 20, 20, 70, 70, 70]),
    "soft grey with a dim edge": palette(ONE * 2 + (ROWS == 3), [0, 0, 0, 51, 51, 51, 255, 255, 255]),
    "transparent behind": palette(1 - ONE, [200, 0, 0, 255, 255, 255], transparency=1),
    "transparent around black": palette(1 - ONE, [0, 0, 0, 255, 255, 255], transparency=1),
    "cut-out of 200 colours": palette(
        np.where(BLOB, np.arange(ONE.size).reshape(ONE.shape) % 200 + 1, 0).astype(np.uint8),
        np.random.default_rng(0).integers(0, 256, 768).tolist(),
        transparency=0,
    ),
    "VOC's colours": palette(ONE * 15, voc_palette()),
}


def saved(path, kind):
    (kind if isinstance(kind, Image.Image) else Image.fromarray(kind)).save(path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_every_usual_mask_is_the_same(tmp_path, kind):
    path = saved(tmp_path / "m.png", KINDS[kind])
    np.testing.assert_array_equal(read_object_mask(path, "m"), ONE)


@pytest.mark.parametrize("kind", [name for name in KINDS if isinstance(KINDS[name], Image.Image)])
def test_a_palette_is_read_as_a_viewer_shows_it(tmp_path, kind):
    """Also of a GIF, and of an opened picture; and another order of the entries changes nothing."""
    picture = KINDS[kind]
    np.testing.assert_array_equal(pil_object_mask(picture.copy(), "m"), ONE)
    order = np.random.default_rng(1).permutation(256)
    entries = np.zeros((256, 3), dtype=np.uint8)
    colours = np.array(picture.getpalette("RGB")).reshape(-1, 3)
    entries[order[: len(colours)]] = colours
    moved = palette(order.astype(np.uint8)[np.asarray(picture)], entries.ravel().tolist())
    if (transparent := picture.info.get("transparency")) is not None:
        moved.info["transparency"] = int(order[transparent])
    for suffix in ("png", "gif"):
        path = tmp_path / f"m.{suffix}"
        moved.save(path)
        np.testing.assert_array_equal(read_object_mask(path, "m"), ONE)


def test_a_transparent_colour_of_a_picture_without_palette(tmp_path):
    """What a viewer shows is a black object, or a picture that is cut out, on nothing."""
    Image.fromarray(255 - ONE * 255).save(tmp_path / "grey.png", transparency=255)
    np.testing.assert_array_equal(read_object_mask(tmp_path / "grey.png", "m"), ONE)
    Image.fromarray(ONE * 255).save(tmp_path / "black.png", transparency=0)
    np.testing.assert_array_equal(read_object_mask(tmp_path / "black.png", "m"), ONE)
    picture = np.random.default_rng(0).integers(0, 200, (*ONE.shape, 3), dtype=np.uint8)
    picture[~BLOB] = (1, 254, 3)
    Image.fromarray(picture).save(tmp_path / "rgb.png", transparency=(1, 254, 3))
    np.testing.assert_array_equal(read_object_mask(tmp_path / "rgb.png", "m"), ONE)


ALPHAS = {
    "faint on black": ([0, 0, 0, 220, 0, 0], [255, 90]),
    "faint on nothing": ([0, 0, 0, 220, 0, 0], [0, 90]),
    "white on a faint white": ([255, 255, 255] * 2, [40, 255]),
}


@pytest.mark.parametrize("kind", ALPHAS)
def test_a_palette_with_alpha(tmp_path, kind):
    colours, alpha = ALPHAS[kind]
    palette(ONE, colours).save(tmp_path / "m.png", transparency=bytes(alpha))
    np.testing.assert_array_equal(read_object_mask(tmp_path / "m.png", "m"), ONE)
    palette(1 - ONE, colours[3:] + colours[:3]).save(tmp_path / "m.png", transparency=bytes(alpha[::-1]))
    np.testing.assert_array_equal(read_object_mask(tmp_path / "m.png", "m"), ONE)


def test_a_mask_in_a_palette_that_was_turned_on_nothing(tmp_path):
    values = np.where(COLUMNS < 3, np.uint8(2), ONE)
    palette(values, [0, 0, 0, 255, 255, 255, 0, 0, 0]).save(tmp_path / "m.png", transparency=2)
    np.testing.assert_array_equal(read_object_mask(tmp_path / "m.png", "m"), ONE)


@pytest.mark.parametrize("alpha", [[0, 90, 90], [255, 90, 90]], ids=["on nothing", "on black"])
def test_two_faint_classes_are_refused(tmp_path, alpha):
    palette(BANDS, [0, 0, 0, 220, 0, 0, 0, 220, 0]).save(tmp_path / "m.png", transparency=bytes(alpha))
    with pytest.raises(ValueError, match="holds several colours"):
        read_object_mask(tmp_path / "m.png", "m")


@pytest.mark.parametrize("bits", [1, 8])
def test_a_mask_of_one_bit_whose_palette_is_white_first(tmp_path, bits):
    palette(1 - ONE, [255, 255, 255, 0, 0, 0]).save(tmp_path / "m.png", bits=bits)
    np.testing.assert_array_equal(read_object_mask(tmp_path / "m.png", "m"), ONE)


TWO = np.where(BLOB, np.uint8(255), np.uint8(140))


@pytest.mark.parametrize(
    "mask",
    [
        TWO,
        np.where(BLOB, np.uint16(65535), np.uint16(40000)),
        stacked(TWO, TWO, TWO),
        stacked(TWO, 0 * TWO, 0 * TWO),
        stacked(FULL, FULL, FULL, TWO),
        palette(ONE, [140, 140, 140, 255, 255, 255]),
        palette(ONE, [120, 0, 0, 220, 0, 0]),
    ],
    ids=["grey", "16 bits", "rgb", "red", "alpha", "palette of greys", "palette of reds"],
)
def test_two_bright_values_and_no_background_are_refused(mask):
    """Which of them is meant cannot be told; all of it would be taken for the object."""
    read = pil_object_mask if isinstance(mask, Image.Image) else object_mask
    with pytest.raises(ValueError, match=r"^m has no background: its values go from \d+ to \d+, all of them bright"):
        read(mask, "m")
    noise = np.random.default_rng(0).integers(240, 256, ONE.shape, dtype=np.uint8)
    assert object_mask(noise, "m").all()  # the object everywhere, in a JPEG


@pytest.mark.parametrize("value", [2, 20, 63])
def test_a_number_beside_255_and_no_0_is_refused(value):
    mask = np.where(BLOB, np.uint8(255), np.uint8(value))
    with pytest.raises(ValueError, match=rf"^m holds {value} and 255 and no 0, so which of them is the object"):
        object_mask(mask, "m")


def test_of_several_pictures_in_one_file_none_is_chosen(tmp_path):
    pages = [Image.fromarray(ONE * 255), Image.fromarray(255 - ONE * 255)]
    pages[0].save(tmp_path / "m.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match=r"m\.tif cannot be read \(it holds 2 pictures, expected one\)"):
        read_object_mask(tmp_path / "m.tif", "m")


@pytest.mark.parametrize(
    "array",
    [ONE * 0.9, ONE * 1.0, ONE * 255.0, ONE.astype(np.int64), (ONE * 255.0).astype(np.float32), 0.4 + 0.2 * ONE],
    ids=["0/0.9", "0.0/1.0", "0.0/255.0", "int64", "float32", "soft"],
)
def test_arrays_of_other_types_too(array):
    np.testing.assert_array_equal(object_mask(array, "m"), ONE)


def test_soft_masks_are_cut_at_half():
    np.testing.assert_array_equal(object_mask(SOFT, "m"), SOFT >= 128)
    deep = SOFT.astype(np.uint16) * 257
    np.testing.assert_array_equal(object_mask(deep, "m"), SOFT >= 128)
    np.testing.assert_array_equal(object_mask(SOFT / 255, "m"), np.rint(SOFT) >= 128)
    # A red one too, whose edge has many reds.
    np.testing.assert_array_equal(object_mask(stacked(SOFT, SOFT // 20, 0 * SOFT), "m"), SOFT >= 128)
    # Far more dim pixels than bright ones, but more shades than there can be classes.
    rows, columns = np.indices((60, 60))
    glow = (255 * np.exp(-((rows - 30) ** 2 + (columns - 30) ** 2) / 200)).astype(np.uint8)
    assert (glow >= 128).sum() < ((glow > 0) & (glow < 64)).sum()
    np.testing.assert_array_equal(object_mask(glow, "m"), glow >= 128)


def test_a_jpeg_is_taken(tmp_path):
    Image.fromarray(ONE.repeat(4, 0).repeat(4, 1) * 255).save(tmp_path / "m.jpg", quality=75)
    np.testing.assert_array_equal(read_object_mask(tmp_path / "m.jpg", "m"), ONE.repeat(4, 0).repeat(4, 1))


@pytest.mark.parametrize("value", [1, 5, 63])
def test_255_beside_a_small_number_is_ignored(value):
    mask = ONE * np.uint8(value)
    mask[13:] = 255
    expected = ONE.copy()
    expected[13:] = 255
    np.testing.assert_array_equal(object_mask(mask, "m"), expected)
    if value == 1:
        full = np.where(mask == 0, np.uint8(255), mask)
        np.testing.assert_array_equal(object_mask(full, "m"), np.where(BLOB, 1, 255))


@pytest.mark.parametrize("full", [1, 255, 65535])
@pytest.mark.parametrize("stray", [(0, 1, 1), (1, 0, 0), (3, 15, 2)])
def test_a_stray_pixel_of_nearly_black_is_black(full, stray):
    mask = np.dstack([ONE.astype(np.uint16 if full > 255 else np.uint8) * full] * 3)
    unit = 257 if full > 255 else 1
    mask[0, 0] = np.multiply(stray, unit)
    np.testing.assert_array_equal(object_mask(mask, "m"), ONE)
    coloured = mask * np.array([1, 1, 0], mask.dtype)
    coloured[0, 0] = np.multiply(stray, unit)
    if full > 1:
        np.testing.assert_array_equal(object_mask(coloured, "m"), ONE)


def test_what_is_all_nearly_black_are_numbers():
    mask = np.zeros((*ONE.shape, 3), np.uint8)
    mask[BLOB] = (0, 1, 1)
    np.testing.assert_array_equal(object_mask(mask, "m"), ONE)
    mask[0] = (2, 0, 0)
    with pytest.raises(ValueError, match=r"^m holds 2 classes \(1, 2\)"):
        object_mask(mask, "m")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_stray_number_does_not_make_the_object_ignored(channels):
    big = ONE.repeat(20, 0).repeat(20, 1)
    mask = big * np.uint8(255)
    mask[0, :2] = 1
    given = mask if channels == 1 else np.dstack([mask] * 3)
    np.testing.assert_array_equal(object_mask(given, "m"), big)
    mask[0, :200] = 1  # an object, and what is ignored
    assert (object_mask(mask, "m") == 1).sum() == 200


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (1, 1), (255, 1)])
def test_one_value_alone(value, expected):
    assert (object_mask(np.full((4, 5), value, dtype=np.uint8), "m") == expected).all()


@pytest.mark.parametrize(
    "mask",
    [index_mask(0, 1, 2), index_mask(1, 2), index_mask(0, 1, 2, 3, 255), index_mask(0, 15, 127), index_mask(0, 7, 140)],
    ids=["0-2", "1-2", "with ignored", "up to 127", "beyond"],
)
def test_several_classes_are_refused(mask):
    with pytest.raises(ValueError, match=r"^m holds \d classes \(\d.*\): expected one, give each class its own mask$"):
        object_mask(mask, "m")


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (palette(index_mask(0, 200, 201), voc_palette()), r"holds 2 classes \(200, 201\)"),
        (palette(index_mask(0, 1, 8), voc_palette()), r"holds 2 classes \(1, 8\)"),  # two reds, by VOC's colours
        (palette(index_mask(0, 1, 2, 255), voc_palette()), r"holds 3 classes \(1, 2, 255\)"),
        (palette(BANDS, [0, 0, 0, 200, 0, 0, 0, 200, 0]), "holds several colours: expected one on black"),
        (palette(BANDS, [0, 0, 0, 0, 0, 80, 250, 0, 0]), "holds several colours"),  # one of them dim
        (palette(BANDS, [0, 0, 0, 200, 0, 0, 0, 200, 0], transparency=0), "holds several colours"),
        (palette(ONE, [255, 255, 255, 200, 0, 0]), "holds several colours"),  # on white
        (palette(ONE, [0] * 768), "holds 2 values and a palette that shows them in one colour"),
        (palette(BANDS, list(np.repeat(range(256), 3))), r"holds 2 classes \(1, 2\)"),
    ],
)
def test_several_classes_in_a_palette_are_refused(mask, message):
    with pytest.raises(ValueError, match=f"^m {message}"):
        pil_object_mask(mask, "m")


WHITE_LAST = [0, 0, 0, 200, 0, 0, *[0] * 759, 255, 255, 255]


@pytest.mark.parametrize("colours", [voc_palette(), WHITE_LAST], ids=["VOC", "white"])
def test_255_beside_a_number_in_another_colour_is_ignored(colours):
    mask = ONE.copy()
    mask[13:] = 255
    np.testing.assert_array_equal(pil_object_mask(palette(mask, colours), "m"), mask)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (stacked(ONE * 255, (1 - ONE) * 255, 0 * ONE), "m holds several colours: expected one on black"),
        (np.zeros((4, 4, 7), dtype=np.uint8), "m has 7 channels: expected one, or RGB or RGBA"),
        (np.full((4, 4), -1), "m holds values from -1 to -1: expected 8 or 16 bits"),
        (np.full((4, 4), 70000), "m holds values from 70000 to 70000"),
        (np.full((4, 4), 1.5), r"m holds floats from 1.5 to 1.5: expected 8 or 16 bits, or shares in \[0, 1\]"),
        (np.full((4, 4), np.nan), "m holds floats from nan to nan"),
    ],
)
def test_what_is_no_mask_is_refused(array, message):
    with pytest.raises(ValueError, match=message):
        object_mask(array, "m")


@pytest.mark.parametrize("value", range(1, 9))
def test_a_mask_with_an_orientation_is_turned_by_it(tmp_path, value):
    exif = Image.Exif()
    exif[0x0112] = value
    Image.fromarray(ONE * 255).save(tmp_path / "m.png", exif=exif)
    np.testing.assert_array_equal(read_object_mask(tmp_path / "m.png", "m"), turn(ONE, value))
