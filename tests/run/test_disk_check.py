from __future__ import annotations

import logging
import os
import shutil
from collections import namedtuple

import pytest
import torch

from hdmnet.config.paths import make_paths_absolute
from hdmnet.run import build
from hdmnet.run.disk_check import check_free_disk

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def cfg(compose_config, tmp_path):
    cfg = compose_config("train", "trainer=cpu")
    make_paths_absolute(cfg, tmp_path / "not" / "yet" / "there")
    return cfg


def test_the_estimate_is_above_what_is_written(cfg, tmp_path):
    """Best, last, the last before it, and one being written, each with both moments of AdamW."""
    learner = build.build_base_learner(cfg, 15, weights=None)
    model = build.build_model(cfg, learner)
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.save({"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "one.ckpt")
    written = os.path.getsize(tmp_path / "one.ckpt")
    estimate = check_free_disk(cfg, 15) - 100_000_000
    base = 3 * sum(value.numel() * 4 for value in learner.state_dict().values())
    assert 4 * written < estimate < 1.2 * (4 * written + base + 4 * 10**6)


def test_too_little_is_refused_with_one_line(cfg, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or Usage(10**12, 10**12, 10**6))
    with pytest.raises(OSError, match=r"^the disk of .* is too small for this run: it needs about .* GB for 4 check"):
        check_free_disk(cfg, 15)
    assert asked == [tmp_path]  # the folder itself is not there yet


def test_what_is_estimated_is_logged(cfg, caplog):
    with caplog.at_level(logging.INFO):
        check_free_disk(cfg, 15)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("disk: about 0.")
