"""Value for value the release: cases a (1 shot, 2 episodes), b (5 shots), d (positions drawn), and units."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch

from hdmnet.config.instantiate import instantiate
from hdmnet.models.cyctr import transformer
from hdmnet.models.cyctr.deformable import DeformableAttention
from hdmnet.models.cyctr.loss import CyCTRLoss
from hdmnet.models.cyctr.official import build_official, load_official_checkpoint, official_key
from hdmnet.models.cyctr.support import SupportTokens, draw
from hdmnet.models.losses import dice_loss
from hdmnet.models.mid_level import masked_average
from hdmnet.models.official import guess_kind
from hdmnet.run.checkpoints import load_official
from tests.helpers import cyctr_recipe as recipe
from tests.helpers.official_recipe import rng_for
from tests.helpers.release_cases import (
    Case,
    check_inputs,
    check_state,
    close,
    make_small_state,
    norm,
    refused,
    save,
)

# What float32 noise allows; a normalisation whose eps is 1e-6 moves the first norm by 2e-4.
OUTPUTS, NORMS_OF_TOKENS, PRIOR, LOSSES, STEP_LOSSES = 1e-4, 5e-5, 5e-5, 1e-5, 2e-3
# Of gradients, relative. Where sampled places cross a cell's border the recorded ones themselves jump.
NORMS, SLICES = 1e-3, 1e-2
GROUPS = {"head": "sgd", "transformer": "adamw_decay", "transformer_bias": "adamw_no_decay"}
UNUSED = ["addtional_proj.0.weight", "addtional_proj.2.weight"]


def same_bits(flags, recorded):
    assert np.array_equal(np.packbits(flags.numpy()), recorded.numpy())


class PaddedCase(Case):
    """One recorded case, with paddings."""

    def run(self):
        """The answer, with the release's paddings."""
        paddings = [torch.from_numpy(self.inputs[key]) for key in ("padding_mask", "s_padding_mask")]
        return self.model(*self.episode, query_padding=paddings[0], support_padding=paddings[1])


@pytest.fixture(scope="module")
def state(facts):
    return {key: torch.from_numpy(v) for key, v in recipe.fill_state_dict(facts["keys"]["state_dict"]).items()}


@pytest.fixture
def drawn():
    """How many positions each permutation was of."""
    return []


@pytest.fixture
def case(request, facts, state, drawn, monkeypatch):
    own = facts[request.param]

    def permutation(count):
        label = f"{own['name']}/permutation{len(drawn)}"
        drawn.append(count)
        return torch.from_numpy(rng_for(label).permutation(count) if own["drawn"] else np.arange(count))

    monkeypatch.setattr(torch, "randperm", permutation)
    model = build_official("pascal", "resnet50_v2", own["shots"])
    ours = model.state_dict()
    model.load_state_dict({key: state.get(official_key(key), ours[key]) for key in ours})
    inputs = recipe.make_inputs(own["draws"], own["shots"], own["batch"], own["size"])
    check_inputs(inputs, own)
    return PaddedCase(request.param, model, inputs)


def watch(modules):
    """Lists that outputs of modules are written to."""
    seen = {name: [] for name in modules}
    for name, module in modules.items():
        module.register_forward_hook(lambda _, __, output, name=name: seen[name].append(output.detach()))
    return seen


