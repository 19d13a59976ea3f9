"""What a method can ask of its backbone, compared with torchvision's own modules and with the papers' trunks."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from hdmnet.models.backbones.base import Backbone, FeatureInfo
from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.backbones.prepare import prepare_trunk
from hdmnet.models.backbones.resnet import build_resnet
from hdmnet.models.backbones.weights import load_weights
from hdmnet.models.folding import fold_batch_norm
from tests.contracts import random_norms


def rename(key):
    head, _, rest = key.partition(".")
    names = {"conv1": "parts.0.0", "bn1": "parts.0.1", **{f"layer{i}": f"parts.{i}" for i in (1, 2, 3, 4)}}
    return f"{names[head]}.{rest}"


@pytest.mark.long
@pytest.mark.parametrize(
    ("block", "rule", "replace"),
    [
        (Bottleneck, "torchvision", [False, True, True]),
        (Bottleneck, None, [False] * 3),
        (BasicBlock, None, [False] * 3),  # torchvision's knows no dilation
    ],
)
def test_every_block_of_a_resnet_before_its_relu(block, rule, replace):
    """The sums that torchvision's blocks overwrite by their closing ReLU; the next block gets them after it."""
    torch.manual_seed(0)
    model = random_norms(ResNet(block, [2, 1, 3, 2], replace_stride_with_dilation=replace)).eval()
    ours = build_resnet(block, (2, 1, 3, 2), dilation=rule).eval()
    ours.load_state_dict({rename(k): v for k, v in model.state_dict().items() if not k.startswith("fc")})
    prepare_trunk(ours, layers=[1, 3, 4], every_block=True, before_relu=True)
    strides = (4, 8, 8) if rule else (4, 16, 32)
    assert [(info.layer, info.stride) for info in ours.feature_info] == [
        *((1, strides[0]),) * 2,
        *((3, strides[1]),) * 3,
        *((4, strides[2]),) * 2,
    ]
    last, inputs, expected = "bn3" if block is Bottleneck else "bn2", {}, []
    for layer in (model.layer1, model.layer3, model.layer4):
        for module in layer:
            module.register_forward_pre_hook(lambda m, args: inputs.__setitem__(m, args[0].clone()))
            getattr(module, last).register_forward_hook(
                lambda _, __, out, m=module: expected.append(
                    out + (inputs[m] if m.downsample is None else m.downsample(inputs[m]))
                )
            )
    images = torch.randn(1, 3, 65, 49)
    with torch.no_grad():
        model(images)
        found = ours(images)
        folded = fold_batch_norm(copy.deepcopy(ours).double())(images.double())
    assert len(found) == len(expected) == 7
    for info, level, theirs, exact in zip(ours.feature_info, found, expected, folded, strict=True):
        assert (theirs < 0).any()
        torch.testing.assert_close(level, theirs)
        torch.testing.assert_close(level.double(), exact, rtol=1e-4, atol=1e-4)
        assert level.shape == (1, info.channels, -(-65 // info.stride), -(-49 // info.stride))


@pytest.mark.parametrize("name", ["resnet_narrow", "mobilenet_v2"])
def test_blocks_end_in_their_layers(name):
    torch.manual_seed(0)
    backbone = build_backbone(name, dilation=None).eval()
    images = torch.randn(1, 3, 65, 65)
    with torch.no_grad():
        layers = backbone(images)
        blocks = prepare_trunk(backbone, layers=[2, 3, 4], every_block=True)(images)
    assert [tuple(level.shape[1:]) for level in blocks] == [
        (info.channels, -(-65 // info.stride), -(-65 // info.stride)) for info in backbone.feature_info
    ]
    ends = {info.layer: i for i, info in enumerate(backbone.feature_info)}
    for layer, expected in zip((2, 3, 4), layers, strict=True):
        assert torch.equal(blocks[ends[layer]], expected)
    if name == "mobilenet_v2":
        assert [info.channels for info in backbone.feature_info] == [32] * 3 + [64] * 4 + [96] * 3 + [160] * 3 + [320]


def test_a_resnet_without_layer_4_and_without_its_last_relu():
    """SSP's trunk."""
    torch.manual_seed(0)
    backbone = random_norms(build_backbone("resnet_narrow", dilation="torchvision")).eval()
    images = torch.randn(1, 3, 71, 65)
    with torch.no_grad():
        layer3 = backbone(images)[1]
        (found,) = prepare_trunk(backbone, layers=[3], before_relu=True)(images)
    assert (found < 0).any()
    torch.testing.assert_close(found.relu(), layer3)
    assert len(backbone.parts) == 4
    assert backbone.feature_info == (FeatureInfo(96, 8, 3),)
    (again,) = pickle.loads(pickle.dumps(backbone))(images)
    assert torch.equal(again, found)


@pytest.fixture(scope="module")
def plain_vgg():
    """torchvision's VGG-16 without batch normalisation, and a file of its weights' names."""
    torch.manual_seed(0)
    return torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"]).eval()


def of_torchvision(plain_vgg, tmp_path, dilation):
    torch.save({f"features.{key}": value for key, value in plain_vgg.state_dict().items()}, tmp_path / "vgg16.pth")
    backbone = build_backbone("vgg16_plain", dilation=dilation)
    load_weights(backbone, "vgg16_plain", tmp_path / "vgg16.pth")
    return backbone.eval()


def test_vgg16_with_torchvisions_pools(plain_vgg, tmp_path):
    """HSNet's: the convolutions of blocks 4 and 5 before their ReLU, and the last pool; sizes round down."""
    backbone = of_torchvision(plain_vgg, tmp_path, None)
    prepare_trunk(backbone, layers=[2, 3, 4], every_block=True, before_relu=True)
    images = torch.randn(1, 3, 72, 104)
    expected = []
    for i in (17, 19, 21, 24, 26, 28):
        plain_vgg[i].register_forward_hook(lambda _, __, out: expected.append(out.clone()))
    with torch.no_grad():
        found = backbone(images)
        expected.append(plain_vgg(images))
    for level, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(level, theirs)
    assert [(info.channels, info.stride, info.layer) for info in backbone.feature_info] == [
        *((512, 8, 2),) * 3,
        *((512, 16, 3),) * 3,
        (512, 32, 4),
    ]
    assert [tuple(level.shape[2:]) for level in found[::3]] == [(9, 13), (4, 6), (2, 3)]


def test_vgg16_of_panet(plain_vgg, tmp_path):
    """Pools of 3×3, the fourth without stride; group 5 dilated; no ReLU after the last convolution."""
    backbone = prepare_trunk(of_torchvision(plain_vgg, tmp_path, "release"), layers=[4], before_relu=True)
    images = x = torch.randn(1, 3, 90, 118)
    convs = [module for module in plain_vgg if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        for group, (low, high) in enumerate(((0, 2), (2, 4), (4, 7), (7, 10), (10, 13))):
            if group:
                x = F.max_pool2d(x, 3, 1 if group == 4 else 2, 1)
            for conv in convs[low:high]:
                rate = 2 if group == 4 else 1
                x = F.conv2d(x, conv.weight, conv.bias, 1, rate, rate)
                x = x if conv is convs[-1] else x.relu()
        (found,) = backbone(images)
    torch.testing.assert_close(found, x)
    assert found.shape[1:] == (512, 12, 15)
    assert backbone.feature_info == (FeatureInfo(512, 8, 4),)
    assert sum(p.numel() for p in backbone.parameters()) == 14_714_688


def test_what_is_trainable_learns_and_nothing_else():
    backbone = build_backbone("resnet_narrow")
    prepare_trunk(backbone, layers=[3], trainable=[2, 3])
    for name, parameter in backbone.named_parameters():
        convolution = parameter.ndim == 4
        assert parameter.requires_grad == (convolution and name.startswith(("parts.2.", "parts.3."))), name
    prepare_trunk(backbone, trainable="all")
    assert all(p.requires_grad == (p.ndim == 4) for p in backbone.parameters())
    prepare_trunk(backbone, trainable=[])
    assert not any(p.requires_grad for p in backbone.parameters())


class Fixed(Backbone):
    """Of no known layers."""

    feature_info = (FeatureInfo(4, 8), FeatureInfo(4, 16))

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)


def test_of_other_backbones():
    backbone = prepare_trunk(Fixed(), layers=[3, 4], trainable="all")
    assert [name for name, p in backbone.named_parameters() if p.requires_grad] == ["conv.weight", "conv.bias"]
    prepare_trunk(Fixed())
    for settings, message in (
        ({"every_block": True}, r"every_block=True: Fixed gives whole levels; expected a ResNet, VGG or MobileNetV2"),
        ({"layers": [3]}, r"layers=\[3\]: Fixed gives 2 levels; expected 1 \(of timm: backbone.levels\)"),
        ({"trainable": [2]}, r"trainable=\[2\]: expected \[\] or all"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            prepare_trunk(Fixed(), **settings)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("resnet_narrow", {"layers": [5]}, r"layers=\[5\]: expected some of \[1, 2, 3, 4\], in this order"),
        ("resnet_narrow", {"layers": [3, 2]}, r"layers=\[3, 2\]: expected some of"),
        ("resnet_narrow", {"layers": []}, r"layers=\[\]: expected some of"),
        ("resnet_narrow", {"layers": 3}, r"layers=3: expected numbers of layers, e\.g\. \[2,3\]"),
        ("resnet_narrow", {"layers": [2.0]}, r"layers=\[2\.0\]: expected numbers of layers"),
        ("resnet_narrow", {"every_block": "yes"}, "every_block=yes: expected true or false"),
        ("resnet_narrow", {"before_relu": 1}, "before_relu=1: expected true or false"),
        ("resnet_narrow", {"trainable": "some"}, r"trainable=some: expected numbers of layers"),
        ("resnet_narrow", {"trainable": [7]}, r"trainable=\[7\]: expected some of \[0, 1, 2, 3, 4\] or all"),
        ("vgg16", {"every_block": True}, "every_block=True: a layer of this backbone ends in a pool"),
    ],
)
def test_what_is_refused(name, settings, message):
    with torch.device("meta"):
        backbone = build_backbone(name)
    with pytest.raises(ValueError, match=f"^{message}"):
        prepare_trunk(backbone, **settings)
