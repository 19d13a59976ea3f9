"""Value for value the official release: cases a (1 shot, 2 episodes), b (5 shots), e (473×473), and the head alone."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch

from hdmnet.models.bam.model import BAM
from hdmnet.models.bam.official import build_official, load_official_checkpoint, official_key
from hdmnet.models.base_learner import BaseLearner
from hdmnet.models.ensemble import base_foreground, gram_distance
from hdmnet.models.losses import SegmentationLoss, segmentation_loss
from hdmnet.models.masked_prior import prior_masks
from hdmnet.models.official import guess_kind
from hdmnet.models.official_base_learner import build_official_base_learner, official_base_learner_key
from hdmnet.tasks.schedule import poly_factor
from tests.helpers import bam_recipe as recipe
from tests.helpers.pfenet_recipe import UNIT_SCALE
from tests.helpers.release_cases import (
    Case,
    check_inputs,
    check_keys,
    check_state,
    close,
    fill,
    given_layers,
    make_small_state,
    norm,
    refused,
    save,
    without_dropout,
)

# What float32 noise allows.
FINAL, META, BASE, PRIOR, DISTANCE, WEIGHT, BASE_MAP = 1e-5, 5e-5, 1e-4, 5e-5, 2e-6, 1e-5, 3e-5
LOSSES, STEP_LOSSES, NORMS = 1e-5, 1e-4, 1e-4
# Data set, shots, episodes, side.
CASES = {"a": ("pascal", 1, 2, 105), "b": ("coco", 5, 1, 110), "e": ("pascal", 1, 1, 473)}
NUM_BASE = {"pascal": 15, "coco": 60}


def filled(model, name_of=official_key):
    fill(model, recipe.fill_state_dict, name_of)
    return model


def losses(out, inputs):
    """The terms of the release; that of the base learner has no gradient, so that training leaves it out."""
    found = SegmentationLoss(auxiliary={"meta": 1.0})(out, inputs["y_m"])
    return found, segmentation_loss(out.auxiliary_logits["base"], inputs["y_b"])


def check_losses(found, expected, **tolerance):
    terms, base = found
    assert terms["final"].item() == pytest.approx(expected["main"], **tolerance)
    assert terms["meta"].item() == pytest.approx(expected["aux1_meta"], **tolerance)
    assert base.item() == pytest.approx(expected["aux2_base"], **tolerance)
    assert not base.requires_grad


def group_norms(model):
    return {group["name"]: norm(group["params"]) for group in model.parameter_groups(1.0)}


@pytest.fixture(scope="module", params=CASES)
def case(request, facts):
    dataset, shots, batch, side = CASES[request.param]
    inputs = recipe.make_inputs(facts[request.param]["name"], shots, batch, side, NUM_BASE[dataset])
    check_inputs(inputs, facts[request.param])
    return Case(request.param, filled(build_official(dataset, "resnet50_v2", shots)), inputs)


@pytest.mark.long
def test_evaluation(case, arrays):
    model, arrays, shots = case.model.eval(), case.own(arrays), CASES[case.letter][1]
    query, supports, masks = case.episode
    with torch.no_grad():
        encoded = model.encode_query(query)
        kept = model.encode_support(supports.flatten(0, 1), masks.flatten(0, 1))
        out = model.match(encoded, kept, shots=shots)
        distances = gram_distance(encoded.gram, kept.gram.unflatten(0, (-1, shots)))
        weights = model.ensemble.weigh_shots(distances)
    prototypes = kept.prototype.unflatten(0, (-1, shots))
    found = {
        "final_low": (out.scores, FINAL),
        "meta_low": (out.auxiliary["meta"], META),
        "final_every_7th": (out.logits[..., ::7, ::7], FINAL),
        "meta_every_7th": (out.logits_of("meta")[..., ::7, ::7], META),
        "base_low": (out.auxiliary["base"][..., ::3, ::3], BASE),
        "prior": (out.maps["prior"][0][:, None], PRIOR),
        "prior_shots": (prior_masks(encoded.layer4, kept.layer4, shots=shots), PRIOR),
        "proto_shots": (prototypes, META),
        "proto": (torch.einsum("bk,bkc->bc", weights, prototypes), META),
        "est_val_total": (distances, DISTANCE),
        "weight_soft": (weights, WEIGHT),
        "est_val": (model.ensemble.pool_distances(distances)[:, None], DISTANCE),
        "base_map": (base_foreground(out.auxiliary["base"]), BASE_MAP),
        "que_gram_s32": (encoded.gram[:, ::32, ::32], 1e-5),
    }
    compared = found.keys() & arrays.keys()
    assert len(compared) >= (4 if case.letter == "e" else 11)
    for name in compared:
        ours, atol = found[name]
        close(ours[..., ::4, ::4] if case.letter == "e" else ours, arrays[name], atol)


@pytest.mark.long
@pytest.mark.parametrize("case", ["a", "b"], indirect=True)
def test_training(case, arrays, facts):
    """Losses, gradients, and steps of the release's optimiser, without dropout."""
    expected, arrays = facts[case.letter]["train"], case.own(arrays)
    model = without_dropout(copy.deepcopy(case.model))
    made = {key: torch.from_numpy(value) for key, value in case.inputs.items()}
    start = {key: value.clone() for key, value in model.trunk.state_dict().items()}
    class_index = made["cat_idx"]

    # Losses and gradients of the first pass.
    out = model(*case.episode, class_index)
    close(base_foreground(out.auxiliary["base"], class_index), arrays["train_base_map"], BASE_MAP)
    found = losses(out, made)
    check_losses(found, expected, abs=LOSSES)
    found[0]["loss"].backward()
    assert group_norms(model) == pytest.approx(expected["grad_norm"], rel=NORMS)
    learning = {official_key(key): p for key, p in model.named_parameters() if p.requires_grad}
    norms = {key: norm([p]) for key, p in learning.items()}
    assert norms == pytest.approx(expected["grad_norm_per_parameter"], rel=NORMS, abs=1e-7)
    for key, value in arrays.items():
        if key.startswith("grad."):
            name = key.removeprefix("grad.").removesuffix("_priorcol")
            ours = learning[name].grad[:, -1:] if key.endswith("_priorcol") else learning[name].grad
            assert (ours.reshape(value.shape) - value).norm() < 10 * NORMS * value.norm()

    # The release's optimiser: iterations 990 and 991 of 1,000.
    optimizer = torch.optim.SGD(model.parameter_groups(5e-3, lr_factor=10), momentum=0.9, weight_decay=1e-4)
    rate = optimizer.param_groups[0]["lr"]
    for step in expected["steps"]:
        for group in optimizer.param_groups:
            group["lr"] = rate * poly_factor(step["it"], step["of"], 0.9)
            assert group["lr"] == pytest.approx(step["lr"], rel=1e-9)
        optimizer.step()
        optimizer.zero_grad()
        found = losses(model(*case.episode, class_index), made)
        found[0]["loss"].backward()
        check_losses(found, step, rel=STEP_LOSSES)
        for key in ("gram_merge", "cls_merge"):
            assert learning[f"{key}.weight"].flatten().tolist() == pytest.approx(step[key], abs=1e-6)
    assert all(torch.equal(value, start[key]) for key, value in model.trunk.state_dict().items())


