"""What exporters make of a network, run by onnxruntime and by torch.export, against the network itself."""

from __future__ import annotations

import json
import sys
from shutil import copyfile
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import hdmnet
from hdmnet import Segmenter
from hdmnet.apps.segmenter_file import SegmenterSpec
from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.backbones.timm import TimmBackbone
from hdmnet.models.base_learner import BaseLearner
from hdmnet.models.hdmnet.export import SupportFitted
from hdmnet.models.hdmnet.model import build_hdmnet
from scripts.checkpoints import network_file
from scripts.checkpoints.network_file import (
    ABOUT,
    export,
    fitted_answers,
    largest_difference,
    open_onnx,
    open_pt2,
    random_masks,
    random_pictures,
)
from tests.helpers.commands import ROOT

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
CLOSE = {"rtol": 0, "atol": 1e-4}


def make_segmenter(backbone="resnet_narrow", size=(65, 81), **changes):
    """One whose answers differ from place to place: the last layer is sharpened."""
    torch.manual_seed(0)
    trunk = TimmBackbone(backbone) if backbone.startswith("vit") else build_backbone(backbone)
    learner = BaseLearner(backbone=trunk, num_base=4, feature_channels=16)
    model = build_hdmnet(learner, **{"num_stages": 1, "ensemble": False, **changes})
    model.meta_learner.decoder.head[4].weight.data *= 30
    return Segmenter(model, SegmenterSpec(size, MEAN, STD), device="cpu")


def fit(segmenter, *classes):
    """Two supports of each class, of unequal foregrounds."""
    generator = np.random.default_rng(0)
    given = {}
    for name in classes:
        pictures = [generator.integers(0, 256, (50, 60, 3), dtype=np.uint8) for _ in range(2)]
        given[name] = (pictures, [(5, 5, 40, 30), (10, 20, 50, 45)])
    return segmenter.fit(given)


def compare(theirs, ours):
    for one, other in zip(theirs, ours, strict=True):
        assert other.std() > 0.01, "answers that are the same everywhere would show nothing"
        torch.testing.assert_close(one, other, **CLOSE)


class Toy(torch.nn.Module):
    """As an exportable network of two classes, of a few operations: exporting a whole one takes half a minute."""

    def __init__(self, smallest_side):
        super().__init__()
        self.model = SimpleNamespace(smallest_side=smallest_side)
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, query):
        logits = self.conv(query / 255).unflatten(1, (2, 2))
        return logits, logits.softmax(2)[:, :, 1]


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """The path of an ONNX file of a toy, the toy, and the segmenter that it says it is of."""
    segmenter = fit(make_segmenter(), "cat", "dog")
    path, toy = tmp_path_factory.mktemp("pets") / "pets.onnx", Toy(57)
    about, shapes = network_file.export_metadata(segmenter, None, 57, None), network_file.dynamic_shapes(None, 57, None)
    network_file.write_onnx(network_file.trace(toy, None, shapes, None), about, path, shapes)
    return path, toy, segmenter


SIZES = ((1, (57, 57)), (2, (65, 81)), (1, (100, 61)), (3, (58, 203)))


@pytest.mark.long
def test_onnx_answers_at_any_size(pets):
    path, toy, _ = pets
    answer = open_onnx(path)
    for batch, size in SIZES:
        query = random_pictures(batch, size)
        logits, probability = answer(query)
        assert logits.shape == (batch, 2, 2, *size)
        assert probability.shape == (batch, 2, *size)
        with torch.no_grad():
            compare((logits, probability), toy(query))


@pytest.mark.long
def test_the_network_is_traced_at_any_size(pets):
    """What every exporter goes on from."""
    *_, segmenter = pets
    supports = [one.features for one in segmenter.fitted.values()]
    shapes = network_file.dynamic_shapes(None, 57, None)
    network = SupportFitted(segmenter.model, MEAN, STD, supports).eval()
    program = network_file.trace(network, None, shapes, None).module()
    for batch, size in SIZES[:2]:
        query = random_pictures(batch, size)
        compare(program(query), fitted_answers(segmenter, query))


@pytest.mark.slow
def test_onnx_with_supports_of_several_classes_answers_at_any_size(pets, tmp_path):
    *_, segmenter = pets
    path = tmp_path / "pets.onnx"
    assert export(segmenter, path).difference <= 1e-4
    assert [entry.name for entry in path.parent.iterdir()] == ["pets.onnx"]
    answer = open_onnx(path)
    for batch, size in SIZES:
        query = random_pictures(batch, size)
        logits, probability = answer(query)
        assert torch.equal(probability > 0.5, logits[:, :, 1] > logits[:, :, 0])
        compare((logits, probability), fitted_answers(segmenter, query))


