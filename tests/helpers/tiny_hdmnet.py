"""A small HDMNet with random weights, and episodes for it."""

from __future__ import annotations

import torch

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.base_learner import BaseLearner
from hdmnet.models.hdmnet.model import build_hdmnet


def make_model(backbone="resnet_narrow", **changes):
    torch.manual_seed(0)
    learner = BaseLearner(backbone=build_backbone(backbone), num_base=4, feature_channels=16)
    return build_hdmnet(learner, **changes).eval()


def make_episode(shots=1, size=(49, 65), batch=2):
    torch.manual_seed(shots)
    mask = (torch.rand(batch, shots, *size) > 0.6).to(torch.uint8)
    return torch.randn(batch, 3, *size), torch.randn(batch, shots, 3, *size), mask
