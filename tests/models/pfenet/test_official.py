"""Value for value the official release: cases a (1 shot, 2 episodes) and b (5 shots), and the head alone (unit)."""

from __future__ import annotations

import pickle

import pytest
import torch

from hdmnet.models.losses import segmentation_loss
from hdmnet.models.masked_prior import prior_masks
from hdmnet.models.pfenet.model import PFENet
from hdmnet.models.pfenet.official import PPM_SCALES, build_official, load_official_checkpoint, official_key
from hdmnet.tasks.schedule import poly_factor
from tests.helpers import pfenet_recipe as recipe
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

LOGITS, SIDES, PRIOR, PROTOTYPE, LOSSES = 5e-5, 1e-4, 5e-5, 2e-5, 1e-5  # what float32 noise allows
STEP_LOSSES = 2e-4
NORMS = {"batch": 1e-3, "frozen": 1e-4}
CASES = {"a": (1, 2), "b": (5, 1)}  # shots, episodes


def filled(model):
    fill(model, recipe.fill_state_dict, official_key)
    return model


def losses(out, mask):
    """Terms of the main prediction and of each scale, finest first."""
    scales = [segmentation_loss(out.auxiliary_logits[f"scale{k}"], mask) for k in (1, 2, 3, 4)]
    return segmentation_loss(out.logits, mask), scales


def total(main, scales):
    return main + sum(scales) / len(scales)


def check_losses(found, recorded, atol):
    main, scales = found
    assert main.item() == pytest.approx(recorded["main"], abs=atol)
    assert [scale.item() for scale in scales] == pytest.approx(recorded["aux_per_scale"], abs=atol)


def group_norms(model):
    return {group["name"]: norm(group["params"]) for group in model.parameter_groups(1.0)}


@pytest.fixture(scope="module", params=CASES)
def case(request, facts):
    shots, batch = CASES[request.param]
    inputs = recipe.make_inputs(facts[request.param]["name"], shots, batch, 105)
    return Case(request.param, filled(build_official("pascal", "resnet50_v2", shots)), inputs)


@pytest.mark.long
def test_the_recipe_makes_the_recorded_inputs(case, facts):
    check_inputs(case.inputs, facts[case.letter])


@pytest.mark.long
def test_evaluation(case, arrays):
    recorded = case.own(arrays)
    model = case.model.eval()
    query, supports, masks = case.episode
    shots = supports.shape[1]
    with torch.no_grad():
        encoded = model.encode_query(query)
        kept = model.encode_support(supports.flatten(0, 1), masks.flatten(0, 1))
        out = model.match(encoded, kept, shots=shots)
        whole = model(*case.episode)
    prototypes = kept.prototype.unflatten(0, (-1, shots))
    close(prototypes.mean(1), recorded["proto"], PROTOTYPE)
    close(out.maps["prior"][0][:, None], recorded["prior"], PRIOR)
    if shots > 1:
        close(prototypes, recorded["proto_shots"], PROTOTYPE)
        close(prior_masks(encoded.layer4, kept.layer4, shots=shots), recorded["prior_shots"], PRIOR)
    assert list(out.auxiliary) == ["scale1", "scale2", "scale3", "scale4"]
    for name, step in zip(out.auxiliary, (4, 2, 1, 1), strict=True):
        close(out.auxiliary[name][..., ::step, ::step], recorded[name], SIDES)
    for answer in (out, whole):
        close(answer.scores, recorded["out_low"], LOGITS)
        close(answer.logits[..., ::7, ::7], recorded["out_every_7th"], LOGITS)


