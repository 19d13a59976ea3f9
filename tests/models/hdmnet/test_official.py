"""Value for value the official release: cases a (PASCAL, 1 shot) and b (COCO, 5 shots), recorded in float32, CPU."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from hdmnet.models.hdmnet.loss import HDMNetLoss
from hdmnet.models.hdmnet.official import (
    build_official,
    load_official_base_learner,
    official_base_learner_key,
    official_key,
)
from hdmnet.models.mid_level import masked_average
from hdmnet.tasks.schedule import poly_schedule
from scripts.checkpoints.convert_checkpoint import to_official_state_dict
from tests.helpers import official_recipe as recipe
from tests.helpers.official_files import fill

OUTPUTS, LOSSES, NORMS = 2e-5, 1e-5, 1e-4  # what float32 noise allows
STEP_NOISE = 1e-4
CASES = {"a": ("pascal", 1), "b": ("coco", 5)}
GROUPS = {  # ours → the release's
    "transformer": "transformer.mix_transformer",
    "down_support": "down_supp",
    "down_query": "down_query",
    "support_merge": "supp_merge",
    "query_merge": "query_merge",
    "gram_merge": "gram_merge",
    "base_merge": "cls_merge",
}
VARIANTS = [f"{d}_{b}_{s}shot" for d in ("pascal", "coco") for b in ("r50", "vgg") for s in (1, 5)]


def split_variant(variant):
    dataset, backbone, shot = variant.split("_")
    return dataset, {"r50": "resnet50_v2", "vgg": "vgg16"}[backbone], int(shot[0])


def close(ours, recorded, atol):
    torch.testing.assert_close(ours.detach(), torch.from_numpy(recorded), rtol=0, atol=atol)


@dataclass
class Case:
    """One recorded case: our model filled, its inputs, outputs and gradients, and the recorded values."""

    model: torch.nn.Module
    inputs: dict
    arrays: dict
    facts: dict
    evaluation: object
    training: object
    losses: dict
    gradients: dict

    def __repr__(self):
        return self.facts["name"]


@pytest.fixture(scope="module", params=CASES)
def case(request, golden):
    dataset, shot = CASES[request.param]
    arrays, facts = golden(f"case_{request.param}.npz"), golden(f"case_{request.param}.json.gz")
    model = build_official(dataset, "resnet50_v2", shot)
    fill(model)
    inputs = {key: torch.from_numpy(value) for key, value in recipe.make_inputs(facts["name"]).items()}
    episode = (inputs["x"], inputs["s_x"], inputs["s_y"])
    with torch.no_grad():
        evaluation = model(*episode)
    training = model(*episode, inputs["cat_idx"])
    losses = HDMNetLoss()(training, inputs["y_m"])
    parameters = {official_key(k): p for k, p in model.named_parameters() if p.requires_grad}
    gradients = dict(zip(parameters, torch.autograd.grad(losses["loss"], list(parameters.values())), strict=True))
    return Case(model, inputs, arrays, facts, evaluation, training, losses, gradients)


@pytest.mark.long
def test_the_recipe_makes_the_recorded_inputs(case):
    sums = {key: recipe.checksum(value.numpy()) for key, value in case.inputs.items()}
    assert sums == case.facts["inputs_sha256_16"]


def test_outputs(case):
    out, arrays = case.evaluation, case.arrays
    close(out.logits, arrays["final"], OUTPUTS)
    close(out.logits_of("meta"), arrays["meta"], OUTPUTS)
    close(out.auxiliary["base"], arrays["base_scores"], OUTPUTS)
    close(out.logits_of("base")[..., ::4, ::4], arrays["base_every_4th"], OUTPUTS)
    close(torch.stack(out.maps["prior"], dim=1), arrays["priors"], OUTPUTS)
    for stage, correlation in enumerate(out.maps["correlation"], start=1):
        close(correlation, arrays[f"map{stage}"], OUTPUTS)
    assert len(out.maps["correlation"]) == 3


def test_shapes_and_full_resolution(case):
    batch, classes = len(case.inputs["x"]), {"a": 16, "b": 61}[case.facts["name"][0]]
    out = case.evaluation
    assert out.logits.shape == out.logits_of("meta").shape == (batch, 2, 105, 105)
    assert out.logits_of("base").shape == (batch, classes, 105, 105)
    assert [m.shape for m in out.maps["correlation"]] == [(batch, n, n) for n in (14, 7, 4)]
    assert torch.stack(out.maps["prior"], dim=1).shape == (batch, 2, 14, 14)


@pytest.mark.long
def test_merged_features(case):
    # In 64 bits: of values up to 25, the recorded ones' own rounding takes up the tolerance.
    model = copy.deepcopy(case.model).double()
    inputs = {key: value.double() for key, value in case.inputs.items() if key in ("x", "s_x", "s_y")}
    mask = (inputs["s_y"] == 1).double()
    with torch.no_grad():
        meta, query = model.meta_learner, model.trunk(inputs["x"])
        supports = model.trunk((inputs["s_x"] * mask[:, :, None]).flatten(0, 1))
        reduced = meta.reduce_support(supports.layer3, supports.layer2)
        merged_support, prototypes = meta.embed_support(reduced, mask.flatten(0, 1))
        share = meta.query_share(meta.reduce_query(query.layer3, query.layer2))
        prior = torch.stack(case.evaluation.maps["prior"], dim=1).double()
        merged = meta.embed_query(share, prototypes.unflatten(0, mask.shape[:2]), prior)
    for ours, name in ((merged, "query_merged_every_8th"), (merged_support, "support_merged_every_8th")):
        recorded = torch.from_numpy(case.arrays[name]).double()
        torch.testing.assert_close(ours[:, ::8], recorded, rtol=1e-5, atol=OUTPUTS)


def test_losses_by_term_and_by_stage(case):
    recorded = case.facts["losses"]
    for name in ("final", "meta", "distillation"):
        assert case.losses[name].item() == pytest.approx(recorded[name], abs=LOSSES)
    stages = [case.losses[f"distillation_stage{i}"].item() for i in (1, 2, 3)]
    assert stages == pytest.approx(recorded["stages_finest_first"], abs=LOSSES)
    base = torch.nn.functional.cross_entropy(case.training.logits_of("base"), case.inputs["y_b"], ignore_index=255)
    assert base.item() == pytest.approx(recorded["base"], abs=LOSSES)
    assert not base.requires_grad
    total = recorded["final"] + recorded["meta"] + recorded["distillation"]
    assert case.losses["loss"].item() == pytest.approx(total, abs=LOSSES)
    close(case.training.logits, case.arrays["train_final"], OUTPUTS)


def group_norms(gradients):
    squares = dict.fromkeys(GROUPS.values(), 0.0)
    for key, gradient in gradients.items():
        group = next((g for g in squares if key.startswith(g)), None)
        if group is not None:
            squares[group] += gradient.double().pow(2).sum().item()
    return {group: square**0.5 for group, square in squares.items()}


def test_gradient_norms_by_group_and_by_parameter(case):
    recorded = dict(case.facts["grad_norms"])
    assert recorded.pop("kshot_rw", 0.0) < 1e-5
    assert group_norms(case.gradients) == pytest.approx(recorded, rel=NORMS)
    norms = {key: gradient.double().norm().item() for key, gradient in case.gradients.items()}
    # Absolute, too: some gradients (that of kshot_rw, of biases before a softmax) are rounding noise around 0.
    assert norms == pytest.approx(case.facts["grad_norm_per_parameter"], rel=NORMS, abs=1e-7)


@pytest.mark.long
@pytest.mark.parametrize("term", ["distillation", "prediction"])
def test_gradient_norms_of_each_term(case, term):
    model, inputs = case.model, case.inputs
    losses = HDMNetLoss()(model(inputs["x"], inputs["s_x"], inputs["s_y"], inputs["cat_idx"]), inputs["y_m"])
    loss = losses["distillation"] if term == "distillation" else losses["final"] + losses["meta"]
    parameters = {official_key(k): p for k, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    found = {key: g for key, g in zip(parameters, gradients, strict=True) if g is not None}
    name = "grad_norms_distillation" if term == "distillation" else "grad_norms_without_distillation"
    recorded = {key: value for key, value in case.facts[name].items() if key != "kshot_rw"}
    norms = {key: value for key, value in group_norms(found).items() if key in recorded}
    assert norms == pytest.approx(recorded, rel=NORMS)


def test_whole_gradients(case):
    recorded = {key.removeprefix("grad."): value for key, value in case.arrays.items() if key.startswith("grad.")}
    assert len(recorded) >= 7
    for key, value in recorded.items():
        ours = case.gradients[key]
        ours = ours[::4] if "_merge.0" in key else ours  # every 4th row of the large ones is kept
        scale = np.abs(value).max()
        close(ours, value, max(NORMS * scale, 1e-7))


@pytest.mark.long
def test_one_optimiser_step(case):
    """AdamW with the release's groups and the first rate of a poly schedule over 1,000 iterations."""
    model, inputs, recorded = case.model, case.inputs, case.facts["step"]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameter_groups(lr=1e-4), weight_decay=0.01)
    poly_schedule(optimizer, 1000, 0.9)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(recorded["group_lr"], rel=1e-12)
    assert [group["weight_decay"] for group in optimizer.param_groups] == recorded["group_wd"]
    parameters = {official_key(k): p for k, p in model.named_parameters() if p.requires_grad}
    for key, parameter in parameters.items():
        parameter.grad = case.gradients[key].clone()
    try:
        optimizer.step()
        with torch.no_grad():
            out = model(inputs["x"], inputs["s_x"], inputs["s_y"], inputs["cat_idx"])
        losses = HDMNetLoss()(out, inputs["y_m"])
        moved = {official_key(k) for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    finally:
        model.load_state_dict(before)
        model.zero_grad(set_to_none=True)
    assert moved == set(parameters) - set(recorded["changed_params_not"])
    prediction = (losses["final"] + losses["meta"]).item()
    # Adam's first step divides each gradient by itself: rounding noise in the smallest ones decides their sign.
    assert prediction == pytest.approx(recorded["main_loss_plus_aux_loss1"], rel=STEP_NOISE)
    assert losses["distillation"].item() == pytest.approx(recorded["distil_loss_div3"], rel=STEP_NOISE)


# ------------------------------------------------------------------------------------------------ meta learner alone


@pytest.fixture(scope="module")
def meta_learner():
    with torch.device("meta"):
        model = build_official("pascal", "vgg16", 1)
    learner = model.meta_learner.to_empty(device="cpu")
    fill(learner, lambda key: official_key(f"meta_learner.{key}"))
    return learner


@pytest.mark.parametrize("scale", [1, 0.01])
@pytest.mark.parametrize("shot", [1, 3])
def test_meta_learner_not_square_with_input_gradients(meta_learner, golden, shot, scale):
    inputs = {key: torch.from_numpy(v) for key, v in recipe.transformer_inputs(shot, scale).items()}
    query, support = inputs["q"].requires_grad_(), inputs["s"].requires_grad_()
    stages = meta_learner.support_stages(support, inputs["mask"][:, 0])
    logits, maps = meta_learner.match(query, stages, inputs["sim"], shots=shot)
    recorded = {k.split(".grad_")[-1].split(".")[-1]: v for k, v in golden("unit_transformer.npz").items()
                if k.startswith(f"s{shot}_scale{scale:g}.")}  # fmt: skip
    close(logits, recorded["outs"], OUTPUTS)
    for stage, correlation in enumerate(maps, start=1):
        close(correlation, recorded[f"map{stage}"], OUTPUTS)
    weights = recipe.rng_for("unit_transformer/r").standard_normal(logits.shape).astype(np.float32)
    objective = (logits * torch.from_numpy(weights)).sum() + sum(m.pow(2).sum() for m in maps)
    gradients = torch.autograd.grad(objective, [query, support])
    for gradient, name in zip(gradients, ("q_every_4th", "s_every_4th"), strict=True):
        value = recorded[name]
        close(gradient[:, ::4], value, NORMS * np.abs(value).max())


def test_masked_average_pooling(golden):
    features, mask = map(torch.from_numpy, recipe.gap_inputs())
    close(masked_average(features, mask), golden("unit_small.npz")["gap"], 1e-6)


# ------------------------------------------------------------------------------------------------- keys and counts


def build_shapes(variant):
    with torch.device("meta"):  # shapes only
        return build_official(*split_variant(variant))


@pytest.mark.long
@pytest.mark.parametrize("variant", VARIANTS)
def test_keys_shapes_and_parameter_counts(variant, official_keys):
    recorded, model = official_keys[variant], build_shapes(variant)
    ours = {official_key(key): list(value.shape) for key, value in model.state_dict().items()}
    assert len(ours) == len(model.state_dict())  # no two of ours share a name
    assert ours == recorded["state_dict"]
    trainable = {official_key(key) for key, p in model.named_parameters() if p.requires_grad}
    assert trainable == set(recorded["trainable"])
    counts = recorded["counts"]
    assert sum(p.numel() for p in model.parameters()) == counts["total"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == counts["learnable"]
    groups = model.parameter_groups(lr=1e-4)
    assert [[g["lr"], len(g["params"]), sum(p.numel() for p in g["params"])] for g in groups] == [
        [pytest.approx(lr), *sizes] for lr, *sizes in counts["groups"]
    ]
    names = {id(p): official_key(key) for key, p in model.named_parameters()}
    grouped = [names[id(p)] for g in groups for p in g["params"]]
    assert len(grouped) == len(set(grouped))
    assert trainable - set(grouped) == set(counts["not_in_opt"])
    for group in groups:
        assert all(names[id(p)].startswith(GROUPS[group["name"]]) for p in group["params"])


def test_learnable_parameters_are_table_3s():
    model = build_shapes("pascal_r50_1shot")
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 4_161_734
    assert sum(p.numel() for p in model.parameter_groups(lr=1.0)[0]["params"]) == 3_309_634


@pytest.mark.parametrize("dataset", ["pascal", "coco"])
@pytest.mark.parametrize("backbone", ["r50", "vgg"])
def test_base_learner_keys(dataset, backbone, official_keys):
    learner = build_shapes(f"{dataset}_{backbone}_1shot").trunk.base_learner
    recorded = official_keys[f"psp_{dataset}_{backbone}"]
    ours = {official_base_learner_key(key): list(value.shape) for key, value in learner.state_dict().items()}
    assert ours == recorded["state_dict"]
    assert sum(p.numel() for p in learner.parameters()) == recorded["counts"]["total"]


@pytest.mark.long
def test_vgg_runs_on_its_case():
    """No outputs are recorded here for VGG-16: shapes, the stride of 16 and finite values only."""
    model = build_official("pascal", "vgg16", 1)
    fill(model)
    inputs = {key: torch.from_numpy(value) for key, value in recipe.make_inputs("c_pascal_vgg_1shot_105").items()}
    with torch.no_grad():
        out = model(inputs["x"], inputs["s_x"], inputs["s_y"])
    assert out.logits.shape == out.logits_of("meta").shape == (1, 2, 105, 105)
    assert out.logits_of("base").shape == (1, 16, 105, 105)
    assert [m.shape[1:] for m in out.maps["correlation"]] == [(7, 7), (4, 4), (2, 2)]  # ceil(ceil(105 / 8) / 2) = 7
    assert torch.stack(out.maps["prior"], dim=1).shape == (1, 2, 7, 7)
    assert all(x.isfinite().all() for x in (out.logits, *out.auxiliary_logits.values(), *out.maps["prior"]))
    assert list(to_official_state_dict(model)) == [official_key(key) for key in model.state_dict()]


def test_unknown_official_variants_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"dataset='shapes': the release has only pascal, coco"):
        build_official("shapes", "vgg16", 1)
    with pytest.raises(ValueError, match=r"backbone='resnet18': the release has only resnet50_v2, vgg16"):
        build_official("coco", "resnet18", 1)
    with pytest.raises(ValueError, match=r"shot=0: expected at least 1"):
        build_official("coco", "vgg16", 0)
    with pytest.raises(FileNotFoundError, match="not found"):
        load_official_base_learner(tmp_path / "no.pth", "coco", "vgg16")
