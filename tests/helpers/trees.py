"""Tiny real-format VOC and COCO trees, made by the project's own scripts; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

from scripts.data import prepare_coco, write_shapes

MIN_AREA = 128  # px; the pictures are at most 96 x 128


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
