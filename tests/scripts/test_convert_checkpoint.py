"""Official → ours → official keeps every bit; what the script cannot do ends in one line."""

from __future__ import annotations

import pytest
import torch

from hdmnet.runtime.checkpoint_file import BASE_LEARNER_KEY, RUN_KEY, read_checkpoint
from scripts.checkpoints import convert_checkpoint
from tests.helpers.official_files import make_state, read_golden


def convert(*arguments):
    return convert_checkpoint.main([str(a) for a in arguments])


def bits(state):
    return {
        key: (value.dtype, tuple(value.shape), value.contiguous().numpy().tobytes()) for key, value in state.items()
    }


@pytest.mark.long
@pytest.mark.parametrize(("variant", "key"), [("coco_vgg_5shot", RUN_KEY), ("psp_coco_vgg", BASE_LEARNER_KEY)])
def test_round_trip_is_bit_equal(variant, key, tmp_path, capsys):
    state = make_state(read_golden("keys.json.gz")[variant]["state_dict"])
    odd = next(name for name in state if name.endswith("cls.4.weight"))
    state[odd] = state[odd].clone()
    state[odd].view(-1)[:4] = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45])
    if key == BASE_LEARNER_KEY:
        state |= {f"encoder.{k.removeprefix('layer')}": v for k, v in state.items() if k.startswith("layer")}
    official, ours, back = tmp_path / "official.pth", tmp_path / "ours.ckpt", tmp_path / "back.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, official)
    assert convert(official, ours, "--dataset", "coco", "--backbone", "vgg16", "--shot", 5, "--fold", 2) == 0
    about = read_checkpoint(ours)[key]
    if key == RUN_KEY:
        config = about["config"]
        assert (config["dataset"]["name"], config["fold"], config["shot"]) == ("coco", 2, 5)
        assert (config["backbone"]["name"], config["model"]["shot_weighting"]) == ("vgg16", "official")
        assert about["class_names"][:2] == ["car", "train"]  # classes 3, 7, 11, …
        assert len(about["class_names"]) == 20
    else:
        assert about == {"fold": 2, "backbone": "vgg16", "dataset": "coco"}
    assert convert(ours, back) == 0
    assert bits(read_checkpoint(back)["state_dict"]) == bits(state)
    assert str(back) in capsys.readouterr().out
    for path in (official, ours, back):
        path.unlink()  # 100 MB each


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["missing.pth", "out.ckpt"], "not found"),
        (["official.pth", "out.ckpt"], "--dataset and --backbone are needed"),
        (["official.pth", "official.pth"], "exists; remove it or choose another name"),
        (["official.pth", "out.ckpt", "--dataset", "coco", "--backbone", "vgg16"], "the file looks like"),
        (["official.pth", "out.ckpt", "--dataset", "shapes"], "invalid choice"),
        (["run.ckpt", "out.pth"], "has no dataset.name in its config"),
        (["base.pt", "out.pth"], "the release has only pascal, coco"),
    ],
)
def test_one_line_errors(arguments, match, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(make_state(read_golden("keys.json.gz")["coco_r50_1shot"]["state_dict"], tiny=True), "official.pth")
    torch.save({"state_dict": {"model.a": torch.zeros(1)}, RUN_KEY: {"config": {}}}, "run.ckpt")
    torch.save({"state_dict": {}, BASE_LEARNER_KEY: {"dataset": "shapes"}}, "base.pt")
    assert convert(*arguments) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert match in lines[0]
    assert not (tmp_path / "out.ckpt").exists()
    assert not (tmp_path / "out.pth").exists()
