"""`model=prototype` as a few-shot method."""

from __future__ import annotations

import pytest
import torch

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.prototype.model import Prototype
from tests.contracts import MethodContract


class TestPrototype(MethodContract):
    @pytest.fixture
    def method(self):
        torch.manual_seed(0)
        return Prototype(encoder=build_backbone("resnet_narrow"))
