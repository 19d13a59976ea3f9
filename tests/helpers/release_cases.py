"""Recorded cases of a release in a test folder's golden/: figures, keys, and what is compared with them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hdmnet.models.losses import SegmentationLoss


def read_golden(folder: Path):
    """The arrays, and the facts."""
    with np.load(folder / "recorded.npz") as recorded:
        arrays = {key: torch.from_numpy(recorded[key]) for key in recorded.files}
    return arrays, json.loads(gzip.decompress((folder / "facts.json.gz").read_bytes()))


def close(ours, recorded, atol):
    torch.testing.assert_close(ours.detach(), recorded, rtol=0, atol=atol)


def share_of_other_pixels(prediction, packed):
    """Of a prediction, and of what was recorded of it, packed into bits."""
    recorded = np.unpackbits(packed.numpy())[: prediction.numel()]
    return float((prediction.flatten().numpy() != recorded).mean())


def without_dropout(model):
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    return model


def check_training(model, episode, mask, recorded, *, official_key, optimizer, norms, per_parameter):
    """Loss, gradients, and loss after a step of the release's optimiser; its loss counts 255 as background."""
    loss = SegmentationLoss(border="background")
    optimizer = optimizer(model.parameter_groups(1e-3), lr=1e-3)
    found = loss(model(*episode), mask)
    assert found["loss"].item() == pytest.approx(recorded["loss"], abs=1e-5)
    found["loss"].backward()
    ours = {official_key(key): p.grad.double().norm().item() for key, p in model.named_parameters() if p.requires_grad}
    assert ours == pytest.approx(recorded["grad_norm_per_parameter"], rel=per_parameter, abs=1e-7)
    groups = {}
    for key, norm in ours.items():
        name = next(name for name in recorded["grad_norm"] if f".{name}." in f"{key}.")
        groups[name] = groups.get(name, 0) + norm**2
    assert {key: square**0.5 for key, square in groups.items()} == pytest.approx(recorded["grad_norm"], rel=norms)
    optimizer.step()
    assert loss(model(*episode), mask)["loss"].item() == pytest.approx(recorded["loss_after_step"], abs=5e-5)
