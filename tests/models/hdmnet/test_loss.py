from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hdmnet.models.hdmnet.loss import (
    DISTILLATION_KINDS,
    correlation_distillation,
    distillation_per_stage,
    ground_truth_teacher,
)
from hdmnet.models.losses import probability_loss, segmentation_loss
from tests.helpers import official_recipe as recipe


@pytest.fixture(scope="module")
def recorded():
    with np.load(Path(__file__).parent / "golden" / "unit_small.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


@pytest.fixture
def hard_cases():
    """Query masks (8, 105, 105) and maps finest first."""
    masks, maps = recipe.distil_inputs()
    return torch.from_numpy(masks), [torch.from_numpy(m) for m in reversed(maps)]


# ------------------------------------------------------------------------------------------------- segmentation loss


def test_segmentation_loss_by_hand():
    logits = torch.tensor([[[[0.0, 2.0]], [[math.log(3), 5.0]]]])
    mask = torch.tensor([[[1, 255]]], dtype=torch.uint8)
    assert segmentation_loss(logits, mask).item() == pytest.approx(-math.log(0.75))


def test_segmentation_loss_is_the_same_where_runs_are_deterministic():
    """There CUDA refuses the sum within `cross_entropy`."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 31, 33, generator=generator).requires_grad_()
    mask = torch.randint(0, 2, (2, 31, 33), generator=generator)
    mask[0, :5] = 255
    losses = [segmentation_loss(logits, mask)]
    try:
        torch.use_deterministic_algorithms(True)
        losses.append(segmentation_loss(logits, mask))
    finally:
        torch.use_deterministic_algorithms(False)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in losses]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=0)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=0)


def test_segmentation_loss_is_zero_where_all_is_ignored():
    logits = torch.randn(1, 2, 3, 3, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((1, 3, 3), 255))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_probability_loss_is_the_negative_log_likelihood():
    probabilities = torch.tensor([[[[0.3, 0.2]], [[0.9, 0.5]]]])  # sums of 1.2 and 0.7
    mask = torch.tensor([[[1, 0]]])
    expected = -(math.log(0.75) + math.log(0.2 / 0.7)) / 2
    assert probability_loss(probabilities, mask).item() == pytest.approx(expected, rel=1e-6)
    # The release's reading: softmax once more, never below log(1 + 1/e).
    certain = torch.tensor([[[[0.0]], [[1.0]]]])
    assert segmentation_loss(certain, torch.ones(1, 1, 1)).item() == pytest.approx(math.log(1 + math.exp(-1)))
    assert probability_loss(certain, torch.ones(1, 1, 1)).item() == pytest.approx(0, abs=2e-6)


def test_probability_loss_is_finite_below_zero():
    scores = torch.tensor([[[[-0.1]], [[1.1]]]], requires_grad=True)
    loss = probability_loss(scores, torch.zeros(1, 1, 1))
    loss.backward()
    assert loss.isfinite()
    assert scores.grad.isfinite().all()


# ------------------------------------------------------------------------------------------------------ distillation


def exact_teacher(mask, size):
    """The stated rule, with the footprint's weights in rationals of the output grid."""
    foreground = (mask == 1).double()[None, None]
    share = F.interpolate(foreground, size, mode="bilinear", align_corners=False)[0, 0]
    full = share > 1 - 1e-12
    chosen = full if full.any() else (share - share.max()).abs() < 1e-12
    return chosen.double() / chosen.sum()


def test_teacher_on_the_hard_cases(recorded, hard_cases):
    masks, _ = hard_cases
    teacher = ground_truth_teacher(masks, (4, 4)).view(8, 4, 4)
    torch.testing.assert_close(teacher.sum((1, 2)), torch.ones(8))
    for i, mask in enumerate(masks):
        torch.testing.assert_close(teacher[i].double(), exact_teacher(mask, (4, 4)), rtol=0, atol=1e-7)
        torch.testing.assert_close(teacher[i], recorded["teacher_coarse_softmax"][i], rtol=0, atol=1e-6)


def test_teacher_picks_the_cells_with_the_largest_share(hard_cases):
    masks, _ = hard_cases
    teacher = ground_truth_teacher(masks, (4, 4)).view(8, 4, 4)
    uniform = torch.full((4, 4), 1 / 16)
    for i in (1, 2, 3, 5):  # touches no sample point, no foreground, all foreground, only 255
        torch.testing.assert_close(teacher[i], uniform)
    assert teacher[6, 0, 0] == 1
    assert teacher[7, 1, 1] == 1


def test_stages_equal_the_release_on_the_hard_cases(recorded, hard_cases):
    masks, maps = hard_cases
    for i in range(8):
        stages = distillation_per_stage([m[i : i + 1] for m in maps], masks[i : i + 1])
        expected = recorded["per_sample_stage_losses"][i].flip(0)  # ours: finest first
        torch.testing.assert_close(torch.stack(stages), expected, rtol=0, atol=1e-5)
    stages = torch.stack(distillation_per_stage(maps, masks))
    torch.testing.assert_close(stages, recorded["batch_stage_losses"].flip(0), rtol=0, atol=1e-5)
    total = correlation_distillation(maps, masks)
    torch.testing.assert_close(total, recorded["batch_total_div3"], rtol=0, atol=1e-5)


def test_gradients_equal_the_release_on_the_hard_cases(recorded, hard_cases):
    masks, maps = hard_cases
    maps = [m.requires_grad_() for m in maps]
    gradients = torch.autograd.grad(correlation_distillation(maps, masks), maps)
    for gradient, name in zip(gradients, ("grad_w2", "grad_w1", "grad_w0"), strict=True):
        torch.testing.assert_close(gradient, recorded[name], rtol=1e-4, atol=1e-6)


def test_temperature_divides_student_and_teacher():
    torch.manual_seed(0)
    maps = [torch.randn(2, 6, 8), torch.randn(2, 3, 4)]
    masks = torch.ones(2, 12, 16)
    fine = distillation_per_stage(maps, masks, temperature=4.0)[0]
    teacher = F.interpolate(maps[1][:, None], (6, 8), mode="bilinear", align_corners=False).flatten(1) / 4
    expected = F.kl_div((maps[0].flatten(1) / 4).log_softmax(1), teacher.softmax(1), reduction="batchmean")
    torch.testing.assert_close(fine, expected)
    scaled = distillation_per_stage([m / 4 for m in maps], masks)
    torch.testing.assert_close(torch.stack(distillation_per_stage(maps, masks, 4.0)), torch.stack(scaled))


def test_a_perfect_student_loses_nothing():
    mask = torch.zeros(1, 8, 8)
    mask[:, :4, :4] = 1
    perfect = (ground_truth_teacher(mask, (2, 2)) + 1e-12).log().view(1, 2, 2)
    assert correlation_distillation([perfect], mask).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", DISTILLATION_KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixed_precision_maps_are_distilled_in_float32(hard_cases, dtype, kind):
    masks, maps = hard_cases
    halves = [m.to(dtype) for m in maps]
    expected = distillation_per_stage([m.float() for m in halves], masks, kind=kind)
    assert torch.equal(torch.stack(distillation_per_stage(halves, masks, kind=kind)), torch.stack(expected))


# --------------------------------------------------------------------------------------------------- Table 6's rivals


def test_cross_entropy_with_the_truth_by_hand():
    maps = [torch.tensor([[[2.0, -1.0]]]), torch.tensor([[[0.5]]])]
    mask = torch.tensor([[[1, 0], [1, 255]]])  # the finer map is stretched to its size by repeating the row

    def minus_log_sigmoid(x):
        return math.log(1 + math.exp(-x))

    for temperature in (1.0, 2.0):
        fine, coarse = distillation_per_stage(maps, mask, temperature, kind="ce_truth")
        two, one, half = 2 / temperature, 1 / temperature, 0.5 / temperature
        assert fine.item() == pytest.approx((2 * minus_log_sigmoid(two) + minus_log_sigmoid(one)) / 3)
        assert coarse.item() == pytest.approx((2 * minus_log_sigmoid(half) + minus_log_sigmoid(-half)) / 3)


def test_cross_entropy_with_the_teacher():
    torch.manual_seed(0)
    maps = [torch.randn(2, 6, 8), torch.randn(2, 3, 4)]
    mask = (torch.rand(2, 12, 16) > 0.5).long()
    fine, coarse = distillation_per_stage(maps, mask, 2.0, kind="ce_teacher")
    teacher = (F.interpolate(maps[1][:, None], (6, 8), mode="bilinear", align_corners=False)[:, 0] / 2).sigmoid()
    student = (maps[0] / 2).sigmoid()
    expected = -(teacher * student.log() + (1 - teacher) * (1 - student).log()).mean()
    torch.testing.assert_close(fine, expected)
    torch.testing.assert_close(coarse, distillation_per_stage(maps, mask, 2.0, kind="ce_truth")[1])


@pytest.mark.parametrize("kind", DISTILLATION_KINDS)
def test_a_teacher_gets_no_gradient_from_its_student(kind):
    fine, coarse = torch.randn(1, 4, 4, requires_grad=True), torch.randn(1, 2, 2, requires_grad=True)
    stages = distillation_per_stage([fine, coarse], torch.ones(1, 8, 8), kind=kind)
    assert torch.autograd.grad(stages[0], coarse, allow_unused=True, retain_graph=True) == (None,)
    assert torch.autograd.grad(stages[1], coarse)[0].any()


def test_where_all_is_ignored_the_truth_asks_for_nothing():
    student = torch.randn(1, 2, 2, requires_grad=True)
    loss = correlation_distillation([student], torch.full((1, 4, 4), 255), kind="ce_truth")
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, student)[0].any()


def test_unknown_kind():
    with pytest.raises(ValueError, match=r"loss.distillation_kind=l2: expected kl_teacher or ce_teacher or ce_tr"):
        correlation_distillation([torch.zeros(1, 2, 2)], torch.ones(1, 4, 4), kind="l2")


# ------------------------------------------------------------------------------------------------------ wrong values


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_wrong_temperature(temperature):
    with pytest.raises(ValueError, match=f"loss.temperature={temperature}: expected a number above 0"):
        correlation_distillation([torch.zeros(1, 2, 2)], torch.ones(1, 4, 4), temperature)


def test_no_maps():
    with pytest.raises(ValueError, match="no correlation maps to distil"):
        correlation_distillation([], torch.ones(1, 4, 4))
