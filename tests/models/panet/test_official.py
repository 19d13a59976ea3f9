"""Value for value the official release: cases a (1 shot, 2 episodes) and b (5 shots), and the pooling alone."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from hdmnet.models.official import guess_kind
from hdmnet.models.panet.loss import PANetLoss
from hdmnet.models.panet.model import PANet, pool
from hdmnet.models.panet.official import build_official, load_official_checkpoint, official_key
from tests.helpers import prototype_recipe as recipe
from tests.helpers.official_recipe import checksum

HERE = Path(__file__).parent / "golden"
OUTPUTS, PROTOTYPES, LOSSES, STEP_LOSSES = 2e-4, 2e-5, 1e-5, 2e-4  # what float32 noise allows
NORMS, PARAMETER_NORMS, SLICES = 2e-4, 2e-3, 2e-2  # of gradients, relative
CASES = {"a": (1, 2), "b": (5, 1)}  # shots, episodes


@pytest.fixture(scope="module")
def arrays():
    with np.load(HERE / "recorded.npz") as recorded:
        return {key: torch.from_numpy(recorded[key]) for key in recorded.files}


@pytest.fixture(scope="module")
def facts():
    return json.loads(gzip.decompress((HERE / "facts.json.gz").read_bytes()))


def close(ours, recorded, atol):
    torch.testing.assert_close(ours.detach(), recorded, rtol=0, atol=atol)


@dataclass
class Case:
    """One recorded case: our model filled, and its inputs."""

    letter: str
    model: PANet
    episode: tuple
    target: torch.Tensor
    inputs: dict

    def __repr__(self):
        return self.letter


@pytest.fixture(scope="module", params=CASES)
def case(request, facts):
    shots, batch = CASES[request.param]
    own = facts[request.param]
    inputs = recipe.make_inputs("panet", own["name"], shots, batch, own["size"])
    tensors = {key: torch.from_numpy(value) for key, value in inputs.items()}
    model = build_official("pascal", "vgg16_plain", shots)
    names = {key: official_key(key) for key in model.state_dict()}
    state = recipe.fill_state_dict({names[key]: tuple(value.shape) for key, value in model.state_dict().items()})
    model.load_state_dict({key: torch.from_numpy(state[name]) for key, name in names.items()})
    return Case(request.param, model, (tensors["x"], tensors["s_x"], tensors["s_y"]), tensors["y_m"], inputs)


def test_the_recipe_makes_the_recorded_inputs(case, facts):
    assert {key: checksum(value) for key, value in case.inputs.items()} == facts[case.letter]["input_sha256_16"]


def test_evaluation(case, arrays):
    recorded = {key.split(".")[1]: value for key, value in arrays.items() if key.startswith(f"{case.letter}.")}
    model, (query, supports, masks) = case.model.eval(), case.episode
    with torch.no_grad():
        kept = model.encode_support(supports.flatten(0, 1), masks.flatten(0, 1))
        out = model.match(model.encode_query(query), kept, shots=supports.shape[1])
    close(kept.average(supports.shape[1]), recorded["prototypes"], PROTOTYPES)
    close(out.scores, recorded["low"], OUTPUTS)
    close(out.logits[..., ::6, ::6], recorded["final_every_6th"], OUTPUTS)


def check(terms, recorded, atol):
    names = {"query_loss": "final", "align_loss": "align", "total": "loss"}
    assert {name: terms[names[name]].item() for name in recorded} == pytest.approx(recorded, abs=atol)


def test_training(case, arrays, facts):
    """Losses, gradients and a step of the release's optimiser."""
    model, recorded, loss = case.model.train(), facts[case.letter], PANetLoss()
    out = model(*case.episode)
    close(out.support_scores, arrays[f"{case.letter}.support_low"], OUTPUTS)
    terms = loss(out, case.target)
    check(terms, recorded["losses"], LOSSES)
    learning = {official_key(key): p for key, p in model.named_parameters() if p.requires_grad}
    alone = (("query_loss", "final"), ("align_loss", "align")) if case.letter == "a" else ()
    for name, term in (*alone, (None, "loss")):
        model.zero_grad()
        terms[term].backward(retain_graph=True)
        expected = recorded["grad_norm"] if name is None else recorded["grad_norm_by_term"][name]
        norm = sum(p.grad.double().pow(2).sum().item() for p in learning.values()) ** 0.5
        assert norm == pytest.approx(expected["all"], rel=NORMS), term
    each = {key: p.grad.double().norm().item() for key, p in learning.items()}
    assert each == pytest.approx(recorded["grad_norm_per_parameter"], rel=PARAMETER_NORMS)
    for key, value in arrays.items():
        if key.startswith(f"{case.letter}.grad."):
            ours = learning[key.split(".", 2)[2]].grad
            assert (ours - value).norm() < SLICES * value.norm()

    rule = {key: value for key, value in facts["keys"]["optimizer"][0].items() if key in ("momentum", "weight_decay")}
    torch.optim.SGD(model.parameter_groups(1e-3), **rule).step()
    with torch.no_grad():
        check(loss(model(*case.episode), case.target), recorded["after_one_step"], STEP_LOSSES)


