"""What several files read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
GOLDEN = HERE / "hdmnet" / "golden"


def read_golden(name):
    """A file of recorded values: arrays by name (.npz) or plain containers (.json, .json.gz)."""
    path = GOLDEN / name
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {key: arrays[key] for key in arrays.files}
    data = path.read_bytes()
    return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)


@pytest.fixture(scope="session")
def golden():
    return read_golden


@pytest.fixture(scope="session")
def official_keys():
    """Keys, shapes and parameter counts of the release's eight models and four base learners, by variant."""
    return read_golden("keys.json.gz")
