from __future__ import annotations

import pytest
import torch

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.backbones.prepare import prepare_trunk
from hdmnet.models.dcama.model import DCAMA
from tests.contracts import MethodContract


class TestDCAMA(MethodContract):
    @pytest.fixture
    def method(self):
        torch.manual_seed(0)
        backbone = build_backbone("resnet_narrow", dilation=None)
        return DCAMA(
            encoder=prepare_trunk(backbone, layers=[1, 2, 3, 4], every_block=True, before_relu=True, trainable=[])
        )
