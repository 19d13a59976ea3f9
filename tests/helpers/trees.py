"""Tiny real-format trees of data sets, made by the project's own scripts where it has one; nothing is downloaded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from hdmnet.data.io.arrays import UInt8Array
from scripts.data import prepare_coco, write_shapes

MIN_AREA = 128  # px; the pictures are at most 96 x 128
FSS_TEST = ("accordion", "bus", "moon")  # of the authors' test classes
FSS_OTHERS = tuple(f"other_{letter}" for letter in "abcdefgh")


def write_voc_tree(root: Path, *, num_train: int = 40, num_val: int = 30) -> Path:
    """20 classes, enough pictures of each for one shot on every fold."""
    arguments = ["--format", "voc", "--num-train", str(num_train), "--num-val", str(num_val)]
    assert write_shapes.main([*arguments, "--image-size", "96", "128", "--output", str(root)]) == 0
    return root


def write_coco_tree(root: Path) -> Path:
    """80 classes, enough pictures of each for five shots on fold 2; masks painted from the instances JSON."""
    arguments = ["--format", "coco", "--num-train", "320", "--num-val", "200", "--image-size", "96", "128"]
    assert write_shapes.main([*arguments, "--output", str(root)]) == 0
    assert prepare_coco.main(["--root", str(root), "--workers", "1"]) == 0
    return root


def write_coco_2017_tree(root: Path, coco: Path) -> Path:
    """The pictures and JSONs of a tree by `write_coco_tree` as those of 2017 are called, without masks."""
    for split in ("train", "val"):
        (root / f"{split}2017").mkdir(parents=True)
        for path in (coco / f"{split}2014").glob("*.jpg"):
            os.link(path, root / f"{split}2017" / path.name.split("_")[-1])
        content = json.loads((coco / "annotations" / f"instances_{split}2014.json").read_text())
        for image in content["images"]:
            image["file_name"] = image["file_name"].split("_")[-1]
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return root


def write_lvis_jsons(coco_2017: Path) -> None:
    """LVIS's two JSONs into a tree by `write_coco_2017_tree`, with five training pictures in the validation."""
    contents = {}
    for split in ("train", "val"):
        content = json.loads((coco_2017 / "annotations" / f"instances_{split}2017.json").read_text())
        for image in content["images"]:
            image["coco_url"] = f"http://images.cocodataset.org/{split}2017/{image.pop('file_name')}"
            image["id"] += 10**7 * (split == "val")
        for one in content["annotations"]:
            one["image_id"] += 10**7 * (split == "val")
        crowds = {one["image_id"] for one in content["annotations"] if one.pop("iscrowd")}
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] not in crowds]
        contents[split] = content
    moved = contents["train"]["images"][:5]
    of_moved = [one for one in contents["train"]["annotations"] if one["image_id"] in {image["id"] for image in moved}]
    for key, entries in (("images", moved), ("annotations", of_moved)):
        contents["train"][key] = [one for one in contents["train"][key] if one not in entries]
        contents["val"][key] += entries
    for split, content in contents.items():
        (coco_2017 / "annotations" / f"lvis_v1_{split}.json").write_text(json.dumps(content, indent=1))


def write_fss_tree(root: Path, *, classes: tuple[str, ...] = FSS_OTHERS + FSS_TEST, side: int = 48) -> Path:
    """Class folders of ten pictures; masks by turns 0/1, 0/255, and RGBA with a soft edge."""
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for picture, (image, soft) in enumerate(_discs(number, side), start=1):
            Image.fromarray(image).save(root / name / f"{picture}.jpg")
            forms: list[Any] = [soft // 128, soft // 128 * 255, np.dstack([soft, soft, soft, np.full_like(soft, 255)])]
            Image.fromarray(forms[picture % 3]).save(root / name / f"{picture}.png")
    return root


def _discs(number: int, side: int) -> Iterator[tuple[UInt8Array, UInt8Array]]:
    """Ten pictures (side, side, 3) of a class's disc, each with its mask (side, side) from 0 to 255."""
    generator = np.random.default_rng(number)
    colour = generator.integers(0, 255, 3)
    for _ in range(10):
        row, column = generator.integers(side // 3, side - side // 3, 2)
        distance = np.hypot(*np.ogrid[-row : side - row, -column : side - column])
        soft = (255 * np.clip(side / 4 - distance + 0.5, 0, 1)).astype(np.uint8)
        noise = generator.integers(0, 255, (side, side, 3))
        yield cv2.blur(np.where(soft[..., None] > 127, colour, noise).astype(np.uint8), (3, 3)), soft
