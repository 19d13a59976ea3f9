from __future__ import annotations

import pytest
import torch

from hdmnet.models.hdmnet.loss import DISTILLATION_KINDS, HDMNetLoss, correlation_distillation
from hdmnet.models.losses import SegmentationLoss, probability_loss, segmentation_loss
from hdmnet.models.method import Segmentation


@pytest.fixture
def mask():
    mask = torch.zeros(2, 8, 8, dtype=torch.uint8)
    mask[:, 2:7, 1:6] = 1
    mask[:, 0] = 255
    return mask


def make_output(*, fused=True, maps=True):
    torch.manual_seed(0)
    scores = torch.rand(2, 2, 4, 4) if fused else torch.randn(2, 2, 4, 4)
    auxiliary = {"base": torch.randn(2, 5, 4, 4)} | ({"meta": torch.randn(2, 2, 4, 4)} if fused else {})
    correlation = [torch.randn(2, 4, 4, requires_grad=True), torch.randn(2, 2, 2, requires_grad=True)]
    return Segmentation(scores, (8, 8), auxiliary, {"correlation": correlation} if maps else {}, is_probability=fused)


def test_weighted_sum_of_the_terms(mask):
    output = make_output()
    terms = HDMNetLoss(final=0.5, meta=2.0, distillation=3.0, temperature=2.0)(output, mask)
    final, meta = segmentation_loss(output.logits, mask), segmentation_loss(output.auxiliary_logits["meta"], mask)
    distillation = correlation_distillation(output.maps["correlation"], mask, 2.0)
    torch.testing.assert_close(terms["loss"], 0.5 * final + 2 * meta + 3 * distillation)
    stages = terms["distillation_stage1"] + terms["distillation_stage2"]
    torch.testing.assert_close(stages / 2, distillation)


def test_a_prediction_that_is_not_fused_counts_once(mask):
    output = make_output(fused=False, maps=False)
    terms = HDMNetLoss()(output, mask)
    assert set(terms) == {"loss", "final"}
    assert torch.equal(terms["loss"], segmentation_loss(output.logits, mask))


def test_weight_0_leaves_no_gradient(mask):
    output = make_output()
    output.scores.requires_grad_()
    HDMNetLoss(distillation=0.0)(output, mask)["loss"].backward()
    assert output.maps["correlation"][0].grad is None


def test_final_loss_on_probabilities_or_their_logarithm(mask):
    output = make_output()
    torch.testing.assert_close(HDMNetLoss()(output, mask)["final"], segmentation_loss(output.logits, mask))
    torch.testing.assert_close(HDMNetLoss(final_on="log")(output, mask)["final"], probability_loss(output.logits, mask))
    logits = make_output(fused=False)
    assert torch.equal(HDMNetLoss(final_on="log")(logits, mask)["final"], HDMNetLoss()(logits, mask)["final"])


@pytest.mark.parametrize("kind", DISTILLATION_KINDS)
def test_kinds_of_distillation(kind, mask):
    output = make_output()
    terms = HDMNetLoss(distillation_kind=kind)(output, mask)
    expected = correlation_distillation(output.maps["correlation"], mask, kind=kind)
    torch.testing.assert_close(terms["distillation"], expected)
    torch.testing.assert_close(terms["loss"], terms["final"] + terms["meta"] + expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"distillation_kind": "none"},
            "loss.distillation_kind=none: expected kl_teacher or ce_teacher or ce_truth",
        ),
        ({"final_on": "nll"}, "loss.final_on=nll: expected probabilities or log"),
        ({"temperature": 0}, "loss.temperature=0: expected a number above 0"),
        ({"meta": -1}, "loss.meta=-1: expected a number of at least 0"),
        ({"distillation": float("nan")}, "loss.distillation=nan: expected a number of at least 0"),
    ],
)
def test_wrong_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        HDMNetLoss(**arguments)


def test_the_usual_loss_is_cross_entropy_of_final_and_auxiliary_predictions(mask):
    torch.manual_seed(0)
    final, one, two = torch.randn(3, 2, 2, 4, 4)
    output = Segmentation(final, (8, 8), {"one": one, "two": two})
    terms = SegmentationLoss(0.5)(output, mask)
    parts = [segmentation_loss(output.auxiliary_logits[name], mask) for name in ("one", "two")]
    torch.testing.assert_close(terms["loss"], terms["final"] + 0.25 * (parts[0] + parts[1]))
    chosen = SegmentationLoss({"two": 2.0})(output, mask)
    torch.testing.assert_close(chosen["loss"], terms["final"] + 2 * parts[1])
    assert set(chosen) == {"loss", "final", "two"}
    with pytest.raises(ValueError, match=r"loss\.auxiliary\.two=-1: expected a number of at least 0"):
        SegmentationLoss({"two": -1})


def test_border_pixels_can_be_background(mask):
    """As in the releases of HSNet and DCAMA."""
    output = Segmentation(torch.randn(2, 2, 4, 4), (8, 8))
    expected = torch.nn.functional.cross_entropy(output.logits, torch.where(mask == 1, 1, 0))
    torch.testing.assert_close(SegmentationLoss(border="background")(output, mask)["loss"], expected)
    assert SegmentationLoss()(output, mask)["loss"] == segmentation_loss(output.logits, mask) != expected
    with pytest.raises(ValueError, match=r"loss\.border=backgrund: .*did you mean 'background'\?"):
        SegmentationLoss(border="backgrund")
