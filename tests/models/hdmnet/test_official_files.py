"""Files of the release: every form is read, every misfit or hostile file ends in one clear line and runs nothing."""

from __future__ import annotations

import pickle

import pytest
import torch

from hdmnet.models.hdmnet.official import (
    build_official,
    load_official_base_learner,
    load_official_checkpoint,
    official_base_learner_key,
    official_key,
)
from hdmnet.models.official import read_state_dict
from scripts.checkpoints.convert_checkpoint import to_official_base_learner_state_dict, to_official_state_dict
from tests.helpers.official_files import make_state


@pytest.fixture
def tiny_state(official_keys):
    return make_state(official_keys["coco_r50_1shot"]["state_dict"], tiny=True)


@pytest.fixture
def load(tmp_path):
    """Save contents and load them as COCO, deep-stem ResNet-50, 1 shot (or as asked)."""

    def save_and_load(content, dataset="coco", backbone="resnet50_v2", shot=1, loader=load_official_checkpoint):
        path = tmp_path / "official.pth"
        torch.save(content, path)
        arguments = (dataset, backbone) if loader is load_official_base_learner else (dataset, backbone, shot)
        return loader(path, *arguments)

    return save_and_load


def refused(load, content, match, **changes):
    with pytest.raises(ValueError, match=match) as error:
        load(content, **changes)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


# --------------------------------------------------------------------------------------------------- what is loaded


@pytest.mark.long
@pytest.mark.parametrize("form", ["plain", "wrapped", "wrapped with module."])
def test_every_form_and_every_value(form, load, official_keys):
    state = make_state(official_keys["pascal_vgg_5shot"]["state_dict"])
    content = dict(state)
    if form == "wrapped with module.":
        content = {f"module.{key}": value for key, value in state.items()}
    if form != "plain":
        content = {"state_dict": content, "epoch": 3, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}
    model = load(content, dataset="pascal", backbone="vgg16", shot=5)
    assert not any(m.training for m in model.modules())
    assert model.ensemble.shot_weighting == "official"
    loaded = to_official_state_dict(model)
    assert loaded.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(loaded[key], value), key
        assert loaded[key].dtype == value.dtype


@pytest.mark.long
def test_counters_of_newer_torch_may_be_missing(load, tiny_state):
    kept = {key: value for key, value in tiny_state.items() if not key.endswith("num_batches_tracked")}
    assert len(kept) < len(tiny_state)
    load(kept)


@pytest.mark.long
@pytest.mark.parametrize("aliases", ["none", "both", "only"])
def test_base_learner_with_its_aliases(aliases, load, official_keys):
    state = make_state(official_keys["psp_pascal_vgg"]["state_dict"])
    content = {key: value for key, value in state.items() if aliases != "only" or not key.startswith("layer")}
    if aliases != "none":
        content |= {f"encoder.{k.removeprefix('layer')}": v for k, v in state.items() if k.startswith("layer")}
    learner = load({"state_dict": content}, dataset="pascal", backbone="vgg16", loader=load_official_base_learner)
    assert not learner.training
    for key, value in learner.state_dict().items():
        assert torch.equal(value, state[official_base_learner_key(key)]), key
    back = to_official_base_learner_state_dict(learner)
    expected = state | {f"encoder.{k.removeprefix('layer')}": v for k, v in state.items() if k.startswith("layer")}
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[key], value) for key, value in expected.items())


# ---------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.long
@pytest.mark.parametrize(
    ("variant", "cause"),
    [
        ("coco_r50_5shot", r"4 surplus: kshot_rw.*; the file looks like shot=5$"),
        (
            "pascal_r50_1shot",
            r"base_learnear\.2\.weight \(16, 512, 1, 1\) instead of \(61, .*looks like dataset=pascal$",
        ),
        ("coco_vgg_1shot", r"missing: .* surplus: .*the file looks like backbone=vgg16$"),
        ("pascal_vgg_5shot", r"the file looks like shot=5, backbone=vgg16, dataset=pascal$"),
        ("psp_coco_r50", r"missing: .*the file looks like kind=base learner$"),
    ],
)
def test_another_variant_is_named(variant, cause, load, official_keys):
    content = make_state(official_keys[variant]["state_dict"], tiny=True)
    message = refused(load, content, cause)
    assert "does not fit HDMNet dataset=coco backbone=resnet50_v2 shot=1" in message


def test_missing_shot_weights_say_one_shot(load, tiny_state):
    refused(load, tiny_state, r"4 missing: kshot_rw\.0\.bias, .* …; the file looks like shot=1$", shot=5)
    weights = {"kshot_rw.0.weight": (2, 5, 1, 1), "kshot_rw.0.bias": (2,), "kshot_rw.2.weight": (5, 2, 1, 1)}
    state = tiny_state | make_state(weights | {"kshot_rw.2.bias": (5,)}, tiny=True)
    refused(load, state, r"misshapen: kshot_rw.*; the file looks like shot=5$", shot=10)


