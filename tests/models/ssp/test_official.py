"""Value for value the official release: cases a (1 shot, 2 episodes), b (5 shots), c (unrefined), and units."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hdmnet.models.class_prototypes import to_rows, unit
from hdmnet.models.official import guess_kind
from hdmnet.models.ssp.loss import SSPLoss
from hdmnet.models.ssp.official import build_official, load_official_checkpoint, official_key
from hdmnet.models.ssp.self_support import FEWEST, THRESHOLDS, pool, self_support
from hdmnet.run.checkpoints import load_official
from tests.helpers import prototype_recipe as recipe
from tests.helpers.official_recipe import rng_for
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

# What float32 noise allows. The recorded gradients themselves are 1e-3 off those in 64 bits, those of a group 2e-4.
OUTPUTS, PROTOTYPES, LOSSES, STEP_LOSSES = 1e-4, 2e-5, 1e-5, 1e-4
NORMS, PARAMETER_NORMS, SLICES = 5e-4, 2e-3, 3e-2  # of gradients, relative
CASES = {"a": (1, 2, True), "b": (5, 1, True), "c": (1, 1, False)}  # shots, episodes, refine


@pytest.fixture(scope="module", params=CASES)
def case(request, facts):
    shots, batch, refine = CASES[request.param]
    own = facts[request.param]
    inputs = recipe.make_inputs("ssp", own["name"], shots, batch, own["size"])
    model = build_official("pascal", "resnet50_v2", shots, refine=refine)
    fill(model, recipe.fill_state_dict, official_key)
    return Case(request.param, model, inputs)


@pytest.mark.long
def test_the_recipe_makes_the_recorded_inputs(case, facts):
    check_inputs(case.inputs, facts[case.letter])


def test_evaluation(case, arrays):
    recorded = case.own(arrays)
    model, (query, supports, masks) = case.model.eval(), case.episode
    with torch.no_grad():
        kept = model.encode_support(supports.flatten(0, 1), masks.flatten(0, 1))
        out = model.match(model.encode_query(query), kept, shots=supports.shape[1])
    close(kept.average(supports.shape[1]), recorded["prototypes"], PROTOTYPES)
    close(out.maps["similarity"][0], recorded["support_low"].softmax(1)[:, 1], OUTPUTS)
    close(out.logits[..., ::6, ::6], recorded["final_every_6th"], OUTPUTS)
    assert list(out.auxiliary) == ["first"] * model.refine
    if model.refine:
        close(out.auxiliary_logits["first"][..., ::6, ::6], recorded["first_every_6th"], OUTPUTS)


@pytest.mark.long
def test_training(case, arrays, facts):
    """Losses, gradients and a step of the release's optimiser."""
    model, recorded, loss = case.model.train(), facts[case.letter], SSPLoss()
    query, supports, masks = case.episode
    start = {key: value.clone() for key, value in model.state_dict().items()}
    out = model(query, supports, masks)
    terms = loss(out, case.target)
    check(terms, recorded["losses"], LOSSES)
    _, shots = supports.shape[:2]
    # The release lists the supports shot by shot.
    by_shot = nn.functional.interpolate(out.support_scores, query.shape[2:], mode="bilinear", align_corners=True)
    by_shot = by_shot.unflatten(0, (-1, shots)).transpose(0, 1).flatten(0, 1)
    close(by_shot[..., ::9, ::9], arrays[f"{case.letter}.self_support_every_9th"], OUTPUTS)
    learning = {official_key(key): p for key, p in model.named_parameters() if p.requires_grad}

    def norms(parameters):
        total = {group: 0.0 for group in ("layer2", "layer3")}
        for key, p in parameters.items():
            total[key.partition(".")[0]] += p.grad.double().pow(2).sum().item()
        return {**{key: value**0.5 for key, value in total.items()}, "all": sum(total.values()) ** 0.5}

    # Of each term alone.
    for name, expected in recorded["grad_norm_by_term"].items() if case.letter == "a" else ():
        model.zero_grad()
        scale = SSPLoss().weights.get(name, 1.0)
        (scale * terms[name]).backward(retain_graph=True)
        assert norms(learning) == pytest.approx(expected, rel=NORMS), name
    model.zero_grad()
    terms["loss"].backward()
    assert norms(learning) == pytest.approx(recorded["grad_norm"], rel=NORMS)
    each = {key: norm([p]) for key, p in learning.items()}
    assert each == pytest.approx(recorded["grad_norm_per_parameter"], rel=PARAMETER_NORMS)
    for key, step in (("layer2.0.conv1.weight", (4, 64)), ("layer3.5.conv3.weight", (64, 16))):
        value = arrays[f"{case.letter}.grad.{key}"]
        ours = learning[key].grad[:: step[0], :: step[1]]
        assert (ours - value).norm() < SLICES * value.norm()

    rule = {key: value for key, value in facts["keys"]["optimizer"][0].items() if key in ("momentum", "weight_decay")}
    optimizer = torch.optim.SGD(model.parameter_groups(1e-3), **rule)
    optimizer.step()
    with torch.no_grad():
        check(loss(model(query, supports, masks), case.target), recorded["after_one_step"], STEP_LOSSES)
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, start[key])}
    assert {official_key(key) for key in moved} == set(facts["keys"]["learnable"])


