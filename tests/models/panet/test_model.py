from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.backbones.prepare import prepare_trunk
from hdmnet.models.base_learner import BaseLearner
from hdmnet.models.panet.loss import PANetLoss
from hdmnet.models.panet.model import SCALE, PANet, PANetSegmentation, pool
from tests.contracts import random_norms


def make_model():
    torch.manual_seed(0)
    backbone = random_norms(build_backbone("resnet_narrow"))
    return PANet(encoder=prepare_trunk(backbone, layers=[4], before_relu=True, trainable="all"))


def make_episode(shots=1, size=(49, 66)):
    torch.manual_seed(shots)
    masks = torch.zeros(2, shots, *size, dtype=torch.uint8)
    masks[..., 10:30, 16:40], masks[..., 5:8, :] = 1, 255
    return torch.randn(2, 3, *size), torch.randn(2, shots, 3, *size), masks


@pytest.mark.parametrize("size", [(7, 9), (49, 66), (5, 5)])
def test_pooling_is_that_of_upsampled_features(size):
    """The mask's size above, below and equal to the features'; 255 is background."""
    torch.manual_seed(0)
    features = torch.randn(4, 3, 5, 9, dtype=torch.float64)
    masks = torch.randint(0, 2, (4, *size)) * torch.tensor([1, 255, 1, 0])[:, None, None]
    large = F.interpolate(features, size, mode="bilinear", align_corners=False)
    for number, chosen in enumerate((masks != 1, masks == 1)):
        weights = chosen.double()[:, None]
        expected = (large * weights).sum((2, 3)) / (weights.sum((2, 3)) + 1e-5)
        torch.testing.assert_close(pool(features, masks)[:, number], expected)


def test_training_and_evaluation_answer_alike():
    model, episode = make_model(), make_episode(shots=2)
    trained, evaluated = model.train()(*episode), model.eval()(*episode)
    torch.testing.assert_close(trained.logits, evaluated.logits, rtol=0, atol=0)
    assert trained.support_scores.shape[:3] == (2, 2, 2)
    assert evaluated.support_scores is evaluated.support_masks is evaluated.aligned is None
    assert set(PANetLoss()(evaluated, episode[2][:, 0])) == {"loss", "final"}


def test_logits_are_upsampled_without_aligned_corners():
    out = make_model().eval()(*make_episode())
    torch.testing.assert_close(out.logits, F.interpolate(out.scores, (49, 66), mode="bilinear", align_corners=False))


def plain_alignment(model, episode):
    """The alignment loss by Sec. 3.4, an episode and a support at a time."""
    query, supports, masks = episode
    total, (episodes, shots) = 0.0, supports.shape[:2]
    out = model(*episode)
    for b in range(episodes):
        features = model.encode_query(query[b : b + 1]).features[0]  # (C, h, w)
        decided = out.scores[b].argmax(0)
        if not decided.any():
            continue
        vectors = [features[:, decided == c].sum(1) / ((decided == c).sum() + 1e-5) for c in (0, 1)]
        for k in range(shots):
            own = model.encode_query(supports[b, k : k + 1]).features
            scores = torch.stack([SCALE * F.cosine_similarity(own, v[None, :, None, None]) for v in vectors], 1)
            scores = F.interpolate(scores, masks.shape[2:], mode="bilinear", align_corners=False)
            total += F.cross_entropy(scores, (masks[b, k : k + 1] == 1).long())
    return total / (shots * episodes)


@pytest.mark.parametrize("shots", [1, 3])
def test_alignment_is_that_of_one_support_after_the_other(shots):
    model, episode = make_model().train(), make_episode(shots)
    terms = PANetLoss(align=0.5)(model(*episode), episode[2][:, 0])
    torch.testing.assert_close(terms["align"], plain_alignment(model, episode))
    torch.testing.assert_close(terms["loss"], terms["final"] + 0.5 * terms["align"])


def test_an_episode_without_foreground_adds_nothing_to_the_alignment():
    torch.manual_seed(0)
    masks = torch.ones(2, 2, 8, 8, dtype=torch.uint8)
    scores = torch.randn(2, 2, 2, 4, 4, requires_grad=True)
    answer = {"scores": torch.zeros(2, 2, 4, 4), "size": (8, 8), "support_scores": scores, "support_masks": masks}
    loss, target = PANetLoss(), torch.zeros(2, 8, 8, dtype=torch.long)
    both, first, none = (
        loss(PANetSegmentation(**answer, aligned=torch.tensor(which)), target)["align"]
        for which in ([True, True], [True, False], [False, False])
    )
    single = loss(PANetSegmentation(**answer, aligned=torch.tensor([False, True])), target)["align"]
    torch.testing.assert_close(first + single, both)
    assert none == 0 < first < both


def test_weight_of_the_alignment():
    model, episode = make_model().train(), make_episode()
    terms = PANetLoss(align=0)(model(*episode), episode[2][:, 0])
    assert terms["loss"] is terms["final"]
    assert terms["align"] > 0
    with pytest.raises(ValueError, match=r"loss\.align=-1: expected a number of at least 0"):
        PANetLoss(align=-1)


def test_backbone_may_come_out_of_a_base_learner():
    backbone = build_backbone("resnet_narrow")
    model = PANet(encoder=BaseLearner(backbone=backbone, num_base=3, feature_channels=8))
    assert model.backbone is backbone
    assert {name.partition(".")[0] for name in model.state_dict()} == {"backbone"}
