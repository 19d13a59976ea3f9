from __future__ import annotations

import pytest
import torch

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.base_learner import BaseLearner
from hdmnet.models.hdmnet.baseline import build_baseline
from hdmnet.models.hdmnet.model import build_hdmnet
from tests.contracts import MethodContract


@pytest.fixture
def learner():
    torch.manual_seed(0)
    return BaseLearner(backbone=build_backbone("resnet_narrow"), num_base=4, feature_channels=16)


class TestHDMNet(MethodContract):
    @pytest.fixture
    def method(self, learner):
        return build_hdmnet(learner)


class TestBaseline(MethodContract):
    @pytest.fixture
    def method(self, learner):
        return build_baseline(learner, ensemble=True)
