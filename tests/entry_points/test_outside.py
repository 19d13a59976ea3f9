"""A method, a backbone and a data set from outside the package, with their YAML: nothing of hdmnet is edited.

Their files are those of docs/extending.md.
"""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from hdmnet import Segmenter, report
from hdmnet.apps.label_folder import LabelFolder
from hdmnet.apps.labelling import Labelling, describe
from tests.helpers import commands

PAGE = (commands.ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
WORDS = ("trainer=cpu", "num_workers=0", "trainer.log_every_n_steps=1", "model=cosine", "backbone=tiny")
MACHINE = ("trainer=cpu", "num_workers=0")


def admit(folder, monkeypatch):
    """Its modules can be imported and its YAML found, as on a user's machine."""
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("HDMNET_CONF", str(folder / "conf"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outside")
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def outside(folder, monkeypatch):
    admit(folder, monkeypatch)
    return folder


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """What a training of all that is in the folder has given."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        admit(folder, monkeypatch)
        return commands.run("train", tmp_path_factory.mktemp("trained") / "runs", *WORDS, "dataset=squares")


@pytest.fixture
def picture(tmp_path):
    """A red square on grey."""
    pixels = np.full((30, 50, 3), 128, np.uint8)
    pixels[5:20, 10:30] = 255, 0, 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_the_page_has_every_file():
    assert set(FILES) == {
        *("mine/method.py", "mine/backbone.py", "mine/data.py", "conf/model/cosine.yaml", "conf/backbone/tiny.yaml"),
        *("conf/dataset/squares.yaml", "conf/optim/cosine_squares.yaml"),
    }


@pytest.mark.long
def test_trains_is_tested_predicted_with_and_reported(outside, trained, picture, tmp_path):
    result = trained.result
    assert (result["method"], result["dataset"], result["backbone"]) == ("cosine", "squares", "tiny")
    assert result["test"]["num_episodes_per_seed"] == [6, 6]
    assert result["test"]["miou"] > 0.2  # colours are told apart by nearly any weights
    assert result["test_no_ensemble"] is None
    assert not list(trained.folder.parents[2].rglob("base_learner*.pt"))  # there is no stage 1
    assert (trained.folder / "pictures" / "test.png").is_file()
    assert "lr-SGD" in (trained.folder / "metrics.csv").read_text().splitlines()[0]

    best = trained.folder / "checkpoints" / "best.ckpt"
    tested = commands.run("evaluate", tmp_path / "runs", f"ckpt={best}", *MACHINE)
    assert tested.result["test"] == result["test"]
    plain = commands.run("evaluate", tmp_path / "runs", f"ckpt={best}", *MACHINE, "reuse=false")
    assert plain.result["test"]["miou"] == pytest.approx(result["test"]["miou"], abs=1e-3)

    output = tmp_path / "found"
    words = (f"support=[{picture}:10,5,30,20]", f"query=[{picture}]", "maps=true", "device=cpu", f"output={output}")
    commands.run("predict", tmp_path / "runs", f"ckpt={best}", *words, f"save={tmp_path / 'kept.pt'}")
    mask = np.asarray(Image.open(output / "a_mask.png"))
    assert mask.shape == (30, 50)
    assert np.asarray(Image.open(output / "a_similarity_1.png")).shape == (30, 50, 3)

    # In Python: its supports are kept as pictures with their masks, and behind the web page.
    again = Segmenter.from_checkpoint(tmp_path / "kept.pt", device="cpu")
    prediction = again.predict(picture, maps=True)
    assert (prediction.mask * 255 == mask).all()
    assert [values.ndim for values in prediction.maps["object"]["similarity"]] == [2]
    work = Labelling(again, LabelFolder(tmp_path / "page"), describe(again, packaged=False))
    name = work.folder.add("a.png", picture.read_bytes())
    work.folder.add_class("square")
    work.folder.write_label(name, prediction.mask)
    assert [shown for shown, _ in work.maps(name)] == ["square: similarity 1"]

    assert report.main([str(trained.folder), str(tmp_path / "runs"), "--out", str(tmp_path / "report")]) == 0
    assert "cosine" in (tmp_path / "report" / "report.html").read_text()


@pytest.mark.slow
def test_a_multirun_knows_the_folder_too(outside, tmp_path):
    words = (*WORDS, "dataset=squares", "optim.max_steps=1", "model.scale=3.0,7.0")
    commands.run("train", tmp_path / "runs", "-m", *words)
    results = [json.loads(file.read_text()) for file in tmp_path.rglob("result.json")]
    assert {result["config"]["model"]["scale"] for result in results} == {3.0, 7.0}


@pytest.mark.long
def test_a_file_may_not_name_what_is_not_admitted(outside, trained, tmp_path, monkeypatch):
    """The checkpoint of an outside method is read where its module is admitted, and refused in one line elsewhere."""
    best = trained.folder / "checkpoints" / "best.ckpt"
    monkeypatch.delenv("HDMNET_CONF")
    words = (f"ckpt={best}", *MACHINE)
    assert "='mine." in commands.call("evaluate", tmp_path / "runs", *words).refusal()
    monkeypatch.setenv("HDMNET_EXTENSIONS", "mine")
    commands.run("evaluate", tmp_path / "runs", *words)


@pytest.mark.long
def test_a_thousand_classes_are_trained_on_and_tested(outside, tmp_path):
    (outside / "conf" / "dataset" / "thousand.yaml").write_text(
        "_target_: tests.helpers.datasets.ManyClasses\nname: thousand\nimage_size: 17\nnum_val_episodes: 4\n"
        "num_test_episodes: 60\nnum_test_seeds: 1\naugment: none\n"
    )
    words = ("dataset=thousand", "trainer.max_steps=2", "optim.batch_size=2")
    result = commands.run("train", tmp_path / "runs", *WORDS, *words).result
    test = result["test"]
    assert len(test["iou_per_class"]) == 240
    assert sum(test["counts_per_class"].values()) == 60
    assert 0 < test["miou"] < 1
