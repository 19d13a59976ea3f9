"""Recorded cases of a release in a test folder's golden/: models, inputs, figures, keys, and what is compared."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hdmnet.models.backbones.base import FeatureInfo, SequentialBackbone
from hdmnet.models.losses import SegmentationLoss
from hdmnet.models.method import FewShotMethod
from tests.helpers.official_recipe import checksum


def read_golden(folder: Path):
    """The arrays, and the facts."""
    with np.load(folder / "recorded.npz") as recorded:
        arrays = {key: torch.from_numpy(recorded[key]) for key in recorded.files}
    return arrays, json.loads(gzip.decompress((folder / "facts.json.gz").read_bytes()))


@dataclass
class Case:
    """One recorded case: our model filled, and its inputs; of `inputs` as arrays: x, s_x, s_y and y_m."""

    letter: str
    model: FewShotMethod
    inputs: dict
    backbone: str = ""

    def __post_init__(self):
        query, supports, masks, self.target = (torch.from_numpy(self.inputs[k]) for k in ("x", "s_x", "s_y", "y_m"))
        self.episode = (query, supports, masks)

    def __repr__(self):
        return self.letter

    def own(self, arrays):
        """What was recorded of this case, by name."""
        return {key.split(".", 1)[1]: value for key, value in arrays.items() if key.startswith(f"{self.letter}.")}


def fill(model, fill_state_dict, official_key):
    """Fill a model with a recipe's weights; returns them by official key."""
    names = {key: official_key(key) for key in model.state_dict()}
    state = fill_state_dict({names[key]: tuple(value.shape) for key, value in model.state_dict().items()})
    model.load_state_dict({key: torch.from_numpy(np.asarray(state[name])) for key, name in names.items()})
    return state


def make_small_state(shapes):
    """A state dict of the release whose file is small."""
    return {
        key: torch.tensor(n) if key.endswith("tracked") else torch.tensor(0.25 * n).expand(shape)
        for n, (key, shape) in enumerate(shapes.items())
    }


def save(content, path):
    torch.save(content, path)
    return path


def close(ours, recorded, atol):
    torch.testing.assert_close(ours.detach(), recorded, rtol=0, atol=atol)


def share_of_other_pixels(prediction, packed):
    """Of a prediction, and of what was recorded of it, packed into bits."""
    recorded = np.unpackbits(packed.numpy())[: prediction.numel()]
    return float((prediction.flatten().numpy() != recorded).mean())


def without_dropout(model):
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.eval()
    return model


class _Layer2(nn.Module):
    """Hands the features of layer 2, given as the first channels of a "picture", on."""

    def forward(self, pictures):
        self.layer3 = pictures[:, 512:]
        return pictures[:, :512]


class _Layer3(nn.Module):
    """Those of layer 3, the other channels."""

    def __init__(self, layer2):
        super().__init__()
        self.given = [layer2]

    def forward(self, layer2):
        return self.given[0].layer3


class _Layer4(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, layer3):
        return self.scale * torch.cat([layer3, layer3], dim=1)


def given_layers(scale):
    """A ResNet-50's three levels whose layers 2 and 3 are given as one "picture"; layer 4 is layer 3 twice, scaled."""
    layer2 = _Layer2()
    infos = (FeatureInfo(512, 8), FeatureInfo(1024, 8), FeatureInfo(2048, 8))
    return SequentialBackbone([layer2, _Layer3(layer2), _Layer4(scale)], infos)


def norm(parameters):
    """Length of the gradient of parameters, in 64 bits."""
    return sum(p.grad.double().pow(2).sum().item() for p in parameters) ** 0.5


def check_inputs(inputs, recorded):
    assert {key: checksum(value) for key, value in inputs.items()}.items() <= recorded["input_sha256_16"].items()


def check_keys(model, official_key, shapes, learnable, *, left_out=lambda key: False):
    """Keys and shapes of the release, but for those it has and we compute, and what learns of them."""
    ours = {official_key(key): list(value.shape) for key, value in model.state_dict().items()}
    assert len(ours) == len(model.state_dict())
    assert ours == {key: shape for key, shape in shapes.items() if not left_out(key)}
    assert {official_key(key) for key, p in model.named_parameters() if p.requires_grad} == set(learnable)


def check_state(model, official_key, state):
    """A model that was read from a file has its values, and is in evaluation mode."""
    assert not model.training
    assert all(torch.equal(value, state[official_key(key)]) for key, value in model.state_dict().items())


def check_training(model, episode, mask, recorded, *, official_key, optimizer, norms, per_parameter, after=5e-5):
    """Loss, gradients, and loss after a step of the release's optimiser; its loss counts 255 as background."""
    loss = SegmentationLoss(border="background")
    optimizer = optimizer(model.parameter_groups(1e-3), lr=1e-3)
    found = loss(model(*episode), mask)
    assert found["loss"].item() == pytest.approx(recorded["loss"], abs=1e-5)
    found["loss"].backward()
    ours = {official_key(key): norm([p]) for key, p in model.named_parameters() if p.requires_grad}
    assert ours == pytest.approx(recorded["grad_norm_per_parameter"], rel=per_parameter, abs=1e-7)
    groups = {}
    for key, length in ours.items():
        name = next(name for name in recorded["grad_norm"] if f".{name}." in f"{key}.")
        groups[name] = groups.get(name, 0) + length**2
    assert {key: square**0.5 for key, square in groups.items()} == pytest.approx(recorded["grad_norm"], rel=norms)
    optimizer.step()
    assert loss(model(*episode), mask)["loss"].item() == pytest.approx(recorded["loss_after_step"], abs=after)


def refused(load, content, path, match):
    """A file of this content is refused in one line."""
    with pytest.raises(ValueError, match=match) as error:
        load(save(content, path))
    assert "\n" not in str(error.value)
