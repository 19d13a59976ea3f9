"""Settings that every test needs: one thread a process, no network, no outside settings."""

from __future__ import annotations

import copy
import os
import pwd
import sys

# Before anything imports NumPy, OpenCV or PyTorch: the tests run on several processes, and small tensors gain nothing
# from threads.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
# What is imported is compiled once and kept, whatever the environment says: each process that a test starts would
# compile PyTorch and Lightning again, which is ten seconds of computing.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it would ask the network for its newest version
os.environ["WANDB_MODE"] = "offline"

import cv2
import pytest
import torch

from hdmnet.config.schemas import register_schemas
from tests.helpers.fixtures import (  # noqa: F401 (session fixtures for every file)
    data_dir,
    finished_run,
    first_run,
    raw_data_dir,
    start,
)

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
def no_home(monkeypatch, tmp_path):
    """As a container's user without an entry in the password database."""

    def unknown(_):
        raise KeyError

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def compose_config():
    """Compose a door's config: `compose_config("train", "dataset=coco", "fold=2")`."""
    from hydra import compose, initialize_config_dir
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from hdmnet.cli.errors import is_group
    from hdmnet.config.paths import conf_dir

    def compose_door(door, *overrides):
        # What groups are chosen is composed once a process, as it takes a tenth of a second; values are set in a copy.
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        groups = [one.input_line for one in parsed if one.package is not None or is_group(one.key_or_group)]
        key = (str(conf_dir()), os.environ.get("HDMNET_CONF"), door, *groups)
        if key not in _composed:
            with initialize_config_dir(config_dir=key[0], version_base="1.3"):
                _composed[key] = compose(door, overrides=groups)
        cfg = copy.deepcopy(_composed[key])
        ConfigLoaderImpl._apply_overrides_to_config([one for one in parsed if one.input_line not in groups], cfg)
        return cfg

    return compose_door
