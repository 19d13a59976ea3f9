"""The official release's recorded values on a GPU: float32 without TF32 within 1e-4, and what bfloat16 does to them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from hdmnet.models.hdmnet.loss import HDMNetLoss
from hdmnet.models.hdmnet.official import build_official, official_key
from tests.helpers import official_recipe as recipe
from tests.helpers.official_files import fill, read_golden

pytestmark = pytest.mark.gpu

TOLERANCE = 1e-4
CASES = {"a": ("pascal", 1), "b": ("coco", 5)}
STAGES = ("map1", "map2", "map3")


@dataclass
class Case:
    model: torch.nn.Module
    inputs: dict
    arrays: dict
    facts: dict


@pytest.fixture(scope="module", params=CASES)
def case(request, device):
    dataset, shot = CASES[request.param]
    arrays, facts = read_golden(f"case_{request.param}.npz"), read_golden(f"case_{request.param}.json.gz")
    model = build_official(dataset, "resnet50_v2", shot)
    fill(model)
    inputs = {key: torch.from_numpy(value).to(device) for key, value in recipe.make_inputs(facts["name"]).items()}
    return Case(model.to(device), inputs, arrays, facts)


def outputs(output):
    found = {"final": output.logits, "meta": output.logits_of("meta")}
    found |= {"priors": torch.stack(output.maps["prior"], dim=1)}
    return found | dict(zip(STAGES, output.maps["correlation"], strict=True))


def differences(found, arrays):
    return {
        key: (value.float().cpu() - torch.from_numpy(arrays[key])).abs().max().item() for key, value in found.items()
    }


def changed(output, arrays):
    """Share of the pixels that the recorded prediction decides otherwise."""
    return (output.logits.argmax(1).cpu() != torch.from_numpy(arrays["final"]).argmax(1)).double().mean().item()


def test_outputs_in_float32(case, record_property):
    with torch.no_grad():
        output = case.model(*(case.inputs[key] for key in ("x", "s_x", "s_y")))
    found = differences(outputs(output), case.arrays)
    for key, value in found.items():
        record_property(f"difference_{key}", value)
    record_property("parity", max(found.values()))
    record_property("changed_pixels", changed(output, case.arrays))
    assert max(found.values()) <= TOLERANCE, found


def test_losses_and_gradients_in_float32(case, record_property):
    model, inputs = case.model, case.inputs
    output = model(*(inputs[key] for key in ("x", "s_x", "s_y", "cat_idx")))
    losses = HDMNetLoss()(output, inputs["y_m"])
    recorded = case.facts["losses"]
    worst = max(abs(losses[name].item() - recorded[name]) for name in ("final", "meta", "distillation"))
    record_property("difference_losses", worst)
    parameters = {official_key(key): p for key, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(losses["loss"], list(parameters.values()))
    norms = {key: gradient.double().norm().item() for key, gradient in zip(parameters, gradients, strict=True)}
    expected = case.facts["grad_norm_per_parameter"]
    # Some are rounding noise around 0: those below 1e-4 have no relative error to speak of.
    relative = max(abs(norms[key] - value) / value for key, value in expected.items() if value > 1e-4)
    record_property("difference_gradient_norms", relative)
    record_property("parity", max(worst, relative))
    assert norms.keys() == expected.keys()
    assert worst <= TOLERANCE
    assert relative <= TOLERANCE


def test_what_bfloat16_does(case, device, record_property):
    with torch.no_grad(), torch.autocast(device, torch.bfloat16):
        output = case.model(*(case.inputs[key] for key in ("x", "s_x", "s_y")))
    found = differences(outputs(output), case.arrays)
    for key in ("final", "priors", *STAGES):
        record_property(f"bf16_{key}", found[key])
    share = changed(output, case.arrays)
    record_property("bf16_changed_pixels", share)
    assert found["final"] > TOLERANCE  # it was in 16 bits
    assert output.logits.isfinite().all()
    assert share < 0.05
