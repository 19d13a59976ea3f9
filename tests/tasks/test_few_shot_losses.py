from __future__ import annotations

import pytest
import torch

from hdmnet.models.hdmnet.loss import DISTILLATION_KINDS, correlation_distillation
from hdmnet.models.losses import probability_loss, segmentation_loss
from hdmnet.models.method import SegmentationOutput
from hdmnet.tasks.few_shot import FewShotTask, LossWeights


def make_output(*, fused=True):
    torch.manual_seed(0)
    scores = torch.rand(2, 2, 4, 4) if fused else torch.randn(2, 2, 4, 4)
    maps = [torch.randn(2, 4, 4), torch.randn(2, 2, 2)]
    return SegmentationOutput(scores, torch.randn(2, 2, 4, 4), None, (8, 8), maps, None, fused)


def losses(output, **weights):
    task = FewShotTask(model=torch.nn.Identity(), class_names=["novel"], loss=LossWeights(**weights))
    mask = torch.zeros(2, 8, 8, dtype=torch.uint8)
    mask[:, 2:7, 1:6] = 1
    mask[:, 0] = 255
    return task.losses(output, mask), mask


def test_weighted_sum_of_the_terms():
    output = make_output()
    terms, mask = losses(output, final=0.5, meta=2.0, distillation=3.0, temperature=2.0)
    final, meta = segmentation_loss(output.final_logits, mask), segmentation_loss(output.meta_logits, mask)
    distillation = correlation_distillation(output.correlation_maps, mask, 2.0)
    torch.testing.assert_close(terms["loss"], 0.5 * final + 2 * meta + 3 * distillation)
    stages = terms["distillation_stage1"] + terms["distillation_stage2"]
    torch.testing.assert_close(stages / 2, distillation)


def test_final_loss_on_probabilities_or_their_logarithm():
    output = make_output()
    terms, mask = losses(output)
    torch.testing.assert_close(terms["final"], segmentation_loss(output.final_logits, mask))
    terms, _ = losses(output, final_on="log")
    torch.testing.assert_close(terms["final"], probability_loss(output.final_logits, mask))


def test_a_prediction_of_logits_is_scored_as_logits_either_way():
    output = make_output(fused=False)
    assert torch.equal(losses(output, final_on="log")[0]["final"], losses(output)[0]["final"])


@pytest.mark.parametrize("kind", DISTILLATION_KINDS)
def test_kinds_of_distillation(kind):
    output = make_output()
    terms, mask = losses(output, distillation_kind=kind)
    expected = correlation_distillation(output.correlation_maps, mask, kind=kind)
    torch.testing.assert_close(terms["distillation"], expected)
    torch.testing.assert_close(terms["loss"], terms["final"] + terms["meta"] + expected)


def test_unknown_kind():
    with pytest.raises(ValueError, match=r"loss.distillation_kind='none': expected one of kl_teacher, ce_teacher, ce_"):
        LossWeights(distillation_kind="none")


def test_unknown_reading():
    with pytest.raises(ValueError, match=r"loss.final_on='nll': expected 'probabilities' or 'log'"):
        LossWeights(final_on="nll")