@pytest.mark.long
@pytest.mark.parametrize(("case", "trunk_bn"), [("a", "batch"), ("a", "frozen"), ("b", "batch")], indirect=["case"])
def test_training(case, trunk_bn, arrays, facts):
    """Losses, gradients, running statistics and (of one case) steps of the release's optimiser, without dropout."""
    recorded = facts[case.letter][trunk_bn]
    encoder = filled(case.model).trunk.encoder
    model = PFENet(encoder=encoder, ppm_scales=PPM_SCALES["pascal"], trunk_bn=trunk_bn)
    model.load_state_dict(case.model.state_dict())
    without_dropout(model)
    start = {key: value.clone() for key, value in model.trunk.state_dict().items()}

    # Losses and gradients of the first pass.
    found = losses(model(*case.episode), case.target)
    check_losses(found, recorded, LOSSES)
    total(*found).backward()
    norms = NORMS[trunk_bn]
    assert group_norms(model) == pytest.approx(recorded["grad_norm"], rel=norms)
    learning = {official_key(key): p for key, p in model.named_parameters() if p.requires_grad}
    parameter_norms = {key: norm([p]) for key, p in learning.items()}
    assert parameter_norms == pytest.approx(recorded["grad_norm_per_parameter"], rel=norms, abs=1e-7)
    state = {official_key(key): value for key, value in model.state_dict().items()}
    if trunk_bn == "batch":
        statistics = {k.split(".", 2)[2]: v for k, v in arrays.items() if k.startswith(f"{case.letter}.bn.")}
        assert len(statistics) >= 2
        for key, value in statistics.items():
            torch.testing.assert_close(state[key], value, rtol=1e-4, atol=1e-4 * value.abs().max().item())
        assert state["layer4.0.bn1.num_batches_tracked"] == 1 + CASES[case.letter][0]
    else:
        assert all(torch.equal(value, start[key]) for key, value in model.trunk.state_dict().items())
        gradients = {k.split(".", 2)[2]: v for k, v in arrays.items() if k.startswith(f"{case.letter}.grad.")}
        for key, value in gradients.items():
            name = key.removesuffix("_s16").removesuffix("_priorcol")
            ours = learning[name].grad
            ours = ours[::16, ::16] if key.endswith("_s16") else ours[:, -1:] if key.endswith("_priorcol") else ours
            assert (ours.reshape(value.shape) - value).norm() < 10 * norms * value.norm()

    # The release's optimiser: iterations 990 and 991 of 1,000. It does not know of K or of the trunk.
    if (case.letter, trunk_bn) != ("a", "batch"):
        return
    optimizer = torch.optim.SGD(model.parameter_groups(2.5e-3, lr_factor=10), momentum=0.9, weight_decay=1e-4)
    rate = optimizer.param_groups[0]["lr"]
    for step in recorded["steps"]:
        for group in optimizer.param_groups:
            group["lr"] = rate * poly_factor(step["it"], step["of"], 0.9)
            assert group["lr"] == pytest.approx(step["lr"], rel=1e-9)
        optimizer.step()
        optimizer.zero_grad()
        main, scales = losses(model(*case.episode), case.target)
        total(main, scales).backward()
        assert main.item() == pytest.approx(step["main"], abs=STEP_LOSSES)
        assert (sum(scales) / 4).item() == pytest.approx(step["aux"], abs=STEP_LOSSES)


# ------------------------------------------------------------------------------------------------- the head alone


@pytest.mark.long
def test_head_alone(arrays, facts, monkeypatch):
    """Soft masks, an object of one pixel, an empty mask, and layer-4 features so small that each eps counts."""
    monkeypatch.setattr("hdmnet.models.masked_prior.BLOCK", 7)  # of the support's positions, several blocks
    model = filled(PFENet(encoder=given_layers(recipe.UNIT_SCALE), ppm_scales=PPM_SCALES["pascal"]).eval())
    made = recipe.make_unit_inputs()
    check_inputs(made, facts["unit"])
    made = {key: torch.from_numpy(value) for key, value in made.items()}
    query = model.encode_query(torch.cat([made["q2"], made["q3"]], dim=1))
    support = model.encode_support(torch.cat([made["s2"], made["s3"]], dim=2).flatten(0, 1), made["s_y"].flatten(0, 1))
    query.size = (105, 105)
    out = model.match(query, support, shots=2)
    close(support.prototype.unflatten(0, (2, 2)), arrays["unit.proto_shots"], PROTOTYPE)
    close(prior_masks(query.layer4, support.layer4, shots=2), arrays["unit.prior_shots"], 2e-4)
    close(out.maps["prior"][0][:, None], arrays["unit.prior"], 2e-4)
    close(out.auxiliary["scale3"], arrays["unit.inner2"], SIDES)
    close(out.auxiliary["scale4"], arrays["unit.inner3"], SIDES)
    close(out.scores, arrays["unit.out_low"], LOGITS)
    found = losses(out, made["y_m"])
    check_losses(found, facts["unit"], LOSSES)
    total(*found).backward()
    assert group_norms(model) == pytest.approx(facts["unit"]["grad_norm"], rel=NORMS["frozen"])


