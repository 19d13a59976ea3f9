"""Files of the official release in the commands, on a tiny generated COCO tree."""

from __future__ import annotations

import pytest
import torch

from scripts.checkpoints import convert_checkpoint
from tests.helpers import commands
from tests.helpers.official_files import write_official

pytestmark = pytest.mark.slow  # ResNet-50 on COCO pictures, and files of 200 MB

TINY = (
    "dataset.image_size=65",
    "dataset.min_area=128",
    "trainer=cpu",
    "num_workers=0",
    "callbacks.pictures.num_episodes=1",
)
COCO = ("dataset=coco", "backbone=resnet50_v2", "backbone.weights=null", "fold=0", "shot=1", *TINY)
FIGURES = ("test", "test_no_ensemble", "manifest_sha256")


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    path = write_official(tmp_path_factory.mktemp("official") / "official.pth", "coco_r50_1shot")
    yield path
    path.unlink()


def test_evaluate_official_and_its_conversion_alike(official, data_dir, tmp_path):
    sizes = ("episodes=4", "seeds=2", f"paths.data_dir={data_dir}")
    direct = commands.run("evaluate", tmp_path / "a", f"ckpt={official}", *COCO, *sizes)
    converted = tmp_path / "ours.ckpt"
    arguments = ["--dataset", "coco", "--backbone", "resnet50_v2", "--shot", "1", "--fold", "0"]
    assert convert_checkpoint.main([str(official), str(converted), *arguments]) == 0
    # What it is, is in the file: only sizes are given.
    ours = commands.run("evaluate", tmp_path / "b", f"ckpt={converted}", *TINY, *sizes)
    converted.unlink()
    for key in FIGURES:
        assert ours.result[key] == direct.result[key]
    assert direct.result["test"]["num_episodes"] == 4  # a seed
    assert 0 < direct.result["test"]["miou"] < 1
    assert (direct.result["backbone"], direct.result["fold"], direct.result["shot"]) == ("resnet50_v2", 0, 1)


def test_evaluate_refuses_the_wrong_variant(official, data_dir, tmp_path):
    words = [word for word in COCO if word != "shot=1"]
    answer = commands.call("evaluate", tmp_path, f"ckpt={official}", *words, "shot=5", f"paths.data_dir={data_dir}")
    assert answer.code == 1
    *_, last = answer.err.strip().splitlines()  # the catalog's bar comes before
    assert last.startswith("error: checkpoint ")
    assert last.endswith("the file looks like shot=1")
    assert "Traceback" not in answer.err


def test_official_base_learner_for_stage_2(data_dir, tmp_path):
    base = write_official(tmp_path / "base.pth", "psp_coco_r50")
    words = ("trainer.max_steps=2", "optim.batch_size=2", "dataset.episodes_per_epoch=4", "dataset.num_val_episodes=2")
    words += ("dataset.num_test_episodes=2", "dataset.num_test_seeds=1", f"paths.data_dir={data_dir}")
    answer = commands.run("train", tmp_path / "run", f"base_ckpt={base}", *COCO, *words)
    assert "training it (stage 1)" not in answer.out
    trained = commands.load(answer.folder / "checkpoints" / "last.ckpt")["state_dict"]
    state = torch.load(base, weights_only=True)["state_dict"]
    for ours, theirs in (
        ("backbone.parts.0.0.weight", "layer0.0.weight"),
        ("backbone.parts.4.2.conv3.weight", "layer4.2.conv3.weight"),
        ("reduce.1.running_var", "cls.1.running_var"),
        ("classifier.2.bias", "cls.4.bias"),
    ):
        assert torch.equal(trained[f"model.trunk.base_learner.{ours}"], state[f"module.{theirs}"])
    base.unlink()
