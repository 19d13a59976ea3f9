"""No console's encoding ends a command: what it has no letter for is printed as an escape."""

from __future__ import annotations

import contextlib
import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from hdmnet import report, train
from hdmnet.cli.parser import run_main
from hdmnet.data.datasets.folder.dataset import FolderDataset
from hdmnet.run.result import print_fold_table, read_result, write_result
from hdmnet.runtime.console import print_in_any_encoding
from scripts.data import check_dataset
from tests.helpers.commands import call
from tests.helpers.reports import make_result, write_run


class Console:
    """An output of a narrow encoding, and what was written to it."""

    def __init__(self, encoding):
        self.stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)

    def __enter__(self):
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(contextlib.redirect_stdout(self.stream))
        self._stack.enter_context(contextlib.redirect_stderr(self.stream))

    def __exit__(self, *_):
        self._stack.close()

    def __call__(self):
        return self.stream.buffer.getvalue().decode(self.stream.encoding)


@pytest.fixture(params=["ascii", "latin-1", "cp437"])
def console(request):
    return Console(request.param)


def test_letters_and_bytes_that_are_no_text(console):
    with console:
        print_in_any_encoding()
        print("日本", "\udce4")  # the second stands for a byte of a file's name
    assert console().replace("\r", "") == "\\u65e5\\u672c \\udce4\n"


@pytest.mark.long
def test_scripts_and_the_report(console, tmp_path):
    def body():
        print("日本 …")
        raise ValueError("größe 日本 fehlt")

    with console:
        assert run_main(body, "script") == 1
    assert "\\u672c fehlt" in console()
    write_run(tmp_path / "läufe 日本", "a")
    with console:
        assert report.main([str(tmp_path / "läufe 日本"), "--out", str(tmp_path / "日本"), "--episodes", "0"]) == 0
    assert f"{tmp_path}/\\u65e5\\u672c/report.html" in console()


@pytest.mark.parametrize("console", ["ascii"], indirect=True)
def test_the_commands(console, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train", "dataset=日本"])
    with console, pytest.raises(SystemExit):
        train.main()
    assert "error: dataset=\\u65e5\\u672c: no such option" in console()


def test_the_table_of_a_run(console):
    result = make_result()
    result["test"]["iou_per_class"] = {"日本": 0.5, "käfer": None}
    result["test"]["miou_std"] = 0.25
    with console:
        print_fold_table(result)
    assert "\\u65e5\\u672c" in console()
    assert ("55.0 ± 25.0" in console()) != ("55.0 +- 25.0" in console())


@pytest.fixture
def of_another_encoding(tmp_path):
    """Names that are no UTF-8, as of a disk from elsewhere: a class, its pictures and masks."""
    root = os.fsencode(tmp_path)
    for folder in (b"images", b"masks/k\xe4fer"):
        os.makedirs(root + b"/" + folder)
    for number in range(4):
        name = b"/caf\xe9_%d.png" % number
        picture = np.full((48, 48, 3), 40 * number, dtype=np.uint8)
        for folder, array in ((b"/images", picture), (b"/masks/k\xe4fer", np.eye(48, dtype=np.uint8))):
            Image.fromarray(array).save(os.fsdecode(root + folder + name))
    return tmp_path


def test_files_whose_names_are_no_text_are_read(of_another_encoding, capsys):
    dataset = FolderDataset(of_another_encoding)
    assert dataset.class_names == ("k\udce4fer",)
    assert dataset.class_areas("caf\udce9_1") == {1: 48}
    assert len({dataset.fingerprint("val"), dataset.fingerprint("train")}) == 1
    print_in_any_encoding()
    assert check_dataset.main([f"dataset.root={of_another_encoding}"]) == 0


def test_their_names_in_a_result(tmp_path):
    result = make_result()
    result["test"]["iou_per_class"] = {"k\udce4fer": 0.5}
    path = write_result(tmp_path / "result.json", result)
    assert json.loads(path.read_text(encoding="utf-8"))["test"]["iou_per_class"] == {"k\udce4fer": 0.5}
    assert read_result(path)["test"]["iou_per_class"] == {"k\udce4fer": 0.5}


@pytest.mark.long
def test_a_run_on_them(of_another_encoding, start, tmp_path):
    words = ("dataset=folder", f"dataset.root={of_another_encoding}", "episodes=2", "seeds=1", "trainer=cpu")
    answer = call("evaluate", tmp_path / "out", f"ckpt={start}", *words, "num_workers=0", "dataset.image_size=65")
    assert answer.code == 0, answer.err
    assert list(answer.result["test"]["iou_per_class"]) == ["k\udce4fer"]