# ------------------------------------------------------------------------------------------------- the head alone


@pytest.mark.long
def test_head_alone(arrays, facts, monkeypatch):
    """Soft masks, an object of one pixel, an empty mask, and layer-4 features so small that each eps counts."""
    monkeypatch.setattr("hdmnet.models.masked_prior.BLOCK", 7)  # of the support's positions, several blocks
    facts = facts["unit"]
    shots = recipe.UNIT_SHOTS
    model = filled(BAM(encoder=BaseLearner(backbone=given_layers(UNIT_SCALE), num_base=15), num_shots=shots).eval())
    made = recipe.make_unit_inputs()
    check_inputs(made, facts)
    made = {key: torch.from_numpy(value) for key, value in made.items()}
    query = model.encode_query(torch.cat([made["q2"], made["q3"]], dim=1))
    support = model.encode_support(torch.cat([made["s2"], made["s3"]], dim=2).flatten(0, 1), made["s_y"].flatten(0, 1))
    query.size = (105, 105)
    distances = gram_distance(query.gram, support.gram.unflatten(0, (2, shots)))
    out, trained = (model.match(query, support, shots=shots, class_index=one) for one in (None, made["cat_idx"]))
    for name, ours, atol in (
        ("proto_shots", support.prototype.unflatten(0, (2, shots)), META),
        ("prior_shots", prior_masks(query.layer4, support.layer4, shots=shots), 3e-4),
        ("prior", out.maps["prior"][0][:, None], 3e-4),
        ("est_val_total", distances, DISTANCE),
        ("weight_soft", model.ensemble.weigh_shots(distances), WEIGHT),
        ("est_val", model.ensemble.pool_distances(distances)[:, None], DISTANCE),
        ("base_map", base_foreground(query.base_scores), BASE_MAP),
        ("train_base_map", base_foreground(query.base_scores, made["cat_idx"]), BASE_MAP),
        ("meta_low", out.auxiliary["meta"], META),
        ("final_low", out.scores, FINAL),
    ):
        close(ours, arrays[f"unit.{name}"], atol)
    found = losses(trained, made)
    check_losses(found, facts, abs=LOSSES)
    found[0]["loss"].backward()
    assert group_norms(model) == pytest.approx(facts["grad_norm"], rel=NORMS)


# ------------------------------------------------------------------------------------------------- stage 1


