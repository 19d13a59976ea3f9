"""Tiny archives of the cross-domain benchmark as their authors pack them, made ready by the project's own script."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from scripts.data import prepare_cross_domain

STRIPE, SIDE = 8, 96  # pixels: each of the 6x6 tiles of 16 has two stripes


def _save(path: Path, pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path)


def _noise(seed: int, *shape: int):
    return np.random.default_rng(seed).integers(0, 256, shape)


def write_deepglobe(root: Path) -> Path:
    """Two pictures of vertical stripes of all seven colours, one after another, and one of a single colour."""
    colours = np.array([*prepare_cross_domain.COLOURS.values(), (0, 0, 0)])
    for number in range(3):
        stripes = (np.arange(SIDE) // STRIPE + 3 * number) % len(colours) if number < 2 else np.zeros(SIDE, dtype=int)
        _save(root / "train" / f"{number}0_mask.png", np.tile(colours[stripes], (SIDE, 1, 1)))
        _save(root / "train" / f"{number}0_sat.jpg", _noise(number, SIDE, SIDE, 3))
    return root


def write_isic(root: Path) -> Path:
    """Three pictures of each of the three classes, another size each, and the list of classes."""
    lines = ["ID,Class"]
    for number in range(9):
        name, height, width = f"ISIC_{number:07d}", 40 + number, 60
        mask = np.zeros((height, width))
        mask[10:30, 5 + number : 35] = 255
        _save(root / "ISIC2018_Task1-2_Training_Input" / f"{name}.jpg", _noise(number, height, width, 3))
        _save(root / "ISIC2018_Task1_Training_GroundTruth" / f"{name}_segmentation.png", mask)
        lines.append(f"{name},{('nevus', 'melanoma', 'seborrheic keratosis')[number % 3]}")
    (root / "class_id.csv").write_text("\n".join(lines) + "\n")
    return root


def write_chest_xray(root: Path) -> Path:
    """Three grey pictures with a mask of the Shenzhen set, one without, one of Montgomery's."""
    for number in range(5):
        name = f"CHNCXR_{number:04d}_0" if number < 4 else "MCUCXR_0001_0"
        _save(root / "CXR_png" / f"{name}.png", _noise(number, 50, 70))
        mask = np.where(np.hypot(*np.mgrid[-25:25, -35:35]) < 15 + number, 255, 3)  # nearly black is no lung
        if number != 3:
            _save(root / "masks" / (f"{name}_mask.png" if number < 4 else f"{name}.png"), mask)
    return root


WRITERS = {"deepglobe": write_deepglobe, "isic": write_isic, "chest_xray": write_chest_xray}


def prepare(dataset: str, folder: Path, root: Path, *words: str) -> int:
    """Write an archive to `folder` and make it ready in `root`; gives the script's exit code."""
    source = WRITERS[dataset](folder)
    more = ["--classes", str(source / "class_id.csv")] if dataset == "isic" else []
    return prepare_cross_domain.main([dataset, str(source), "--root", str(root), "--workers", "1", *more, *words])
