"""`model=cluster_matching` as a few-shot method."""

from __future__ import annotations

import pytest
import torch

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.cluster_matching.model import ClusterMatching
from tests.contracts import MethodContract


class TestClusterMatching(MethodContract):
    @pytest.fixture
    def method(self):
        torch.manual_seed(0)
        return ClusterMatching(encoder=build_backbone("resnet_narrow"), num_clusters=3)