def test_a_file_says_what_it_is_and_nothing_of_the_machine_that_wrote_it(pets):
    path, *_ = pets
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    assert about["hdmnet_version"] == hdmnet.__version__
    assert about["smallest_side"] == "57"
    lists = {key: json.loads(about[key]) for key in ("classes", "shots", "image_size", "mean", "std")}
    expected = {"classes": ["cat", "dog"], "shots": [2, 2], "image_size": [65, 81], "mean": [*MEAN], "std": [*STD]}
    assert lists == expected
    (query,) = session.get_inputs()
    assert (query.name, query.type, query.shape) == ("query", "tensor(float)", ["batch", 3, "height", "width"])
    assert [entry.name for entry in session.get_outputs()] == ["logits", "probability"]
    content = path.read_bytes()
    assert b"stack_trace" not in content
    assert str(ROOT).encode() not in content
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_supports_as_inputs(tmp_path, suffix):
    segmenter = make_segmenter(num_shots=1)
    path = tmp_path / f"any.{suffix}"
    export(segmenter, path, shots=2)
    answer = (open_onnx if suffix == "onnx" else open_pt2)(path)
    for batch, size, support_size in ((1, (65, 81), (65, 81)), (2, (60, 97), (73, 57))):
        query, masks = random_pictures(batch, size), random_masks(batch, 2, support_size)
        images = random_pictures(2 * batch, support_size).unflatten(0, (batch, 2))
        masks[0, 0, :20] = 255
        shift, scale = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        with torch.no_grad():
            ours = segmenter.model((query / 255 - shift) / scale, (images / 255 - shift) / scale, masks)
        logits, probability = answer(query, images, masks)
        compare([logits[:, 0]], [ours.logits])
        compare([probability[:, 0]], [ours.logits.softmax(1)[:, 1]])


@pytest.mark.slow
def test_torch_export_with_fitted_supports(tmp_path):
    segmenter = fit(make_segmenter(), "cat")
    written = export(segmenter, tmp_path / "cat.pt2")
    extra = {ABOUT: ""}
    module = torch.export.load(tmp_path / "cat.pt2", extra_files=extra).module()
    assert json.loads(extra[ABOUT]) == written.about
    query = random_pictures(2, (81, 120))
    compare(module(query), fitted_answers(segmenter, query))


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "mobilenet_v2", "vgg16"])
def test_onnx_of_the_whole_network_of_each_backbone(tmp_path, backbone):
    segmenter = fit(make_segmenter(backbone, num_stages=3, ensemble=True), "cat")
    path = tmp_path / "one.onnx"
    written = export(segmenter, path)
    assert written.difference <= 1e-4
    answer = open_onnx(path)
    for size in ((129, 129), (124, 215)):
        query = random_pictures(1, size)
        for one, other in zip(answer(query), fitted_answers(segmenter, query), strict=True):
            torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_a_vit_at_the_size_of_the_segmenter(tmp_path, suffix):
    segmenter = fit(make_segmenter("vit_tiny_patch16_224", size=(121, 150)), "cat")
    path = tmp_path / f"cat.{suffix}"
    written = export(segmenter, path)
    assert written.sizes == ((121, 150),)
    assert json.loads(written.about["only_size"]) == [121, 150]
    assert "smallest_side" not in written.about
    query = random_pictures(3, (121, 150))
    compare((open_onnx if suffix == "onnx" else open_pt2)(path)(query), fitted_answers(segmenter, query))


# ------------------------------------------------------------------------------------------------------------ refusals


def test_a_vit_at_a_size_with_too_few_patches(tmp_path):
    segmenter = fit(make_segmenter("vit_tiny_patch16_224"), "cat")
    with pytest.raises(ValueError, match=r"export: image_size=\[65, 81\]: expected sides of at least 113"):
        export(segmenter, tmp_path / "cat.onnx")


def test_a_file_that_disagrees_is_not_left(pets, tmp_path, monkeypatch):
    """As if the exporter had made another network of it; an earlier file stays."""
    good, _, segmenter = pets
    path = tmp_path / "pets.onnx"
    path.write_bytes(b"earlier")
    monkeypatch.setattr(network_file, "trace", lambda *_: None)
    monkeypatch.setattr(network_file, "write_onnx", lambda program, about, temporary, *_: copyfile(good, temporary))
    with pytest.raises(
        ValueError, match=r"pets\.onnx: the file's answers differ from the model's by \d.*: not written"
    ):
        export(segmenter, path)
    assert path.read_bytes() == b"earlier"
    assert [entry.name for entry in tmp_path.iterdir()] == ["pets.onnx"]


def test_answers_that_are_not_numbers_differ(tmp_path):
    segmenter = fit(make_segmenter(), "cat")

    def answer(query):
        return [value * torch.nan for value in fitted_answers(segmenter, query)]

    assert largest_difference(segmenter, answer, None, [(65, 65)]) > 1e30


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_extra_onnx_is_refused(tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValueError, match=rf"ONNX needs {missing}: pip install 'hdmnet\[export\]', or export to \.pt2"):
        export(make_segmenter(), tmp_path / "one.onnx", shots=1)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_refused(tmp_path):
    segmenter = make_segmenter()
    for name, shots, message in (
        ("one.bin", 1, r"one\.bin: expected a name that ends in \.onnx or \.pt2"),
        ("one.pt2", None, "no supports are fitted"),
        ("one.pt2", 0, "shots=0: expected at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            export(segmenter, tmp_path / name, shots=shots)
    assert not list(tmp_path.iterdir())