# ------------------------------------------------------------------------------------------------- keys and files


@pytest.mark.parametrize(("backbone", "learnable"), [("resnet50_v2", 10_817_034), ("vgg16", 10_423_818)])
def test_keys_shapes_counts_and_groups(backbone, learnable, facts):
    recorded = facts["keys"][backbone]
    with torch.device("meta"):
        model = build_official("coco", backbone)
    check_keys(model, official_key, recorded["state_dict"], recorded["trainable"])
    assert sum(p.numel() for p in model.parameters()) == recorded["total_params"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == recorded["learnable_params"] == learnable
    groups = [
        {"name": g["name"], "n_tensors": len(g["params"]), "n_params": sum(p.numel() for p in g["params"])}
        for g in model.parameter_groups(1.0)
    ]
    assert groups == recorded["groups"]


@pytest.fixture
def state(facts):
    """A state dict of the release whose file is small."""
    return make_small_state(facts["keys"]["vgg16"]["state_dict"])


@pytest.mark.parametrize("form", ["plain", "wrapped with module."])
def test_every_form_is_read(form, state, tmp_path):
    wrapped = {"epoch": 7, "state_dict": {f"module.{k}": v for k, v in state.items()}, "optimizer": {"state": {}}}
    model = load_official_checkpoint(
        save(state if form == "plain" else wrapped, tmp_path / "official.pth"), "pascal", "vgg16", 5
    )
    check_state(model, official_key, state)
    assert model.enrichment.sizes == (60, 30, 15, 8)


def test_what_does_not_fit_is_refused_in_one_line(state, tmp_path):
    path = tmp_path / "official.pth"

    def refuse(content, match, backbone="vgg16"):
        refused(lambda file: load_official_checkpoint(file, "coco", backbone, 1), content, path, match)

    refuse(state, r"does not fit PFENet dataset=coco .*missing: .*looks like backbone=vgg16$", "resnet50_v2")
    refuse({k: v for k, v in state.items() if k != "res1.0.weight"}, r"1 missing: res1\.0\.weight")
    refuse(state | {"kshot_rw.0.bias": torch.zeros(2)}, r"1 surplus: kshot_rw\.0\.bias")
    refuse(state | {"cls.3.bias": torch.zeros(3)}, r"misshapen: cls\.3\.bias \(3,\) instead of \(2,\)")
    refuse({"transformer.a": torch.zeros(1)}, "the file looks like kind=HDMNet")
    refuse({"hdmnet": {}}, "was written by hdmnet")
    with pytest.raises(ValueError, match=r"shot=0: expected at least 1"):
        load_official_checkpoint(save(state, path), "coco", "vgg16", 0)
    with pytest.raises(ValueError, match=r"backbone='resnet18': the release has only resnet50_v2, vgg16"):
        load_official_checkpoint(path, "coco", "resnet18", 1)
    with pytest.raises(ValueError, match=r"dataset='shapes': the release has only pascal, coco"):
        load_official_checkpoint(path, "shapes", "vgg16", 1)
    path.write_bytes(pickle.dumps(print))
    with pytest.raises(ValueError, match=r"\(none was\)"):
        load_official_checkpoint(path, "coco", "vgg16", 1)
