"""`model=correlation` as a few-shot method."""

from __future__ import annotations

import pytest
import torch

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.correlation.model import Correlation
from tests.contracts import MethodContract


class TestCorrelation(MethodContract):
    @pytest.fixture
    def method(self):
        torch.manual_seed(0)
        return Correlation(encoder=build_backbone("resnet_narrow"))


class TestFirstHeadAlone(MethodContract):
    @pytest.fixture
    def method(self):
        torch.manual_seed(0)
        return Correlation(encoder=build_backbone("resnet_narrow"), self_support=False, levels=[-2, -1])