def test_missing_surplus_and_misshapen_keys_are_named(load, tiny_state):
    changed = dict(tiny_state)
    del changed["query_merge.0.weight"]
    changed["invented.weight"] = torch.zeros(1)
    changed["gram_merge.weight"] = torch.zeros(1, 3, 1, 1)
    refused(
        load,
        changed,
        r"1 missing: query_merge\.0\.weight; 1 surplus: invented\.weight; "
        r"1 misshapen: gram_merge\.weight \(1, 3, 1, 1\) instead of \(1, 2, 1, 1\); check dataset, backbone and shot$",
    )
    refused(load, tiny_state | {"layer9.1.num_batches_tracked": torch.tensor(0)}, "1 surplus: layer9")


def test_hdmnet_given_as_base_learner(load, tiny_state):
    refused(load, tiny_state, "the file looks like kind=HDMNet", loader=load_official_base_learner)


def test_differing_aliases(load, official_keys):
    state = make_state(official_keys["psp_coco_r50"]["state_dict"], tiny=True)
    state["encoder.0.0.weight"] = torch.ones(64, 3, 3, 3)
    refused(load, state, r"encoder\.0\.0\.weight and layer0\.0\.weight differ", loader=load_official_base_learner)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"fc.weight": torch.zeros(3, 3), "conv1.weight": torch.zeros(1)}, "another model's checkpoint"),
        ([torch.zeros(1)], "holds no state dict"),
        ({}, "holds no state dict"),
        ({"state_dict": {}}, "holds no state dict"),
        ({"state_dict": {"a": 1}}, "holds no state dict"),
        (torch.zeros(3), "holds no state dict"),
        ({"hdmnet": {}, "state_dict": {}}, "was written by hdmnet"),
        ({"hdmnet_base_learner": {}, "state_dict": {}}, "was written by hdmnet"),
        ({"a": torch.zeros(1), "module.a": torch.zeros(1)}, "names some tensors twice"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "a is no ordinary tensor"),
        ({"a": torch.zeros(1, dtype=torch.complex64)}, "a is no ordinary tensor"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("loader", [load_official_checkpoint, load_official_base_learner])
def test_what_is_no_checkpoint_of_the_release(content, match, loader, load):
    refused(load, content, match, loader=loader, backbone="vgg16")


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.999])
def test_truncated_file(kept, tmp_path, tiny_state):
    path = tmp_path / "official.pth"
    torch.save(tiny_state, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(
        ValueError, match=r"cannot read checkpoint .*: (it is damaged|it is an empty file|beside tensors it holds)"
    ) as error:
        read_state_dict(path)
    assert "\n" not in str(error.value)


class Bomb:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle", "beside the state dict"])
def test_hostile_pickle_is_not_run(form, tmp_path, tiny_state):
    path, trace = tmp_path / "official.pth", tmp_path / "ran"
    if form == "bare pickle":
        path.write_bytes(pickle.dumps(Bomb(trace)))
    elif form == "beside the state dict":
        torch.save({"state_dict": tiny_state, "args": Bomb(trace)}, path)
    else:
        torch.save({"layer0.0.weight": Bomb(trace)}, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match=r"code would have to be run \(none was\)") as error:
        read_state_dict(path)
    assert "\n" not in str(error.value)
    assert not trace.exists()
    if form == "bare pickle":  # the bomb does go off where it is let
        pickle.loads(path.read_bytes()).close()
        assert trace.exists()


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.pth' not found"):
        load_official_checkpoint(tmp_path / "no.pth", "coco", "vgg16", 1)


# ------------------------------------------------------------------------------------------- what the release lacks


def variant(change):
    with torch.device("meta"):
        model = build_official("coco", "vgg16", 5)
        change(model)
    return model


def set_prior_norm(model):
    model.prior_norm = True


def set_shot_weighting(model):
    model.ensemble.shot_weighting = "intended"


def set_temperature(model):
    model.meta_learner.matching[1].temperature = 0.2


def drop_ensemble(model):
    model.ensemble = None


def drop_stage(model):
    model.meta_learner.pyramid.stages = model.meta_learner.pyramid.stages[:2]


def shrink_merge(model):
    model.meta_learner.matching[0].merge[0] = torch.nn.Conv2d(66, 64, 1, bias=False)


@pytest.mark.long
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (set_prior_norm, "model.prior_norm=True: the official release has only False"),
        (set_shot_weighting, "model.shot_weighting=intended: the official release has only official"),
        (set_temperature, "model.matching.temperature=0.2: the official release has only 0.1"),
        (drop_ensemble, "model.ensemble=false has no counterpart"),
        (drop_stage, r"no counterpart of meta_learner\.pyramid\.stages\.2.*expected three stages"),
        (shrink_merge, r"no counterpart of meta_learner\.matching\.0\.merge\.0\.weight"),
    ],
)
def test_what_the_release_cannot_compute_is_not_converted(change, match):
    with pytest.raises(ValueError, match=match):
        to_official_state_dict(variant(change))


def test_unknown_part():
    with pytest.raises(KeyError):
        official_key("meta_learner.invented.weight")
