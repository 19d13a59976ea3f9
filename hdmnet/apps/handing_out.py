"""The page's downloads from a folder of labelled pictures: a COCO JSON, a ZIP of all formats, pictures of its state.

Dimension letters: H0 W0 size of a picture as a viewer shows it, h w size at which it is shown on the page.
"""

from __future__ import annotations

import json
import logging
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from hdmnet.apps.label_writers import WRITERS, LabelWriters, link
from hdmnet.apps.segmenter import Prediction
from hdmnet.data.io.masks import write_mask
from hdmnet.runtime.errors import InputError, user_message
from hdmnet.visual.mask_sheet import draw_cell, draw_sheet
from hdmnet.visual.overlay import class_colours, draw_overlay

if TYPE_CHECKING:
    from PIL import Image

    from hdmnet.apps.label_folder import LabelFolder
    from hdmnet.data.io.arrays import UInt8Array

log = logging.getLogger(__name__)

_THUMBNAIL = 200  # px, the longest side


def draw_thumbnail(folder: LabelFolder, name: str) -> UInt8Array:
    """A picture with its marks, small, (h, w, 3) uint8 RGB."""
    drawn = draw_overlay(folder.shown(name), folder.shown_mask(name), class_colours())
    scale = min(1.0, _THUMBNAIL / max(drawn.shape[:2]))
    width, height = (max(1, round(length * scale)) for length in drawn.shape[1::-1])
    return np.asarray(cv2.resize(drawn, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def draw_overview(folder: LabelFolder, pictures: Sequence[Mapping[str, Any]]) -> Image.Image:
    """All pictures with their marks on a sheet, in the order of `Labelling.state`'s pictures, which are given.

    Raises:
        ValueError: There is none.
    """
    if not pictures:
        raise InputError("there is no picture to draw: add some first")
    cells = []
    for one in pictures:
        if one["state"] == "error" and one["size"] == [1, 1]:  # it cannot be read
            picture, mask = np.full((1, 1, 3), 128, dtype=np.uint8), np.zeros((1, 1), dtype=np.uint8)
        else:
            picture, mask = folder.shown(one["name"]), folder.shown_mask(one["name"])
        shares = [(label, float((mask == value).mean())) for value, label in enumerate(folder.classes, start=1)]
        head = {"labelled": "right", "waiting": "not searched", "error": "error"}.get(one["state"])
        cells.append(draw_cell(one["name"], head or f"{one['certainty']:.2f}", shares, picture, mask, class_colours()))
    return draw_sheet(cells, f"{len(cells):,} pictures; certainty, name, what is marked or was found")


def export_coco(folder: LabelFolder) -> bytes:
    """All marks as a COCO JSON; raises ValueError where there are none."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch).resolve()
        _write_labels(folder, place, ["coco"])
        content = json.loads((place / "coco" / "annotations.json").read_text(encoding="utf-8"))
    content["info"]["image_folder"] = str(folder.root / "images")
    return json.dumps(content, ensure_ascii=False).encode()


def export_zip(folder: LabelFolder, file: Any, *, pictures: bool) -> None:
    """Write all marks in every format to a ZIP file, with or without pictures where formats want them.

    Raises:
        ValueError: There are no marks.
    """
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch).resolve()
        _write_labels(folder, place, list(WRITERS))
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
            for path in sorted(place.rglob("*")):
                is_picture = path.parent.name in ("images", "JPEGImages")
                if path.is_file() and (pictures or not is_picture):
                    kind = zipfile.ZIP_STORED if is_picture else None  # pictures do not shrink
                    packed.write(path, path.relative_to(place), kind)


def _write_labels(folder: LabelFolder, place: Path, formats: Sequence[str]) -> None:
    """Write what is marked, else what was found, in some formats, as if `place` held the pictures in images/."""
    names = folder.names()
    for name in names:
        link(folder.picture(name), place / "images" / name)
    paths = [place / "images" / name for name in names]
    if not paths or not folder.classes:
        raise InputError("there is nothing to download yet: add pictures and mark an object in one")
    writers = LabelWriters(place, formats, folder.classes, paths)
    for name, path in zip(names, paths, strict=True):
        try:
            prediction = _marks(folder, name)
        except (ValueError, OSError) as error:
            if (message := user_message(error)) is None:
                raise
            log.warning("%s is not handed out: %s", name, message)
            continue
        if prediction is not None:
            writers.add(path, path.stem, prediction)
            if len(formats) > 1:
                write_mask(place / "masks" / f"{path.stem}.png", prediction.mask)
    if not writers.close():
        raise InputError("there is nothing to download yet: mark an object in a picture, and say that it is right")
    if len(formats) > 1:
        (place / "classes.txt").write_text("".join(f"{name}\n" for name in folder.classes), encoding="utf-8")


def _marks(folder: LabelFolder, name: str) -> Prediction | None:
    """What is marked in a picture, sure; else what was found; None where it was not searched."""
    mask = folder.mask(name)
    found = folder.found(name) if mask is None else None
    if mask is not None:
        probability = np.broadcast_to(np.ones((), dtype=np.float32), mask.shape)
    elif found is not None:
        mask = found.mask
        whole = cv2.resize(found.probability, mask.shape[::-1], interpolation=cv2.INTER_LINEAR)
        probability = np.asarray(whole / np.float32(255), dtype=np.float32)
    else:
        return None
    # One array for all classes: of each only what its own pixels hold is looked at.
    return Prediction(mask, dict.fromkeys(folder.classes, probability))
