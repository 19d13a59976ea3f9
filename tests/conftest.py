"""Settings that every test needs: one thread a process, no network, no outside settings."""

from __future__ import annotations

import copy
import os

# Before anything imports NumPy, OpenCV or PyTorch: the tests run on several processes, and small tensors gain nothing
# from threads.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it would ask the network for its newest version
os.environ["WANDB_MODE"] = "offline"

import cv2
import pytest
import torch

from hdmnet.config.schemas import register_schemas
from tests.helpers.fixtures import data_dir, finished_run, first_run, start  # noqa: F401 (session fixtures for every file)

torch.set_num_threads(1)
cv2.setNumThreads(0)
register_schemas()
_composed: dict[tuple[object, ...], object] = {}


@pytest.fixture(autouse=True)
def _no_outside_settings(monkeypatch):
    """A developer's own folders must not reach the tests."""
    for variable in (
        "HDMNET_DATA",
        "HDMNET_WEIGHTS",
        "HDMNET_OUTPUT",
        "HDMNET_CONF",
        "HDMNET_EXTENSIONS",
        "HDMNET_TRACEBACK",
    ):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def compose_config():
    """Compose a door's config: `compose_config("train", "dataset=coco", "fold=2")`."""
    from hydra import compose, initialize_config_dir

    from hdmnet.config.paths import conf_dir

    def compose_door(door, *overrides):
        # Once a process: composing is a tenth of a second.
        key = (str(conf_dir()), os.environ.get("HDMNET_CONF"), door, overrides)
        if key not in _composed:
            with initialize_config_dir(config_dir=key[0], version_base="1.3"):
                _composed[key] = compose(door, overrides=list(overrides))
        return copy.deepcopy(_composed[key])

    return compose_door
