"""A method, a backbone and a data set from outside the package, with their YAML: nothing of hdmnet is edited."""

from __future__ import annotations

import textwrap

import numpy as np
import pytest
from PIL import Image

from hdmnet import report
from tests.helpers import commands

CODE = '''
import torch
import torch.nn.functional as F
from torch import nn

from hdmnet.data.datasets.base import SegmentationDataset
from hdmnet.models.backbones.base import Backbone, FeatureInfo
from hdmnet.models.method import FewShotMethod, Segmentation


class Prototype(FewShotMethod):
    """Cosine of each position to the supports' mean foreground, scaled by what is learnt."""

    def __init__(self, *, encoder, num_shots, scale=5.0):
        super().__init__()
        self.backbone = encoder
        self.scale = nn.Parameter(torch.tensor([scale, 0.0]))

    def forward(self, query_image, support_images, support_masks, class_index=None):
        query = self.backbone(query_image)[-1]
        keys = self.backbone(support_images.flatten(0, 1))[-1]
        masks = F.interpolate((support_masks.flatten(0, 1)[:, None] == 1).float(), keys.shape[-2:], mode="area")
        means = (keys * masks).sum((2, 3)) / masks.sum((2, 3)).clamp(min=1e-6)
        prototype = means.unflatten(0, (len(query), -1)).mean(1)[..., None, None]
        cosine = F.cosine_similarity(query, prototype, dim=1)
        foreground = self.scale[0] * cosine + self.scale[1]
        scores = torch.stack([-foreground, foreground], dim=1)
        return Segmentation(scores, tuple(query_image.shape[-2:]), maps={"similarity": [cosine]})


class Tiny(Backbone):
    """Two convolutions."""

    feature_info = (FeatureInfo(8, 4), FeatureInfo(8, 4), FeatureInfo(8, 8))

    def __init__(self, name, width=8):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, width, 5, 4, 2), nn.Conv2d(width, width, 3, 2, 1)

    def forward(self, images):
        fine = self.first(images).relu()
        return fine, fine, self.second(fine)


class Squares(SegmentationDataset):
    """Coloured squares on grey; a picture holds one class."""

    name = "squares"
    class_names = tuple(f"colour {i}" for i in range(8))
    min_area = 1

    def __init__(self, *, per_class=4):
        self.per_class = per_class

    def ids(self, split):
        return [f"{split}-{value}-{i}" for value in range(1, 9) for i in range(self.per_class)]

    def _box(self, image_id):
        split, value, i = image_id.split("-")
        return int(value), 4 + 3 * int(i), 20 - 4 * (split == "train")

    def read_image(self, image_id):
        import numpy as np

        value, at, side = self._box(image_id)
        picture = np.full((40, 48, 3), 128, np.uint8)
        picture[at : at + side, at : at + side] = [(value & 1) * 255, (value >> 1 & 1) * 255, (value >> 2 & 1) * 255]
        return picture

    def read_class_mask(self, image_id, value):
        import numpy as np

        own, at, side = self._box(image_id)
        mask = np.zeros((40, 48), np.uint8)
        if value == own:
            mask[at : at + side, at : at + side] = 1
        return mask

    def class_areas(self, image_id):
        value, _, side = self._box(image_id)
        return {value: side * side}
'''
YAML = {
    "model/prototype": "_target_: mine.Prototype\nname: prototype\nencoder: backbone\nscale: 5.0\n",
    "backbone/tiny": """
        _target_: mine.Tiny
        name: tiny
        width: 8
        mean: [0.5, 0.5, 0.5]
        std: [0.25, 0.25, 0.25]
    """,
    "dataset/squares": "_target_: mine.Squares\nname: squares\nper_class: 4\nimage_size: 33\n",
    "optim/prototype_squares": """
        lr: 0.05
        weight_decay: 0
        optimizer: {_target_: torch.optim.SGD, momentum: 0.9}
        batch_size: 2
        max_steps: 2
        max_epochs: -1
    """,
}
WORDS = (
    *(
        "model=prototype",
        "backbone=tiny",
        "dataset=squares",
        "trainer=cpu",
        "num_workers=0",
        "trainer.log_every_n_steps=1",
    ),
    *("dataset.num_val_episodes=4", "dataset.num_test_episodes=6", "dataset.num_test_seeds=2", "dataset.check_files=0"),
)


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """The folder; its module can be imported and its YAML found, as on a user's machine."""
    folder = tmp_path / "outside"
    for name, text in YAML.items():
        path = folder / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    (folder / "mine.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("HDMNET_CONF", str(folder / "conf"))
    return folder


def test_trains_is_tested_predicted_with_and_reported(outside, tmp_path):
    trained = commands.run("train", tmp_path / "runs", *WORDS)
    result = trained.result
    assert (result["method"], result["dataset"], result["backbone"]) == ("prototype", "squares", "tiny")
    assert result["test"]["num_episodes"] == 6
    assert result["test"]["miou"] > 0.2  # colours are told apart by nearly any weights
    assert "test_no_ensemble" not in result or result["test_no_ensemble"] is None
    assert not list(tmp_path.rglob("base_learner*.pt"))  # there is no stage 1
    assert (trained.folder / "pictures" / "test.png").is_file()
    columns = (trained.folder / "metrics.csv").read_text().splitlines()[0]
    assert "lr-SGD" in columns

    best = trained.folder / "checkpoints" / "best.ckpt"
    tested = commands.run("evaluate", tmp_path / "runs", f"ckpt={best}", "trainer=cpu", "num_workers=0")
    assert tested.result["test"] == result["test"]
    plain = commands.run("evaluate", tmp_path / "runs", f"ckpt={best}", "trainer=cpu", "num_workers=0", "reuse=false")
    assert plain.result["test"]["miou"] == pytest.approx(result["test"]["miou"], abs=1e-3)

    picture = np.full((30, 50, 3), 128, np.uint8)
    picture[5:20, 10:30] = 255, 0, 0
    Image.fromarray(picture).save(tmp_path / "a.png")
    output = tmp_path / "found"
    words = (f"support=[{tmp_path / 'a.png'}:10,5,30,20]", f"query=[{tmp_path / 'a.png'}]", "maps=true", "device=cpu")
    commands.run("predict", tmp_path / "runs", f"ckpt={best}", *words, f"output={output}")
    assert np.asarray(Image.open(output / "a_mask.png")).shape == (30, 50)
    assert (output / "a_similarity_1.png").is_file()

    assert report.main([str(tmp_path / "runs"), "--out", str(tmp_path / "report")]) in (0, None)
    assert "prototype" in (tmp_path / "report" / "report.html").read_text()


def test_a_resumed_run_and_a_multirun_know_the_folder_too(outside, tmp_path):
    words = (*WORDS, "optim.max_steps=1")
    sweep = commands.run("train", tmp_path / "runs", "-m", *words, "model.scale=3.0,7.0")
    assert sweep.out.count("finished") >= 2 or len(list(tmp_path.rglob("result.json"))) == 2


def test_a_file_may_not_name_what_is_not_admitted(outside, tmp_path, monkeypatch):
    """The checkpoint of an outside method is read where its module is admitted, and refused in one line elsewhere."""
    best = commands.run("train", tmp_path / "runs", *WORDS, "optim.max_steps=1").folder / "checkpoints" / "best.ckpt"
    monkeypatch.delenv("HDMNET_CONF")
    words = (f"ckpt={best}", "trainer=cpu", "num_workers=0")
    assert "mine." in commands.call("evaluate", tmp_path / "runs", *words).refusal()
    monkeypatch.setenv("HDMNET_EXTENSIONS", "mine")
    commands.run("evaluate", tmp_path / "runs", *words)
