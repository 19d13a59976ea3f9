from __future__ import annotations

import pytest
import torch

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.pfenet.model import PFENet
from tests.contracts import MethodContract


class TestPFENet(MethodContract):
    @pytest.fixture
    def method(self):
        torch.manual_seed(0)
        return PFENet(encoder=build_backbone("resnet_narrow"), channels=16)
