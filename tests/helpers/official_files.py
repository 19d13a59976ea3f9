"""Files as the official release writes them, and what was recorded of its code."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import torch

from hdmnet.models.hdmnet.official import official_key
from tests.helpers import official_recipe as recipe
from tests.helpers import release_cases

GOLDEN = Path(__file__).parents[1] / "models" / "hdmnet" / "golden"


def read_golden(name):
    """A file of recorded values: arrays by name (.npz) or plain containers (.json, .json.gz)."""
    path = GOLDEN / name
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {key: arrays[key] for key in arrays.files}
    data = path.read_bytes()
    return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)


def fill(model, name_of=official_key):
    """Fill a model with the recipe's weights; returns them by official key."""
    return release_cases.fill(model, recipe.fill_state_dict, name_of)


def make_state(shapes, *, tiny=False):
    """Tensors of the given shapes whose file is small: views of one storage (or, tiny, of one number)."""
    if tiny:
        return {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}
    sizes = {key: int(torch.tensor(shape).prod()) if shape else 1 for key, shape in shapes.items()}
    storage = torch.randn(max(sizes.values()) + len(sizes))
    state = {}
    for offset, (key, shape) in enumerate(shapes.items()):
        counter = key.endswith("num_batches_tracked")
        state[key] = torch.tensor(offset) if counter else storage[offset : offset + sizes[key]].view(shape)
    return state


def write_official(path, variant):
    """Write a checkpoint of the release, its weights those of the recipe."""
    shapes = {key: tuple(shape) for key, shape in read_golden("keys.json.gz")[variant]["state_dict"].items()}
    state = {key: torch.as_tensor(value) for key, value in recipe.fill_state_dict(shapes).items()}
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    return path
