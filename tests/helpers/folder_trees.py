"""Writes the same pictures and masks as folders of each layout that `dataset=folder` takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from hdmnet.data.masks import write_mask
from hdmnet.data.shapes import ShapesSource

UInt8Array = NDArray[np.uint8]
#: Picture (H, W, 3) and mask (H, W) by id.
Content = Mapping[str, tuple[UInt8Array, UInt8Array]]


def shapes_content(*, num_pictures: int, one_class: bool, side: int = 65) -> tuple[Content, tuple[str, ...]]:
    """Pictures of the embedded shapes with four classes; `one_class`: only the first object's, ids "CLASS/n".

    Returns:
        The content, ids ascending, and the names of the classes in ascending order, which is their values'.
    """
    source = ShapesSource(num_classes=4, image_size=side, num_train=num_pictures, num_val=1)
    names = sorted(source.class_names)
    lookup = np.zeros(256, dtype=np.uint8)
    for value, name in enumerate(source.class_names, start=1):
        lookup[value] = names.index(name) + 1  # 255 becomes background: not every layout has it
    content = {}
    for image_id in source.ids("train"):
        sample = source.sample(image_id)
        mask, name = lookup[sample.mask], image_id
        if one_class:
            values = [value for value in np.unique(mask).tolist() if value]
            value = values[len(content) % len(values)]
            mask = np.where(mask == value, mask, np.uint8(0))
            name = f"{names[value - 1]}/{image_id}"
        content[name] = (sample.image, mask)
    return {name: content[name] for name in sorted(content)}, tuple(names)


def _save(path: Path, array: UInt8Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write_index(root: Path, content: Content, names: tuple[str, ...]) -> None:
    """Palette PNGs and grey ones by turns."""
    for number, (name, (image, mask)) in enumerate(content.items()):
        _save(root / "images" / f"{name}.bmp", image)  # exact, and no PNG, which FSS has for masks
        write_mask(root / "masks" / f"{name}.png", mask) if number % 2 else _save(root / f"masks/{name}.png", mask)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in ("_background_", *names)))


def write_binary(root: Path, content: Content, names: tuple[str, ...]) -> None:
    """masks/CLASS/NAME.png, 0/255 and 0/1 by turns."""
    for name, (image, mask) in content.items():
        _save(root / "images" / f"{name}.bmp", image)
        for value in np.unique(mask[mask > 0]).tolist():
            _save(root / f"masks/{names[value - 1]}/{name}.png", (mask == value) * np.uint8(255 if value % 2 else 1))


def write_coco(root: Path, content: Content, names: tuple[str, ...]) -> None:
    """Compressed and uncompressed run lengths by turns; category ids with gaps, images and categories disordered."""
    images, annotations = [], []
    for number, (name, (image, mask)) in enumerate(content.items(), start=7):
        _save(root / "images" / f"{name}.bmp", image)
        images.append({"id": number, "file_name": f"{name}.bmp", "height": mask.shape[0], "width": mask.shape[1]})
        for value in np.unique(mask[mask > 0]).tolist():
            code = coco_mask.encode(np.asfortranarray(mask == value, dtype=np.uint8))
            segmentation = {"size": code["size"], "counts": code["counts"].decode()}
            entry = {"id": len(annotations), "image_id": number, "category_id": 10 * value, "iscrowd": 0}
            annotations.append(entry | {"segmentation": segmentation})
    categories = [{"id": 10 * value, "name": name} for value, name in enumerate(names, start=1)]
    content_ = {"images": images[::-1], "annotations": annotations[::-1], "categories": categories[::-1]}
    (root / "annotations.json").write_text(json.dumps(content_))


def write_fss(root: Path, content: Content, names: tuple[str, ...]) -> None:
    """CLASS/NAME.bmp and CLASS/NAME.png: grey 0/255, RGB, soft or 0/1 by turns."""
    for number, (name, (image, mask)) in enumerate(content.items()):
        _save(root / f"{name}.bmp", image)
        binary = (mask > 0).astype(np.uint8)
        soft = binary * np.uint8(128) + np.uint8(127)
        kinds = (binary * np.uint8(255), np.repeat(binary[:, :, None] * np.uint8(255), 3, axis=2), soft, binary)
        _save(root / f"{name}.png", kinds[number % 4])


WRITERS: dict[str, Callable[[Path, Content, tuple[str, ...]], None]] = {
    "index": write_index,
    "binary": write_binary,
    "coco": write_coco,
    "fss": write_fss,
}
