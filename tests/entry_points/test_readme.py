"""The examples for one's own pictures, in README.md and docs/own_pictures.md, run as they stand."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
from PIL import Image

from hdmnet import Segmenter
from scripts.checkpoints import export
from tests.helpers.commands import ROOT

MORE = (ROOT / "docs" / "own_pictures.md").read_text(encoding="utf-8")


def examples(text):
    """The Python blocks of a text."""
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path, start, monkeypatch):
    """The files that the example names."""
    (tmp_path / "RUN" / "checkpoints").mkdir(parents=True)
    shutil.copyfile(start, tmp_path / "RUN" / "checkpoints" / "best.ckpt")
    generator = np.random.default_rng(0)
    for name in ("cat", "cat2", "dog", "query"):
        picture = Image.fromarray(generator.integers(0, 256, (8, 10, 3), dtype=np.uint8)).resize((100, 80))
        picture.save(tmp_path / f"{name}.jpg")
        mask = np.zeros((80, 100), np.uint8)
        mask[20:60, 30:70] = 255
        Image.fromarray(mask).save(tmp_path / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.long
def test_the_examples_of_the_segmenter_run(folder, capsys):
    (short,) = examples((ROOT / "README.md").read_text(encoding="utf-8"))
    exec(compile(short, "README.md", "exec"), {"__name__": "example"})
    assert capsys.readouterr().out.startswith("(80, 100) ")
    exec(compile(examples(MORE)[0], "own_pictures.md", "exec"), {"__name__": "example"})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("(80, 100) ")
    assert printed[1:3] == ["(80, 100)", "(90, 120)"]
    assert "('cat', 'dog')" in printed[4]
    with Image.open(folder / "probability.png") as picture:
        assert picture.size == (100, 80)


@pytest.mark.slow
def test_the_commands_and_the_example_of_onnx_run(folder, capsys):
    Segmenter.from_checkpoint("RUN/checkpoints/best.ckpt").fit(
        {"cat": (["cat.jpg"], ["cat.png"]), "dog": (["dog.jpg"], ["dog.png"])}
    ).save("cats-and-dogs.pt")
    commands = re.findall(r"^python scripts/checkpoints/export\.py ([^#\n]+)", MORE, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        assert export.main(command.split()) == 0, capsys.readouterr().err
    capsys.readouterr()
    exec(compile(examples(MORE)[1], "own_pictures.md", "exec"), {"__name__": "example"})
    assert capsys.readouterr().out.startswith("cat (80, 100) ")
