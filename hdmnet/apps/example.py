"""Drawn pictures to try the segmenter on, for users who have none at hand."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from hdmnet.data.datasets.shapes.dataset import ShapesDataset
from hdmnet.runtime.atomic import replacing

CLASS = "quartered leaf"
NUM_QUERIES = 3
SIDE = 385  # pixels


def write_example(folder: Path) -> tuple[Path, Path, list[Path]]:
    """Draw pictures of the embedded data set, as large as photographs are to the network.

    Args:
        folder: Where to; made if needed, files of the same name are replaced.

    Returns:
        A picture with `CLASS` among other objects, its mask (0/255), and `NUM_QUERIES` others that hold one too.
    """
    dataset = ShapesDataset(picture_size=SIDE)
    value = dataset.class_names.index(CLASS) + 1
    holding = (one for one in dataset.ids("val") if (dataset.read_class_mask(one, value) == 1).any())
    first, *others = islice(holding, 1 + NUM_QUERIES)
    folder.mkdir(parents=True, exist_ok=True)
    queries = [folder / f"query_{number}.png" for number in range(1, 1 + NUM_QUERIES)]
    support, mask = folder / "support.png", folder / "support_mask.png"
    contents = {path: dataset.read_image(one) for path, one in zip(queries, others, strict=True)}
    contents |= {support: dataset.read_image(first)}
    contents |= {mask: (dataset.read_class_mask(first, value) == 1) * np.uint8(255)}
    for path, array in contents.items():
        with replacing(path) as temporary:
            Image.fromarray(array).save(temporary, format="PNG")
    return support, mask, queries