@pytest.mark.long
@pytest.mark.parametrize("case", "abd", indirect=True)
def test_evaluation(case, arrays, facts, drawn, monkeypatch):
    recorded = case.own(arrays)
    model, real, consistent, support = case.model, transformer.cycle_consistent, [], []

    def remember(*arguments):
        consistent.append(real(*arguments))
        return consistent[-1]

    monkeypatch.setattr(transformer, "cycle_consistent", remember)
    modules = {"transformer": model.transformer}
    for k, layer in enumerate(model.transformer.layers):
        modules |= {f"self_{k}": layer.self_attention, f"cross_{k}": layer.cross_attention.output}
        modules |= {f"norm_{4 * k + i}": getattr(layer, f"norm{i + 1}") for i in range(4)}
        layer.cross_attention.register_forward_pre_hook(lambda _, given: support.append(given[1]))
    seen = watch(modules)
    with torch.no_grad():
        out = case.run()
    assert drawn == facts[case.letter]["permutation_sizes"]  # once for both layers
    s = 2 if case.letter == "d" else 1
    close(out.maps["prior"][0][:, None, ::s, ::s], recorded["prior"], PRIOR)
    for k in (0, 1):
        same_bits(support[k].is_object, recorded["is_object"])
        same_bits(support[k].invalid, recorded["invalid"])
        same_bits(consistent[k], recorded[f"consistent_{k}"])
        for name in (f"self_{k}", f"cross_{k}"):
            close(seen[name][0][:, ::3, ::16][:, :: 5 * s, ::2], recorded[name], OUTPUTS)
    for k in range(8):
        close(seen[f"norm_{k}"][0][:, ::5, ::32][:, :: 4 * s, ::2], recorded[f"norm_{k}"], NORMS_OF_TOKENS)
    close(seen["transformer"][0][:, ::32, :: 2 * s, :: 2 * s], recorded["transformer_out"], OUTPUTS)
    close(out.scores[..., ::s, ::s], recorded["logits_low"], OUTPUTS)
    close(out.logits[..., ::7, ::7], recorded["final_every_7th"], OUTPUTS)


@pytest.mark.long
@pytest.mark.parametrize("case", "b", indirect=True)
def test_features(case, arrays):
    """Every support with a prototype of its own."""
    model, x = case.model, {key: torch.from_numpy(value) for key, value in case.inputs.items()}
    with torch.no_grad():
        query = model.encode_query(x["x"])
        support = model.encode_support(x["s_x"][0], x["s_y"][0], x["s_padding_mask"][0])
    close(support.prototype.view(1, 5, 256), arrays["b.proto"], OUTPUTS)
    close(query.reduced[:, ::32, ::4, ::4], arrays["b.query_mid"], OUTPUTS)
    close(support.merged.transpose(1, 2).unflatten(2, (14, 14))[:, ::32, ::4, ::4], arrays["b.supp_merged"], OUTPUTS)


@pytest.mark.long
@pytest.mark.parametrize("case", "ab", indirect=True)
def test_training(case, arrays, facts, drawn, compose_config):
    """Losses, gradients, and a step by conf/optim; no dropout, and positions are drawn as in evaluation."""
    model, recorded, loss = case.model, facts[case.letter], CyCTRLoss()
    model.training = True  # of itself only, not of its parts

    out = case.run()
    terms = loss(out, case.target)
    check(terms, recorded["train"], LOSSES)
    scores = out.score_supports(case.target)[..., ::2, ::2]
    close(scores, arrays[f"{case.letter}.supp_logits_low"].flatten(0, 1), OUTPUTS)
    cfg = compose_config("train", "model=cyctr", "dataset=pascal")
    groups = model.parameter_groups(cfg.optim.lr, **cfg.optim.groups)
    optimizer = instantiate(cfg.optim.optimizer)(groups)
    instantiate(cfg.optim.schedule)(optimizer, recorded["after_one_step"]["max_iter"])
    for term, expected in (("final", "grad_main"), ("support", "grad_aux"), ("loss", "grad")):
        optimizer.zero_grad()
        terms[term].backward(retain_graph=True)
        found = {GROUPS[g["name"]]: norm([p for p in g["params"] if p.grad is not None]) for g in groups}
        assert found == pytest.approx(recorded[expected], rel=NORMS), term
    learning = {official_key(key): p for key, p in model.named_parameters() if p.requires_grad}
    assert {key: norm([p]) for key, p in learning.items()} == pytest.approx(recorded["grad_by_param"], rel=NORMS)
    for key, value in case.own(arrays).items():
        if key.startswith("grad."):
            gradient = learning[key.removeprefix("grad.")].grad
            steps = {"cross_layers": (8, 8), "qry_merge": (16, 8)}
            a, b = next((step for part, step in steps.items() if part in key), (1, 1))
            gradient = gradient[::a, ::b] if gradient.ndim > 1 else gradient
            assert (gradient.reshape(value.shape) - value).norm() < SLICES * value.norm(), key
    optimizer.step()
    with torch.no_grad():
        drawn.clear()
        check(loss(case.run(), case.target), recorded["after_one_step"], STEP_LOSSES)


