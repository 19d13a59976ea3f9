from __future__ import annotations

import sys

import pytest
import torch

from hdmnet.models.backbones.base import Backbone, FeatureInfo, encode
from hdmnet.models.backbones.timm import TimmBackbone
from hdmnet.models.base_learner import BaseLearner
from hdmnet.models.hdmnet.model import build_hdmnet
from tests.contracts import BackboneContract

MODELS = ("resnet18", "convnext_atto", "mobilenetv3_small_050", "vit_tiny_patch16_224")


class TestTimm(BackboneContract):
    @pytest.fixture(params=MODELS)
    def backbone(self, request):
        torch.manual_seed(0)
        return TimmBackbone(request.param)


def test_levels_of_hierarchies_and_vits():
    infos = {name: [(f.channels, f.stride) for f in TimmBackbone(name).feature_info] for name in MODELS}
    assert infos["convnext_atto"] == [(80, 8), (160, 16), (320, 32)]
    assert infos["vit_tiny_patch16_224"] == [(192, 16)] * 3
    chosen = TimmBackbone("convnext_atto", out_indices=[0, 1, 2], output_stride=8)
    assert [f.stride for f in chosen.feature_info] == [4, 8, 8]


@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224"])
def test_hdmnet_runs_on_it_at_an_odd_size(name):
    learner = BaseLearner(backbone=TimmBackbone(name), num_base=3, feature_channels=8)
    model = build_hdmnet(learner).eval()
    with torch.no_grad():
        out = model(torch.randn(1, 3, 105, 89), torch.randn(1, 1, 3, 105, 89), torch.ones(1, 1, 105, 89))
    assert out.logits.shape == (1, 2, 105, 89)
    assert out.logits.isfinite().all()


def test_a_files_weights_are_taken_and_wrong_ones_refused(tmp_path):
    import timm

    model = timm.create_model("resnet18")
    torch.save(model.state_dict(), tmp_path / "resnet18.pth")
    backbone = TimmBackbone("resnet18", weights="resnet18.pth", weights_dir=tmp_path)
    assert torch.equal(backbone.model.conv1.weight, model.conv1.weight)
    with pytest.raises(ValueError, match=r"do not fit timm's 'convnext_atto': \d+ missing"):
        TimmBackbone("convnext_atto", weights=tmp_path / "resnet18.pth")


@pytest.mark.parametrize(
    ("words", "error", "line"),
    [
        ({"name": "resnet17"}, ValueError, "timm has no model 'resnet17'; did you mean"),
        ({"name": "vit_tiny_patch16_224", "output_stride": 8}, ValueError, "timm cannot make .* 'output_stride'"),
        ({"name": "resnet18", "out_indices": [9]}, ValueError, "timm cannot make 'resnet18' so"),
        ({"name": "resnet18", "weights": "no.pth"}, FileNotFoundError, "weights 'no.pth' not found; expected default"),
    ],
)
def test_what_timm_does_not_have_is_one_line(words, error, line):
    with pytest.raises(error, match=line) as found:
        TimmBackbone(**words)
    assert "\n" not in str(found.value)


def test_without_timm_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"backbone=timm needs timm: pip install 'hdmnet\[timm\]'"):
        TimmBackbone("resnet18")


class Stub(Backbone):
    """Three levels whose features are the means of their cells; refuses what is no multiple."""

    multiple_of = 16
    feature_info = (FeatureInfo(3, 4), FeatureInfo(3, 8), FeatureInfo(3, 16))

    def forward(self, images):
        assert images.shape[2] % 16 == images.shape[3] % 16 == 0
        return tuple(torch.nn.functional.avg_pool2d(images, info.stride) for info in self.feature_info)


def test_padding_leaves_the_features_of_the_picture_where_they_were():
    images = torch.randn(1, 3, 50, 40)
    padded = torch.nn.functional.pad(images, (0, 8, 0, 14))
    levels = encode(Stub(), images)
    assert [tuple(level.shape[2:]) for level in levels] == [(13, 10), (7, 5), (4, 3)]
    for ours, whole in zip(levels, Stub()(padded), strict=True):
        assert torch.equal(ours, whole[..., : ours.shape[2], : ours.shape[3]])
    assert [tuple(level.shape[2:]) for level in encode(Stub(), images, size_of=-2)] == [(7, 5)] * 3
