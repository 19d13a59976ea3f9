"""What exporters make of a checkpoint, run by onnxruntime and torch.export, against the model itself."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hdmnet.segmenter import Segmenter
from scripts import export

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def fitted(start, tmp_path_factory):
    """A checkpoint, and the segmenter that knows one marked picture."""
    folder = tmp_path_factory.mktemp("supports")
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (80, 70, 3), dtype=np.uint8)).save(folder / "one.png")
    mask = np.zeros((80, 70), dtype=np.uint8)
    mask[20:60, 10:50] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    segmenter = Segmenter.from_checkpoint(start, device="cpu").fit(folder / "one.png", folder / "mask.png")
    return start, segmenter, f"{folder / 'one.png'}:{folder / 'mask.png'}"


@torch.no_grad()
def expected(segmenter, query):
    one = segmenter.fitted["object"]
    support = type(one.features).stack([one.features] * len(query))
    return segmenter.model.match(segmenter.model.encode_query(query), support, shots=one.shots).final_logits


@pytest.mark.slow
def test_onnx_with_the_support_fitted_in_answers_at_any_size(fitted, tmp_path, capsys):
    checkpoint, segmenter, support = fitted
    path = tmp_path / "one.onnx"
    assert export.main([str(checkpoint), str(path), "--support", support]) == 0, capsys.readouterr().err
    assert "smallest_side 57" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["image_size"]) == [65, 65]
    assert json.loads(about["image_mean"]) == list(segmenter.recipe.mean)
    for shape in ((1, 3, 57, 57), (2, 3, 65, 65), (3, 3, 100, 61), (1, 3, 97, 200)):
        query = torch.randn(shape)
        (logits,) = session.run(None, {"query_image": query.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), expected(segmenter, query), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_onnx_with_supports_as_inputs(fitted, tmp_path, capsys):
    checkpoint, segmenter, _ = fitted
    path = tmp_path / "any.onnx"
    assert export.main([str(checkpoint), str(path), "--shot", "2"]) == 0, capsys.readouterr().err
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for size, support_size, batch in (((65, 65), (65, 65), 1), ((60, 97), (73, 57), 2)):
        episode = export.example(2, size, support_size, batch=batch)
        names = [entry.name for entry in session.get_inputs()]
        assert names == ["query_image", "support_images", "support_masks"]
        (logits,) = session.run(None, {name: part.numpy() for name, part in zip(names, episode, strict=True)})
        with torch.no_grad():
            ours = segmenter.model(*episode).final_logits
        torch.testing.assert_close(torch.from_numpy(logits), ours, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_torch_export_of_a_saved_segmenter(fitted, tmp_path, capsys):
    _, segmenter, _ = fitted
    segmenter.save(tmp_path / "fitted.ckpt")
    path = tmp_path / "one.pt2"
    assert export.main([str(tmp_path / "fitted.ckpt"), str(path)]) == 0, capsys.readouterr().err
    extra = {"hdmnet.json": ""}
    module = torch.export.load(path, extra_files=extra).module()
    assert json.loads(extra["hdmnet.json"])["shots"] == "1"
    query = torch.randn(2, 3, 81, 120)
    torch.testing.assert_close(module(query), expected(segmenter, query), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x.bin"], "x.bin: expected a name that ends in .onnx or .pt2"),
        (["x.onnx", "--shot", "0"], "--shot 0: expected at least 1"),
        (["x.onnx", "--shot", "1", "--support", "a:b"], "no --support beside it"),
        (["x.onnx", "--support", "picture.png"], "--support picture.png: expected IMAGE:MASK"),
        (["x.onnx"], "0 classes are fitted: expected one"),
    ],
)
def test_wrong_words_are_refused_in_one_line(start, tmp_path, capsys, words, message):
    words = [str(tmp_path / words[0]), *words[1:]]
    assert export.main([str(start), *words]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message.replace("x.bin", str(tmp_path / "x.bin")) in lines[0]
    assert not list(tmp_path.iterdir())