def test_pooling_alone(arrays):
    """A mask of a pixel, an empty one, a full one, a block."""
    features, masks = map(torch.from_numpy, recipe.make_pool_inputs(41))
    close(pool(features, masks)[:, 1], arrays["unit.pooled"], 1e-6)


# ------------------------------------------------------------------------------------------------- keys and files


def test_keys_shapes_and_counts(facts):
    recorded = facts["keys"]
    with torch.device("meta"):
        model = build_official("coco", "vgg16_plain")
    ours = {official_key(key): list(value.shape) for key, value in model.state_dict().items()}
    assert len(ours) == len(model.state_dict())
    assert ours == recorded["state_dict"]
    assert {official_key(k) for k, p in model.named_parameters() if p.requires_grad} == set(recorded["learnable"])
    assert sum(p.numel() for p in model.parameter_groups(1.0)[0]["params"]) == recorded["counts"]["learnable"]
    assert sum(p.numel() for p in model.parameters()) == recorded["counts"]["total"]


@pytest.fixture
def state(facts):
    """A state dict of the release whose file is small."""
    shapes = facts["keys"]["state_dict"]
    return {key: torch.tensor(0.25 * n).expand(shape) for n, (key, shape) in enumerate(shapes.items())}


def save(content, path):
    torch.save(content, path)
    return path


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_file_is_read(prefix, state, tmp_path):
    path = save({f"{prefix}{key}": value for key, value in state.items()}, tmp_path / "o.pth")
    model = load_official_checkpoint(path, "coco", "vgg16_plain", 5)
    assert not model.training
    assert all(torch.equal(value, state[official_key(key)]) for key, value in model.state_dict().items())


def test_what_does_not_fit_is_refused_in_one_line(state, tmp_path):
    path = tmp_path / "official.pth"

    def refused(content, match, backbone="vgg16_plain"):
        with pytest.raises(ValueError, match=match) as error:
            load_official_checkpoint(save(content, path), "pascal", backbone, 1)
        assert "\n" not in str(error.value)

    key = "encoder.backbone.features.8.4.bias"
    refused({k: v for k, v in state.items() if k != key}, r"does not fit PANet .*missing: encoder\.backbone\.features")
    refused(state | {"encoder.fc.weight": torch.zeros(1)}, r"1 surplus: encoder\.fc\.weight")
    refused({"transformer.a": torch.zeros(1)}, "the file looks like kind=HDMNet")
    refused(state, r"backbone='vgg16': the release has only vgg16_plain", "vgg16")
    assert guess_kind(state) == {"kind": "PANet", "backbone": "vgg16_plain"}
