"""Features of views, each encoded once and kept as a file: the trunk costs more than all training after it."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from photos import View
from torch import Tensor
from tqdm import tqdm

from hdmnet.data.io.arrays import UInt8Array
from hdmnet.data.normalise import normalise
from hdmnet.models.correlation.model import Correlation


class Features:
    """Units of views by their names, see `hdmnet.models.similarity.unit_levels`, as half precision.

    Args:
        folder: Where they are kept, from one run to the next: 3 MB each at 321 pixels, so a folder in memory does best.
        model: Whose trunk encodes them.
        key: What else they depend on: trunk and levels.
        mean: RGB mean of the normalisation, in [0, 1].
        std: RGB standard deviation.
    """

    def __init__(self, folder: Path, model: Correlation, key: str, mean: Sequence[float], std: Sequence[float]) -> None:
        self.folder = folder / hashlib.sha256(key.encode()).hexdigest()[:12]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model, self.mean, self.std = model, mean, std

    def encode(self, views: Sequence[View]) -> dict[str, UInt8Array]:
        """Encode what is not there yet; returns the labels (S, S) of each view by its name."""
        labels = {}
        for view in tqdm(views, desc="encode", mininterval=20):
            file = self._file(view.name)
            if not file.exists() or not file.with_suffix(".labels.npy").exists():
                image, label = view.read()
                units = self.model.encode_query(self.input([image])).units[0]
                _write(file.with_suffix(".labels.npy"), label)
                _write(file, units.half().numpy())
            labels[view.name] = np.load(file.with_suffix(".labels.npy"))
        return labels

    def input(self, images: Sequence[UInt8Array]) -> Tensor:
        """Pictures (H, W, 3) uint8 as (B, 3, H, W) float32, normalised."""
        stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        return normalise(stacked, self.mean, self.std)

    def load(self, names: Sequence[str]) -> Tensor:
        """Units (B, C, h, w) float32 of views."""
        return torch.stack([torch.from_numpy(np.load(self._file(name))).float() for name in names])

    def _file(self, name: str) -> Path:
        return self.folder / f"{name.replace('/', '_')}.npy"


def _write(path: Path, array: NDArray[np.generic]) -> None:
    """Whole or not at all, also where another process writes the same."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}")
    with temporary.open("wb") as file:
        np.save(file, array)
    temporary.replace(path)
