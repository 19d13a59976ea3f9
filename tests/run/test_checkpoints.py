from __future__ import annotations

import pickle

import pytest
import torch

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.base_learner import BaseLearner
from hdmnet.models.hdmnet.model import build_hdmnet
from hdmnet.run.checkpoints import load_base_learner, load_strictly, run_state_dict, save_base_learner
from hdmnet.runtime.checkpoint_file import BASE_LEARNER_KEY, read_checkpoint, write_atomically

ABOUT = {"dataset": "shapes", "backbone": "resnet_narrow", "fold": 1}


def make_learner(backbone="resnet_narrow", num_base=4):
    with torch.device("meta"):
        learner = BaseLearner(backbone=build_backbone(backbone), num_base=num_base, feature_channels=16)
    return learner.to_empty(device="cpu")


def zeros(module):
    return {key: torch.zeros(()).expand(value.shape) for key, value in module.state_dict().items()}


def model_state(**changes):
    backbone, num_base = changes.pop("backbone", "resnet_narrow"), changes.pop("num_base", 4)
    return zeros(build_hdmnet(make_learner(backbone, num_base), **changes))


class Bomb:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_hostile_file_is_not_run(form, tmp_path):
    path, trace = tmp_path / "bomb.ckpt", tmp_path / "ran"
    if form == "torch":
        torch.save({"hdmnet": {"config": {}}, "state_dict": {}, "hyper_parameters": Bomb(trace)}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(ValueError, match=r"nothing in it was run") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)
    assert not trace.exists()


def test_truncated_and_other_files(tmp_path):
    path = tmp_path / "a.ckpt"
    write_atomically({"state_dict": zeros(make_learner())}, path)
    assert list(tmp_path.iterdir()) == [path]
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="cannot be read: damaged"):
        read_checkpoint(path)
    torch.save([1], path)
    with pytest.raises(ValueError, match="holds a list; expected a mapping"):
        read_checkpoint(path)
    with pytest.raises(FileNotFoundError, match="not found; expected the path"):
        read_checkpoint(tmp_path / "no.ckpt")


@pytest.mark.parametrize("content", [{}, {"state_dict": [1]}, {"state_dict": {"model.a": "text"}}])
def test_run_without_a_state_dict(content):
    with pytest.raises(ValueError, match="has no state_dict of tensors by name"):
        run_state_dict(content)


def test_run_state_dict_takes_the_network_only():
    state = run_state_dict({"state_dict": {"model.a.b": torch.ones(1), "val_metrics.x": torch.ones(1)}})
    assert list(state) == ["a.b"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"num_shots": 5}, r"4 surplus \(ensemble\.shot_weights.*trained with another number of shots \(shot\)\?"),
        ({"num_base": 3}, r"misshapen .*classifier.*trained on another data set"),
        ({"backbone": "resnet18"}, r"trained with another backbone\?"),
        ({"num_stages": 2}, r"trained with another model\.num_stages"),
        ({"ensemble": False}, r"2 missing .*trained with another model\.ensemble\?"),
        ({"matching": {"merge_kernel": 1}}, r"model\.matching\.merge_kernel"),
    ],
)
def test_misfit_names_the_likely_cause(changes, cause):
    model = build_hdmnet(make_learner())
    with pytest.raises(ValueError, match=cause) as error:
        load_strictly(model, model_state(**changes), "ckpt=a.ckpt")
    assert str(error.value).startswith("ckpt=a.ckpt does not fit this model: ")
    assert "\n" not in str(error.value)


def test_another_models_checkpoint():
    with pytest.raises(ValueError, match=r"another model's checkpoint\?$"):
        load_strictly(make_learner(), {"fc.weight": torch.zeros(1)}, "ckpt=a.ckpt")


def test_base_learner_round_trip(tmp_path):
    learner, path = make_learner(), tmp_path / "folder" / "base.pt"
    for value in learner.state_dict().values():
        value.copy_(torch.rand(value.shape))
    save_base_learner(learner, path, ABOUT)
    loaded = load_base_learner(make_learner(), path, dataset="shapes", backbone="resnet_narrow", fold=1)
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), learner.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("wrong", [{"dataset": "pascal"}, {"backbone": "resnet18"}, {"fold": 0}])
def test_base_learner_of_another_run_is_refused(wrong, tmp_path):
    """A base learner of another fold has seen the novel classes: the figures would be too good."""
    save_base_learner(make_learner(), tmp_path / "base.pt", ABOUT)
    ((key, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"was trained with {key}={ABOUT[key]}, this run has {key}={value}"):
        load_base_learner(make_learner(), tmp_path / "base.pt", **(ABOUT | wrong))


def test_base_learner_files_that_are_none(tmp_path):
    path = tmp_path / "base.pt"
    for content, match in (
        ({"hdmnet": {}, "state_dict": {}}, "is a whole run"),
        ({BASE_LEARNER_KEY: ABOUT}, "has no state_dict"),
        ({"layer0.0.weight": torch.zeros(1)}, "the official release has none for backbone=resnet_narrow"),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=match):
            load_base_learner(make_learner(), path, dataset="shapes", backbone="resnet_narrow")


def test_official_base_learner_by_the_same_call(tmp_path):
    torch.save({"layer0.0.weight": torch.zeros(1)}, tmp_path / "base.pth")
    with pytest.raises(ValueError, match="does not fit base learner dataset=coco backbone=vgg16"):
        load_base_learner(make_learner(), tmp_path / "base.pth", dataset="coco", backbone="vgg16")