@pytest.mark.long
def test_base_learner_alone(arrays, facts):
    """Evaluation; then a step with PASCAL's rates, batch normalisation learning its statistics, without dropout."""
    facts = facts["stage1"]
    model = filled(build_official_base_learner("pascal", "resnet50_v2"), official_base_learner_key)
    made = recipe.make_stage1_inputs()
    check_inputs(made, facts)
    images, labels = (torch.from_numpy(value) for value in made.values())
    with torch.no_grad():
        close(model.eval()(images)[..., ::21, ::21], arrays["stage1.eval_out_s21"], BASE)
    without_dropout(model)
    loss = segmentation_loss(model(images), labels)
    assert loss.item() == pytest.approx(facts["loss"], abs=1e-4)
    loss.backward()
    parts = {"encoder": (model.backbone,), "ppm": (model.pyramid_pooling,), "cls": (model.reduce, model.classifier)}
    for name, modules in parts.items():
        found = norm(p for module in modules for p in module.parameters())
        assert found == pytest.approx(facts["grad_norm"][name], rel=5e-3 if name == "encoder" else 5e-4)
    state = {official_base_learner_key(key): value for key, value in model.state_dict().items()}
    statistics = {key.removeprefix("stage1.bn."): v for key, v in arrays.items() if key.startswith("stage1.bn.")}
    assert len(statistics) == 8
    for key, value in statistics.items():
        torch.testing.assert_close(state[key][::8], value, rtol=1e-4, atol=1e-4 * value.abs().max().item())
    rate = 2.5e-4 * poly_factor(1, 1000, 0.9)
    groups = [{"params": list(m.parameters()), "lr": rate * f} for f, part in ((1, "encoder"), (10, "ppm"), (10, "cls"))
              for m in parts[part]]  # fmt: skip
    torch.optim.SGD(groups, momentum=0.9, weight_decay=1e-4).step()
    with torch.no_grad():
        assert segmentation_loss(model(images), labels).item() == pytest.approx(facts["loss_after_one_step"], rel=1e-4)


# ------------------------------------------------------------------------------------------------- keys and files


@pytest.mark.parametrize("variant", ["pascal 1", "pascal 5", "coco 1"])
@pytest.mark.parametrize("backbone", ["resnet50_v2", "vgg16"])
def test_keys_shapes_counts_and_groups(backbone, variant, facts):
    recorded, (dataset, shot) = facts["keys"][backbone], variant.split()
    with torch.device("meta"):
        model = build_official(dataset, backbone, int(shot))
    own = recorded["of_coco"] if dataset == "coco" else recorded["of_5_shots"] if shot == "5" else {}
    learning = {*recorded["trainable"], *(recorded["of_5_shots"] if shot == "5" else ())}
    check_keys(model, official_key, recorded["state_dict"] | own, learning)
    learnable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert [sum(p.numel() for p in model.parameters()), learnable] == recorded["counts"][variant]
    groups = [
        {"name": g["name"], "n_tensors": len(g["params"]), "n_params": sum(p.numel() for p in g["params"])}
        for g in model.parameter_groups(1.0)
    ]
    assert groups == recorded["groups"] + ([{"name": "kshot_rw", "n_tensors": 4, "n_params": 27}] * (shot == "5"))


@pytest.fixture
def state(facts):
    """Of VGG-16, PASCAL, 1 shot."""
    return make_small_state(facts["keys"]["vgg16"]["state_dict"])


@pytest.mark.parametrize("form", ["plain", "wrapped with module."])
def test_every_form_is_read(form, state, tmp_path):
    wrapped = {"epoch": 7, "state_dict": {f"module.{k}": v for k, v in state.items()}, "optimizer": {"state": {}}}
    path = save(state if form == "plain" else wrapped, tmp_path / "official.pth")
    check_state(load_official_checkpoint(path, "pascal", "vgg16", 1), official_key, state)


def test_what_does_not_fit_is_refused_in_one_line(state, tmp_path, facts):
    assert guess_kind(state) == {"kind": "BAM", "dataset": "pascal", "backbone": "vgg16", "shot": "1"}

    def refuse(content, match, *, dataset="pascal", backbone="vgg16", shot=1):
        load = partial(load_official_checkpoint, dataset=dataset, backbone=backbone, shot=shot)
        refused(load, content, tmp_path / "official.pth", match)

    refuse(state, r"does not fit BAM dataset=coco .*misshapen: .*looks like .*dataset=pascal", dataset="coco")
    refuse(state, r"missing: kshot_rw\.0\.bias.*the file looks like shot=1$", shot=5)
    five = {key: torch.zeros(shape) for key, shape in facts["keys"]["vgg16"]["of_5_shots"].items()}
    refuse(state | five, r"4 surplus: kshot_rw.*the file looks like shot=5$")
    refuse(state, r"missing: .*looks like backbone=vgg16$", backbone="resnet50_v2")
    refuse({k: v for k, v in state.items() if k != "res1_meta.0.weight"}, r"1 missing: res1_meta\.0\.weight")
    refuse({"transformer.a": torch.zeros(1)}, "the file looks like kind=HDMNet")
    refuse(state, r"backbone='resnet50': the release has only resnet50_v2, vgg16", backbone="resnet50")