def check(terms, recorded, atol):
    for ours, theirs in (("loss", "total"), ("final", "main_loss"), ("support", "aux_loss")):
        assert terms[ours].item() == pytest.approx(recorded[theirs], abs=atol), theirs


# ------------------------------------------------------------------------------------------------- units


@pytest.mark.parametrize(("kind", "num_objects"), [("few_fg", 120), ("few_bg", 700), ("plenty", 420)])
def test_drawn_positions(kind, num_objects, arrays, monkeypatch):
    recorded = {k.rpartition(".")[2]: v for k, v in arrays.items() if k.startswith(f"sampling.{kind}.")}
    drawn = []

    def permutation(count):
        label = f"unit/{kind}/permutation{len(drawn)}"
        drawn.append(count)
        return torch.from_numpy(rng_for(label).permutation(count))

    monkeypatch.setattr(torch, "randperm", permutation)
    features, is_object, invalid = map(torch.from_numpy, recipe.make_sampling_inputs(kind, num_objects))
    taken = draw(SupportTokens(features, is_object, invalid), 300, own_flags=False, fixed=False)
    assert drawn == recorded["permutation_sizes"].tolist()
    assert torch.equal(taken.values[:, ::6, ::4], recorded["feature"])
    same_bits(taken.is_object, recorded["mask"])
    same_bits(taken.invalid, recorded["invalid"])


def test_deformable_attention(arrays, facts):
    prefix = "qry_self_layers.0."
    shapes = {k.partition(".")[2]: shape for k, shape in facts["keys"]["state_dict"].items() if prefix in k}
    filled = recipe.fill_state_dict(shapes)
    attention = DeformableAttention(256, num_heads=8, num_points=9, dropout=0.1).eval()
    ours = "transformer.layers.0.self_attention."
    names = {key: official_key(ours + key).partition(".")[2] for key in attention.state_dict()}
    attention.load_state_dict({key: torch.from_numpy(filled[name]) for key, name in names.items()})
    g = rng_for("unit/deform")
    query, value = (torch.from_numpy(g.standard_normal((2, 63, 256))).float().requires_grad_() for _ in range(2))
    invalid = torch.from_numpy(g.uniform(size=(2, 63)) < 0.2)
    cotangent = torch.from_numpy(g.standard_normal((2, 63, 256))).float()
    # The release's takes query and value apart; ours adds a position to the value.
    out = attention(value, query - value, invalid, (7, 9))
    close(out[:, ::3, ::8], arrays["deform.out"], OUTPUTS)
    (out * cotangent).sum().backward()
    for name, own in (("query", query), ("value", value)):
        recorded = arrays[f"deform.grad_{name}"]
        assert (own.grad[:, ::4, ::16] - recorded).norm() < 1e-4 * recorded.norm()
    for key, name in names.items():
        recorded = arrays[f"deform.grad.{name.removeprefix(prefix)}"]
        gradient = attention.get_parameter(key).grad
        gradient = gradient[::8, ::32] if gradient.ndim > 1 else gradient[::4]
        assert (gradient - recorded).norm() < 1e-4 * recorded.norm()


def test_position_code(arrays):
    invalid = torch.zeros(1, 7, 9, dtype=torch.bool)
    for name in ("no_padding", "padded"):
        code = transformer.position_code(invalid, 256).transpose(1, 2).unflatten(2, (7, 9))
        close(code[:, ::8], arrays[f"position.{name}"], 1e-5)
        invalid[:, 5:] = invalid[..., 8:] = True


def test_dice(arrays):
    """One sample is 255 everywhere."""
    logits = arrays["dice.pred"].clone().requires_grad_()
    loss = dice_loss(logits, arrays["dice.target"])
    close(loss, arrays["dice.loss"][0], 1e-6)
    loss.backward()
    close(logits.grad, arrays["dice.grad"], 1e-8)


