from __future__ import annotations

import pickle

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from hdmnet.models.backbones.build import BACKBONES, build_backbone
from hdmnet.models.backbones.resnet import build_resnet
from tests.contracts import BackboneContract

IMAGENET = {
    "resnet18": lambda: ResNet(BasicBlock, [2, 2, 2, 2]),
    "resnet50": lambda: ResNet(Bottleneck, [3, 4, 6, 3]),
    "vgg16": torchvision.models.vgg16_bn,
    "mobilenet_v2": torchvision.models.mobilenet_v2,
}


@pytest.mark.long
class TestBackbones(BackboneContract):
    @pytest.fixture(params=[name for name in BACKBONES if name not in ("resnet101", "vgg16_plain")])  # others say it
    def backbone(self, request):
        return build_backbone(request.param)


class TestStrides(BackboneContract):
    @pytest.fixture(params=["torchvision", None])
    def backbone(self, request):
        return build_backbone("resnet_narrow", dilation=request.param)


def test_declared_channels_are_the_architectures():
    with torch.device("meta"):
        found = {name: [level.channels for level in build_backbone(name).feature_info] for name in BACKBONES}
    assert found == {
        "resnet18": [128, 256, 512],
        "resnet50": [512, 1024, 2048],
        "resnet101": [512, 1024, 2048],
        "resnet50_v2": [512, 1024, 2048],
        "resnet_narrow": [64, 96, 128],
        "vgg16": [256, 512, 512],
        "vgg16_plain": [256, 512, 512],
        "mobilenet_v2": [32, 96, 320],
    }


def dilate(layers, dilation):
    """Independent of the package: stride 1 everywhere, the dilation on every 3x3 convolution."""
    for module in layers.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
            if module.kernel_size == (3, 3):
                module.dilation = module.padding = (dilation, dilation)


def torchvision_levels(name, model, images):
    """Layers 2, 3, 4 by torchvision's own modules."""
    if name.startswith("resnet"):
        dilate(model.layer3, 2)
        dilate(model.layer4, 4)
        x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
        layer2 = model.layer2(model.layer1(x))
        layer3 = model.layer3(layer2)
        return layer2, layer3, model.layer4(layer3)
    ends = {"vgg16": (24, 34, 43), "mobilenet_v2": (7, 14, 18)}[name]
    if name == "mobilenet_v2":
        dilate(model.features[7:14], 2)
        dilate(model.features[14:18], 4)
    else:
        for pool in (m for m in model.features if isinstance(m, nn.MaxPool2d)):
            pool.ceil_mode = True
    outputs, x = [], images
    for i, layer in enumerate(model.features[: ends[-1]], start=1):
        x = layer(x)
        if i in ends:
            outputs.append(x.clone())
    return outputs