def check(terms, recorded, atol):
    found = {name: terms[name].item() for name in recorded if name != "total"} | {"total": terms["loss"].item()}
    found["self_support"] *= 0.2  # as the release counts it
    assert found == pytest.approx(recorded, abs=atol)


def test_self_support_alone(arrays, facts):
    """Both thresholds, one of them, none; values and gradients."""
    features, scores = map(torch.from_numpy, recipe.make_self_support_inputs())
    probability = scores.softmax(1).flatten(2)
    sure = torch.stack([probability[:, 1] > THRESHOLDS[1], probability[:, 0] > THRESHOLDS[0]], dim=1)
    assert sure.sum(2).tolist() == facts["unit_counts"]
    features.requires_grad_()
    rows = to_rows(features)
    background, foreground = self_support(rows, unit(rows), to_rows(scores))
    ssbp, asbp = arrays["unit.ssbp"][:, None], arrays["unit.asbp_every_64th"].flatten(2).transpose(1, 2)
    close(foreground, arrays["unit.ssfp"][:, None], PROTOTYPES)
    close(background[..., ::64], 0.3 * ssbp[..., ::64] + 0.7 * asbp, PROTOTYPES)
    # Gradients of a sum with weights. SSBP and ASBP come out mixed: each is taken out by what the other has as values.
    g = rng_for("unit/cotangent")
    shapes = ((4, 1024, 1, 1), (4, 1024, 1, 1), (4, 1024, 9, 11))
    c1, c2, c3 = (torch.from_numpy(g.standard_normal(shape)).float() for shape in shapes)
    chosen = torch.where(
        sure[:, 1].any(1, keepdim=True),
        sure[:, 1],
        torch.zeros_like(sure[:, 1]).scatter(1, probability[:, 0].topk(FEWEST).indices, True),
    ).to(rows.dtype)
    mean = (chosen[:, None] @ rows) / chosen.sum(1)[:, None, None]
    adaptive = (background - 0.3 * mean) / 0.7
    total = (foreground[:, 0] * c1[..., 0, 0]).sum() + (mean[:, 0] * c2[..., 0, 0]).sum()
    total = total + (adaptive * to_rows(c3)).sum() / 10
    total.backward()
    recorded = arrays["unit.grad_every_64th"]
    assert (features.grad[:, ::64] - recorded).norm() < 1e-4 * recorded.norm()


def test_pooling_alone(arrays):
    """A mask of a pixel, an empty one, a full one, a block."""
    features, masks = map(torch.from_numpy, recipe.make_pool_inputs(42))
    close(pool(features, masks)[:, 1], arrays["unit.pooled"], 1e-6)


# ------------------------------------------------------------------------------------------------- keys and files


def test_keys_shapes_and_counts(facts):
    recorded = facts["keys"]
    with torch.device("meta"):
        model = build_official("coco", "resnet50_v2")
    check_keys(model, official_key, recorded["state_dict"], recorded["learnable"])
    assert sum(p.numel() for p in model.parameters()) == recorded["counts"]["total_parameters"]
    assert sum(p.numel() for p in model.parameter_groups(1.0)[0]["params"]) == recorded["counts"]["learnable"]


@pytest.fixture
def state(facts):
    """A state dict of the release whose file is small."""
    return make_small_state(facts["keys"]["state_dict"])


@pytest.mark.parametrize("refine", [True, False])
def test_a_file_is_read(refine, state, tmp_path):
    content = state if refine else {"state_dict": {f"module.{k}": v for k, v in state.items()}}
    model = load_official_checkpoint(save(content, tmp_path / "o.pth"), "coco", "resnet50_v2", 5, refine=refine)
    check_state(model, official_key, state)
    assert model.refine is refine


def test_evaluation_of_a_file_heeds_the_switch(state, tmp_path):
    path = save(state, tmp_path / "o.pth")
    settings = {"name": "ssp", "encoder": "backbone", "refine": False, "trunk": {"layers": [3]}}
    assert not load_official("ssp", path, "pascal", "resnet50_v2", 1, settings).refine
    assert load_official("ssp", path, "pascal", "resnet50_v2", 1).refine


def test_what_does_not_fit_is_refused_in_one_line(state, tmp_path):
    path = tmp_path / "official.pth"

    def refuse(content, match, backbone="resnet50_v2"):
        refused(lambda file: load_official_checkpoint(file, "pascal", backbone, 1), content, path, match)

    refuse({k: v for k, v in state.items() if "layer3.5" not in k}, r"does not fit SSP .*missing: layer3\.5\.bn1")
    refuse(state | {"layer3.6.conv1.weight": torch.zeros(1)}, r"1 surplus: layer3\.6\.conv1\.weight")
    refuse({"transformer.a": torch.zeros(1)}, "the file looks like kind=HDMNet")
    refuse(state, r"backbone='vgg16': the release has only resnet50_v2", "vgg16")
    assert guess_kind(state) == {"kind": "SSP", "backbone": "resnet50_v2"}
