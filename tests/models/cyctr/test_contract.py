from __future__ import annotations

import pytest
import torch

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.cyctr.loss import CyCTRLoss
from hdmnet.models.cyctr.model import CyCTR
from tests.contracts import MethodContract, random_norms


class TestCyCTR(MethodContract):
    size = (57, 66)  # a position of the features lies on the pixels of 255
    ignore_is_background = False

    @pytest.fixture
    def method(self):
        torch.manual_seed(0)
        backbone = random_norms(build_backbone("resnet_narrow", dilation="torchvision"))
        return CyCTR(encoder=backbone, channels=32, num_taken=20)

    def loss(self, output, target):
        return CyCTRLoss()(output, target)["loss"]  # the supports' part learns by the queries' masks
