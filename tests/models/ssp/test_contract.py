from __future__ import annotations

import pytest
import torch

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.backbones.prepare import prepare_trunk
from hdmnet.models.ssp.model import SSP
from tests.contracts import MethodContract, random_norms


class TestSSP(MethodContract):
    ignore_is_background = False

    @pytest.fixture
    def method(self):
        torch.manual_seed(0)
        backbone = random_norms(build_backbone("resnet_narrow", dilation="torchvision"))
        return SSP(encoder=prepare_trunk(backbone, layers=[3], before_relu=True, trainable=[2, 3]))
