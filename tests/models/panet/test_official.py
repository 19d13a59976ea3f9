"""Value for value the official release: cases a (1 shot, 2 episodes) and b (5 shots), and the pooling alone."""

from __future__ import annotations

import pytest
import torch

from hdmnet.models.official import guess_kind
from hdmnet.models.panet.loss import PANetLoss
from hdmnet.models.panet.model import pool
from hdmnet.models.panet.official import build_official, load_official_checkpoint, official_key
from tests.helpers import prototype_recipe as recipe
from tests.helpers.release_cases import (
    Case,
    check_inputs,
    check_keys,
    check_state,
    close,
    fill,
    make_small_state,
    norm,
    refused,
    save,
)

OUTPUTS, PROTOTYPES, LOSSES, STEP_LOSSES = 2e-4, 2e-5, 1e-5, 2e-4  # what float32 noise allows
NORMS, PARAMETER_NORMS, SLICES = 2e-4, 2e-3, 2e-2  # of gradients, relative
CASES = {"a": (1, 2), "b": (5, 1)}  # shots, episodes


@pytest.fixture(scope="module", params=CASES)
def case(request, facts):
    shots, batch = CASES[request.param]
    own = facts[request.param]
    inputs = recipe.make_inputs("panet", own["name"], shots, batch, own["size"])
    model = build_official("pascal", "vgg16_plain", shots)
    fill(model, recipe.fill_state_dict, official_key)
    return Case(request.param, model, inputs)


@pytest.mark.long
def test_the_recipe_makes_the_recorded_inputs(case, facts):
    check_inputs(case.inputs, facts[case.letter])


@pytest.mark.long
def test_evaluation(case, arrays):
    recorded = case.own(arrays)
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


@pytest.mark.long
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
        assert norm(learning.values()) == pytest.approx(expected["all"], rel=NORMS), term
    each = {key: norm([p]) for key, p in learning.items()}
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
    check_keys(model, official_key, recorded["state_dict"], recorded["learnable"])
    assert sum(p.numel() for p in model.parameter_groups(1.0)[0]["params"]) == recorded["counts"]["learnable"]
    assert sum(p.numel() for p in model.parameters()) == recorded["counts"]["total"]


@pytest.fixture
def state(facts):
    """A state dict of the release whose file is small."""
    return make_small_state(facts["keys"]["state_dict"])


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_file_is_read(prefix, state, tmp_path):
    path = save({f"{prefix}{key}": value for key, value in state.items()}, tmp_path / "o.pth")
    model = load_official_checkpoint(path, "coco", "vgg16_plain", 5)
    check_state(model, official_key, state)


def test_what_does_not_fit_is_refused_in_one_line(state, tmp_path):
    path = tmp_path / "official.pth"

    def refuse(content, match, backbone="vgg16_plain"):
        refused(lambda file: load_official_checkpoint(file, "pascal", backbone, 1), content, path, match)

    key = "encoder.backbone.features.8.4.bias"
    refuse({k: v for k, v in state.items() if k != key}, r"does not fit PANet .*missing: encoder\.backbone\.features")
    refuse(state | {"encoder.fc.weight": torch.zeros(1)}, r"1 surplus: encoder\.fc\.weight")
    refuse({"transformer.a": torch.zeros(1)}, "the file looks like kind=HDMNet")
    refuse(state, r"backbone='vgg16': the release has only vgg16_plain", "vgg16")
    assert guess_kind(state) == {"kind": "PANet", "backbone": "vgg16_plain"}
