from __future__ import annotations

import pytest
import torch
from torch import nn

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.backbones.prepare import prepare_trunk
from hdmnet.models.base_learner import BaseLearner
from hdmnet.models.class_prototypes import unit
from hdmnet.models.losses import segmentation_loss
from hdmnet.models.ssp import self_support as parts
from hdmnet.models.ssp.loss import SSPLoss
from hdmnet.models.ssp.model import SSP
from tests.contracts import random_norms


def make_model(**changes):
    torch.manual_seed(0)
    backbone = random_norms(build_backbone("resnet_narrow", dilation="torchvision"))
    return SSP(encoder=prepare_trunk(backbone, layers=[3], before_relu=True, trainable=[2, 3]), **changes)


def make_episode(shots=1, size=(49, 66)):
    torch.manual_seed(shots)
    masks = torch.zeros(2, shots, *size, dtype=torch.uint8)
    masks[..., 10:30, 16:40] = 1
    return torch.randn(2, 3, *size), torch.randn(2, shots, 3, *size), masks


def test_only_convolutions_of_two_layers_learn_and_no_statistic_moves():
    model = make_model().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    convolutions = {f"backbone.{n}.weight" for n, m in model.backbone.named_modules() if isinstance(m, nn.Conv2d)}
    assert learning == {name for name in convolutions if name.startswith(("backbone.parts.2.", "backbone.parts.3."))}
    episode = make_episode()
    optimizer = torch.optim.SGD(model.parameter_groups(1e-2), lr=1e-2)
    SSPLoss()(model(*episode), episode[2][:, 0])["loss"].backward()
    optimizer.step()
    assert {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])} == learning


def test_an_answer_in_evaluation_holds_nothing_of_training():
    model, episode = make_model(), make_episode(shots=2)
    trained, evaluated = model.train()(*episode), model.eval()(*episode)
    torch.testing.assert_close(trained.logits, evaluated.logits, rtol=0, atol=0)
    assert trained.query_features is not None
    assert evaluated.query_features is evaluated.support_scores is evaluated.support_masks is None
    terms = SSPLoss()(evaluated, episode[2][:, 0])
    assert set(terms) == {"loss", "final", "first"}
    assert set(SSPLoss()(trained, episode[2][:, 0])) == {*terms, "self_query", "self_support"}


def test_without_refinement_there_is_one_prediction():
    out = make_model(refine=False).eval()(*make_episode())
    torch.testing.assert_close(out.scores, make_model().eval()(*make_episode()).auxiliary["first"])
    assert out.auxiliary == {}


def test_255_is_in_neither_prototype():
    features = torch.randn(1, 3, 5, 5)
    masks = torch.zeros(1, 5, 5, dtype=torch.uint8)
    masks[:, :2], masks[:, 3:] = 1, 255
    expected = torch.stack([features[:, :, 2:3].mean((2, 3)), features[:, :, :2].mean((2, 3))], dim=1)
    torch.testing.assert_close(parts.pool(features, masks), expected, rtol=1e-4, atol=1e-5)
    assert not parts.pool(features, torch.full_like(masks, 255)).any()


@pytest.mark.parametrize("positions", [40, 7])
def test_positions_at_once_are_attended_to_as_one_episode_after_the_other(positions, monkeypatch):
    """What a GPU does. There may be fewer positions than are taken where none is sure."""
    torch.manual_seed(0)
    rows, scores = torch.randn(3, positions, 6, requires_grad=True), torch.randn(3, positions, 2)
    scores[1] = 0  # sure of nothing
    found = []
    for is_cpu in (True, False):
        given = rows if is_cpu else rows.as_subclass(_Elsewhere)
        values = parts.self_support(given, unit(given), scores)
        (gradient,) = torch.autograd.grad(sum(value.square().sum() for value in values), rows)
        found.append([torch.Tensor(value.detach()) for value in (*values, gradient)])
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)
    assert found[0][0].isfinite().all()


class _Elsewhere(torch.Tensor):
    is_cpu = False


def test_weights_of_the_loss():
    model, episode = make_model().train(), make_episode()
    target = episode[2][:, 0]
    out = model(*episode)
    terms = SSPLoss(first=0.5, self_query=0.0, self_support=2.0)(out, target)
    expected = terms["final"] + 0.5 * terms["first"] + 2.0 * terms["self_support"]
    torch.testing.assert_close(terms["loss"], expected)
    torch.testing.assert_close(terms["final"], segmentation_loss(out.logits, target))
    with pytest.raises(ValueError, match=r"loss\.self_query=-1: expected a number of at least 0"):
        SSPLoss(self_query=-1)


def test_backbone_may_come_out_of_a_base_learner():
    backbone = build_backbone("resnet_narrow")
    learner = BaseLearner(backbone=backbone, num_base=3, feature_channels=8)
    model = SSP(encoder=learner)
    assert model.backbone is backbone
    assert {name.partition(".")[0] for name in model.state_dict()} == {"backbone"}


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"model\.refine=2: expected true or false"):
        make_model(refine=2)
