from __future__ import annotations

import pytest
import torch

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.backbones.prepare import prepare_trunk
from hdmnet.models.hsnet.model import HSNet
from tests.contracts import MethodContract


class TestHSNet(MethodContract):
    @pytest.fixture
    def method(self):
        torch.manual_seed(0)
        backbone = build_backbone("resnet_narrow", dilation=None)
        return HSNet(
            encoder=prepare_trunk(backbone, layers=[2, 3, 4], every_block=True, before_relu=True, trainable=[])
        )
