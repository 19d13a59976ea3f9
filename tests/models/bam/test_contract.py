from __future__ import annotations

import pytest
import torch

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.bam.model import BAM
from hdmnet.models.base_learner import BaseLearner
from tests.contracts import MethodContract


class TestBAM(MethodContract):
    @pytest.fixture
    def method(self):
        torch.manual_seed(0)
        learner = BaseLearner(backbone=build_backbone("resnet_narrow"), num_base=3, feature_channels=8)
        return BAM(encoder=learner, channels=16)


class TestBAMOfThreeShots(TestBAM):
    @pytest.fixture
    def method(self):
        torch.manual_seed(0)
        learner = BaseLearner(backbone=build_backbone("resnet_narrow"), num_base=3, feature_channels=8)
        return BAM(encoder=learner, channels=16, num_shots=3)

    def test_a_step_moves_what_learns_and_nothing_else(self, method, monkeypatch):
        """Of three supports: one has no use for weights of three shots."""
        episodes = self.episodes
        monkeypatch.setattr(self, "episodes", lambda: episodes(shots=3))
        super().test_a_step_moves_what_learns_and_nothing_else(method)