@pytest.mark.long
@pytest.mark.parametrize("name", IMAGENET)
def test_torchvision_weights_give_torchvisions_features(name, tmp_path):
    torch.manual_seed(0)
    with torch.device("meta"):
        skeleton = IMAGENET[name]()
    state = {}
    for key, value in skeleton.state_dict().items():
        if key.startswith(("classifier", "fc")):  # never read; VGG's would be 0.5 GB
            continue
        if value.ndim > 1:
            state[key] = torch.randn(value.shape) * (2 / value[0].numel()) ** 0.5
        elif key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(7)
        else:
            state[key] = torch.rand(value.shape) * 0.4 + (0.8 if key.endswith(("var", "weight")) else -0.2)
    path = tmp_path / "imagenet.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    backbone = build_backbone(name, weights=path).eval()
    path.unlink()
    skeleton.load_state_dict(state, strict=False, assign=True)
    images = torch.randn(1, 3, 65, 49)
    with torch.no_grad():
        expected = torchvision_levels(name, skeleton.eval(), images)
        for ours, theirs in zip(backbone(images), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize(("rule", "replace"), [("torchvision", [False, True, True]), (None, [False, False, False])])
def test_torchvisions_dilation_is_torchvisions(rule, replace):
    torch.manual_seed(0)
    model = ResNet(Bottleneck, [1, 2, 2, 2], replace_stride_with_dilation=replace).eval()
    ours = build_resnet(Bottleneck, (1, 2, 2, 2), dilation=rule).eval()
    assert [info.stride for info in ours.feature_info] == ([8, 8, 8] if rule else [8, 16, 32])
    names = {"conv1": "parts.0.0", "bn1": "parts.0.1", **{f"layer{i}": f"parts.{i}" for i in (1, 2, 3, 4)}}
    state = {key.partition("."): value for key, value in model.state_dict().items() if not key.startswith("fc")}
    ours.load_state_dict({f"{names[head]}.{rest}": value for (head, _, rest), value in state.items()})
    images = torch.randn(1, 3, 65, 49)
    with torch.no_grad():
        x = model.layer2(model.layer1(model.maxpool(model.relu(model.bn1(model.conv1(images))))))
        expected = [x, model.layer3(x), model.layer4(model.layer3(x))]
        for found, theirs in zip(ours(images), expected, strict=True):
            torch.testing.assert_close(found, theirs)


def test_what_has_no_such_dilation_says_so():
    with pytest.raises(ValueError, match=r"^backbone\.dilation=None: vgg16 has release$"):
        build_backbone("vgg16", dilation=None)
    with pytest.raises(ValueError, match=r"='torchvision': vgg16_plain has release or null$"):
        build_backbone("vgg16_plain", dilation="torchvision")
    with pytest.raises(ValueError, match=r"dilation='both': resnet18 has release or torchvision or null$"):
        build_backbone("resnet18", dilation="both")


def test_default_weights_are_none_where_torchvision_has_none():
    build_backbone("resnet_narrow", weights="default", weights_dir="/nowhere")


def test_half_precision_file_gives_float32(tmp_path):
    state = {k: v.half() for k, v in torchvision.models.mobilenet_v2(weights=None).state_dict().items()}
    torch.save(state, tmp_path / "half.pth")
    backbone = build_backbone("mobilenet_v2", weights=tmp_path / "half.pth")
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    torch.testing.assert_close(backbone.parts[0][0][0].weight.half(), state["features.0.0.weight"])


@pytest.mark.long
@pytest.mark.parametrize(
    "names",
    [("conv1", "bn1", "conv2", "bn2", "conv3", "bn3"), ("conv1.0", "conv1.1", "conv1.3", "conv1.4", "conv1.6", "bn1")],
    ids=["release", "ssp"],
)
def test_deep_stem_file_of_the_release(tmp_path, names):
    """Flat names, and those of the file that SSP starts from."""
    own = build_backbone("resnet50_v2").state_dict()
    stem = dict(zip(("0.0", "0.1", "0.3", "0.4", "0.6", "0.7"), names, strict=True))
    state = {}
    for key, value in own.items():
        part = key.removeprefix("parts.")
        head = ".".join(part.split(".")[:2])
        name = part.replace(head, stem[head], 1) if part.startswith("0.") else f"layer{part}"
        state[name] = value.clone().fill_(0.5) if value.is_floating_point() else value
    torch.save(state | {"fc.weight": torch.zeros(1000, 1)}, tmp_path / "resnet50_v2.pth")
    backbone = build_backbone("resnet50_v2", weights=tmp_path / "resnet50_v2.pth")
    assert all((v == 0.5).all() for v in backbone.state_dict().values() if v.is_floating_point())


@pytest.mark.long
def test_wrong_weights_end_in_one_line(tmp_path):
    torch.save(torchvision.models.mobilenet_v2(weights=None).state_dict(), tmp_path / "mobilenet.pth")
    (tmp_path / "text.pth").write_text("no checkpoint")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, weights, match in (
        ("resnet18", "mobilenet.pth", r"do not fit backbone 'resnet18': missing \["),
        ("resnet18", "text.pth", "expected a state dict"),
        ("resnet18", "list.pth", "hold no state dict"),
    ):
        with pytest.raises(ValueError, match=match) as error:
            build_backbone(name, weights=tmp_path / weights)
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"'no\.pth' not found; expected a file or a torchvision weights name"):
        build_backbone("resnet18", weights="no.pth")
    with pytest.raises(FileNotFoundError, match="torchvision has no 'resnet50_v2'"):
        build_backbone("resnet50_v2", weights="IMAGENET1K_V1")
    with pytest.raises(
        ValueError, match="unknown torchvision weights 'IMAGENET1K_V9' for 'resnet18'; expected IMAGENET1K_V1"
    ):
        build_backbone("resnet18", weights="IMAGENET1K_V9")
    with pytest.raises(ValueError, match="unknown backbone 'resnet5'"):
        build_backbone("resnet5")


def test_the_weights_folder_holds_files_and_torchvisions_downloads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "weights"
    folder.mkdir()
    state = IMAGENET["resnet18"]().state_dict()
    torch.save(state, folder / "mine.pth")
    # Where torchvision would leave its download: found there, nothing is fetched.
    torch.save(state, folder / "resnet18-f37072fd.pth")
    for weights in ("mine.pth", "IMAGENET1K_V1"):
        backbone = build_backbone("resnet18", weights=weights, weights_dir=folder)
        assert torch.equal(backbone.parts[0][0].weight, state["conv1.weight"])
    with pytest.raises(FileNotFoundError, match=r"'no\.pth' not found, nor in '.*weights' \(paths\.weights_dir\)"):
        build_backbone("resnet18", weights="no.pth", weights_dir=folder)


class Bomb:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_that_would_run_code_is_not_run(tmp_path):
    trace = tmp_path / "ran"
    torch.save({"conv1.weight": Bomb(trace)}, tmp_path / "bomb.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Bomb(trace)))
    for name in ("bomb.pth", "plain.pth"):
        with pytest.raises(ValueError, match=r"code would have to be run \(none was\)"):
            build_backbone("resnet18", weights=tmp_path / name)
    assert not trace.exists()