def test_pooling(arrays):
    features, masks = map(torch.from_numpy, recipe.make_pool_inputs())
    close(masked_average(features, masks).flatten(1), arrays["pool.pooled"], 1e-6)


# ------------------------------------------------------------------------------------------------- keys and files


def test_keys_shapes_counts_and_groups(facts, compose_config):
    recorded = facts["keys"]
    assert recorded["never_gets_a_gradient"] == UNUSED
    with torch.device("meta"):
        model = build_official("coco", "resnet50_v2")
    ours = {official_key(key): list(value.shape) for key, value in model.state_dict().items()}
    assert len(ours) == len(model.state_dict())
    ours = {key: shape for key, shape in ours.items() if not key.endswith("num_batches_tracked")}
    unused = {key: recorded["state_dict"][key] for key in UNUSED}
    assert ours | unused == recorded["state_dict"]
    learning = {official_key(key): p.numel() for key, p in model.named_parameters() if p.requires_grad}
    learning |= {key: 256 * 256 for key in UNUSED}
    assert set(learning) == set(recorded["learnable"])
    assert sum(learning.values()) == recorded["counts"]["learnable"]
    # The release keeps weights and biases of the trunk's normalisation as buffers: half of its buffers.
    total = sum(p.numel() for p in model.parameters()) + 2 * 256 * 256 - recorded["counts"]["backbone_buffers"] // 2
    assert total == recorded["counts"]["total_parameters"]
    optim = compose_config("train", "model=cyctr", "dataset=pascal").optim
    names = {id(p): official_key(key) for key, p in model.named_parameters()}
    optimizer = instantiate(optim.optimizer)(model.parameter_groups(optim.lr, **optim.groups))
    for group, expected in zip(optimizer.param_groups, recorded["optimizer"], strict=True):
        assert {names[id(p)] for p in group["params"]} == set(expected["params"]) - set(UNUSED)
        assert group["weight_decay"] == expected["weight_decay"]
        assert group["lr"] == pytest.approx(expected["lr"] * (15 if group["name"] == "head" else 1))
        assert GROUPS[group["name"]] == expected["name"]
        assert ("momentum" in group) == (expected["type"] == "SGD")
    schedule = instantiate(optim.schedule)(optimizer, 10)
    for _ in range(9):
        optimizer.step()
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0, 1e-4, 1e-4])


@pytest.fixture
def file_state(facts):
    return make_small_state(facts["keys"]["state_dict"])


@pytest.mark.long
@pytest.mark.parametrize("flags", ["release", "own"])
def test_a_file_is_read(flags, file_state, tmp_path):
    content = {"state_dict": {f"module.{k}": v for k, v in file_state.items()}} if flags == "release" else file_state
    path = save(content, tmp_path / "o.pth")
    model = load_official_checkpoint(path, "coco", "resnet50_v2", 5, flags=flags)
    check_state(model, official_key, defaultdict(lambda: torch.tensor(0), file_state))  # it counts no batches
    assert model.transformer.own_flags is (flags == "own")
    again = load_official("cyctr", path, "coco", "resnet50_v2", 1, {"flags": flags, "channels": 256})
    assert again.transformer.own_flags is (flags == "own")


def test_what_does_not_fit_is_refused_in_one_line(file_state, tmp_path):
    def refuse(content, match, backbone="resnet50_v2"):
        refused(lambda path: load_official_checkpoint(path, "pascal", backbone, 1), content, tmp_path / "o.pth", match)

    refuse({k: v for k, v in file_state.items() if k != "cls.3.bias"}, r"does not fit CyCTR .*1 missing: cls\.3\.bias")
    refuse(file_state | {"cls.4.bias": torch.zeros(1)}, r"1 surplus: cls\.4\.bias")
    refuse({"transformer.a": torch.zeros(1)}, "the file looks like kind=HDMNet")
    refuse(file_state, r"backbone='vgg16': the release has only resnet50_v2", "vgg16")
    assert guess_kind(file_state) == {"kind": "CyCTR", "backbone": "resnet50_v2"}
