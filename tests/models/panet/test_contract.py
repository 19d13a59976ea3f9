from __future__ import annotations

import pytest
import torch

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.backbones.prepare import prepare_trunk
from hdmnet.models.panet.model import PANet
from tests.contracts import MethodContract, random_norms


class TestPANet(MethodContract):
    @pytest.fixture
    def method(self):
        torch.manual_seed(0)
        backbone = random_norms(build_backbone("resnet_narrow"))
        return PANet(encoder=prepare_trunk(backbone, layers=[4], before_relu=True, trainable="all"))
