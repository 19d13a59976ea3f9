"""The export script, from a checkpoint of a run to a file that onnxruntime runs."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from hdmnet.apps.segmenter import Segmenter
from hdmnet.data.io.user_pictures import read_user_picture
from hdmnet.data.transforms import resize_image
from hdmnet.tasks.feature_store import resize
from scripts.checkpoints import export
from scripts.checkpoints.network_file import fitted_answers, open_pt2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Supports with a mask, and a query."""
    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for name, size in (("one", (80, 70)), ("two", (60, 90)), ("query", (90, 130))):
        coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(root / f"{name}.png")
    mask = np.zeros((70, 80), dtype=np.uint8)
    mask[20:60, 10:50] = 255
    Image.fromarray(mask).save(root / "mask.png")
    return root


@pytest.mark.slow
def test_onnx_of_a_checkpoint_gives_the_masks_of_the_segmenter(start, folder, tmp_path, capsys):
    path = tmp_path / "thing.onnx"
    words = ["--name", "thing", "--support", f"{folder}/one.png:{folder}/mask.png", f"{folder}/two.png:10,20,50,85"]
    assert export.main([str(start), str(path), *words]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert 'classes: ["thing"]' in printed
    assert f"wrote {path} (" in printed
    segmenter = Segmenter.from_checkpoint(start, device="cpu")
    segmenter.fit([folder / "one.png", folder / "two.png"], [folder / "mask.png", (10, 20, 50, 85)])
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    size = tuple(json.loads(session.get_modelmeta().custom_metadata_map["image_size"]))
    assert size == segmenter.image_size
    picture = read_user_picture(folder / "query.png")[0]
    query = resize_image(picture, size).transpose(2, 0, 1)[None].astype(np.float32)
    logits, _ = session.run(None, {"query": query})
    at_full_size = resize(torch.from_numpy(logits[:, 0]), torch.Size(picture.shape[:2]))[0]
    ours = segmenter.predict(picture)
    assert 0.02 < ours.mask.mean() < 0.98
    np.testing.assert_array_equal((at_full_size[1] > at_full_size[0]).numpy(), ours.mask == 1)


@pytest.mark.slow
def test_torch_export_of_a_saved_segmenter(start, folder, tmp_path, capsys):
    segmenter = Segmenter.from_checkpoint(start, device="cpu").fit(folder / "one.png", folder / "mask.png")
    segmenter.save(tmp_path / "fitted.pt")
    path = tmp_path / "one.pt2"
    assert export.main([str(tmp_path / "fitted.pt"), str(path)]) == 0, capsys.readouterr().err
    query = torch.randint(256, (2, 3, 81, 120)).float()
    for theirs, ours in zip(open_pt2(path)(query), fitted_answers(segmenter, query), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x.bin"], "x.bin: expected a name that ends in .onnx or .pt2"),
        (["x.onnx", "--shot", "0"], "--shot 0: expected at least 1"),
        (["x.onnx", "--shot", "1", "--support", "a:b"], "no --support beside it"),
        (["x.onnx", "--support", "picture.png"], "'picture.png': expected IMG:MASK or IMG:x0,y0,x1,y1"),
        (["x.onnx", "--support", "a.png:b.png"], "picture a.png not found"),
        (["x.onnx", "--image-size", "1", "2", "3"], "expected one side, or H W"),
        (["x.onnx"], "keeps no supports: give --support IMG:MASK …, or --shot K"),
    ],
)
def test_wrong_words_are_refused_in_one_line(start, tmp_path, capsys, words, message):
    words = [str(tmp_path / words[0]), *words[1:]]
    assert export.main([str(start), *words]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not list(tmp_path.iterdir())
