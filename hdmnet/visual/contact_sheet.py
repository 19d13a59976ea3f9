"""A contact sheet of a data set: some pictures of each class, the class's mask laid over, beside its name.

Shows at a glance what no program can find: names that are shifted by one, masks that lie beside their objects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from hdmnet.runtime.atomic import replacing
from hdmnet.visual.colours import TRUTH
from hdmnet.visual.episode_grid import FAINT, INK, PAPER, Picture, font, with_mask

if TYPE_CHECKING:
    from hdmnet.data.datasets.base import SegmentationDataset

PER_CLASS = 3
_COLUMNS, _ROWS = 3, 12  # classes on a sheet
_WIDTH, _HEIGHT, _GAP, _TITLE, _MARGIN = 150, 112, 6, 22, 14  # of a picture's place, and around it


def draw_contact_sheets(dataset: SegmentationDataset, areas: Mapping[str, Mapping[int, int]], path: Path) -> list[Path]:
    """Draw every class of a data set, and write as many sheets as that takes.

    Args:
        dataset: The data set.
        areas: Pixels, by class value, of each image.
        path: The PNG; of several sheets `NAME_1.png`, `NAME_2.png` and so on. Those of an earlier call are removed.

    Returns:
        The files.

    Raises:
        ValueError: A picture or a mask cannot be read, as is FileNotFoundError.
        OSError: The folder cannot be written to.
    """
    for earlier in (path, *path.parent.glob(f"{path.stem}_[0-9]*{path.suffix}")):
        earlier.unlink(missing_ok=True)
    by_class: dict[int, list[str]] = {value: [] for value in range(1, len(dataset.class_names) + 1)}
    for image_id, own in areas.items():
        for value in own:
            by_class[value].append(image_id)
    for value, ids in by_class.items():
        ids.sort(key=lambda image_id: (-areas[image_id][value], image_id))
    values, size = list(by_class), _COLUMNS * _ROWS
    parts = [values[start : start + size] for start in range(0, len(values), size)]
    files = []
    for number, part in enumerate(parts, start=1):
        sheet = _draw_sheet(dataset, {value: by_class[value] for value in part})
        file = path if len(parts) == 1 else path.with_stem(f"{path.stem}_{number}")
        with replacing(file) as temporary:
            Image.fromarray(sheet).save(temporary, format="png", optimize=True)
        files.append(file)
    return files


def _draw_sheet(dataset: SegmentationDataset, classes: Mapping[int, list[str]]) -> Picture:
    """One sheet (H, W, 3): of each class its images, those with most of it first."""
    across = min(_COLUMNS, len(classes))
    cell_width, cell_height = PER_CLASS * (_WIDTH + _GAP) + _MARGIN, _TITLE + _HEIGHT + _MARGIN
    size = (across * cell_width + _MARGIN, math.ceil(len(classes) / across) * cell_height + _MARGIN)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, (value, ids) in enumerate(classes.items()):
        left, top = _MARGIN + place % across * cell_width, _MARGIN + place // across * cell_height
        bold, images = font(14, bold=True), f"{len(ids):,} image{'' if len(ids) == 1 else 's'}"
        title = f"{value}  {dataset.class_names[value - 1]}"
        while bold.getlength(title) > cell_width - 3 * _MARGIN - font(12).getlength(images):
            title = f"{title.removesuffix('…')[:-1]}…"
        draw.text((left, top), title, fill=INK, font=bold)
        draw.text((left + bold.getlength(title) + 10, top + 2), images, fill=FAINT, font=font(12))
        for number, image_id in enumerate(spread(ids)):
            panel = _draw_picture(dataset, image_id, value)
            sheet.paste(Image.fromarray(panel), (left + number * (_WIDTH + _GAP), top + _TITLE))
    return np.asarray(sheet)


def spread(ids: list[str]) -> list[str]:
    """Of images in order of a class's area the first, and others at equal distances: large objects and small ones."""
    return [ids[number * len(ids) // PER_CLASS] for number in range(PER_CLASS)] if len(ids) > PER_CLASS else ids


def _draw_picture(dataset: SegmentationDataset, image_id: str, value: int) -> Picture:
    """A picture with the mask of a class, at most (_HEIGHT, _WIDTH, 3)."""
    image, mask = dataset.read_image(image_id), dataset.read_class_mask(image_id, value)
    scale = min(_HEIGHT / image.shape[0], _WIDTH / image.shape[1])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    return with_mask(image, mask, TRUTH, (width, height), line=1)
