from __future__ import annotations

import pytest
import torch
from torch import nn

from hdmnet.config.instantiate import instantiate
from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.bam.model import BAM
from hdmnet.models.base_learner import BaseLearner
from hdmnet.models.losses import SegmentationLoss, segmentation_loss
from hdmnet.models.masked_prior import prior_masks


def make_model(backbone="resnet_narrow", **changes):
    torch.manual_seed(0)
    learner = BaseLearner(backbone=build_backbone(backbone), num_base=3, feature_channels=8)
    return BAM(encoder=learner, channels=8, **changes)


def make_episode(size=(33, 50), shots=1):
    torch.manual_seed(shots)
    mask = (torch.rand(2, shots, *size) > 0.6).to(torch.uint8)
    return torch.randn(2, 3, *size), torch.randn(2, shots, 3, *size), mask


@pytest.mark.parametrize(("backbone", "size"), [("resnet_narrow", (33, 50)), ("vgg16", (72, 41))])
def test_sizes_of_what_it_answers(backbone, size):
    """Any size; of VGG-16 layer 2 is larger than layers 3 and 4."""
    h, w = (-(-s // (16 if backbone == "vgg16" else 8)) for s in size)
    with torch.no_grad():
        out = make_model(backbone).eval()(*make_episode(size, shots=2))
    assert out.scores.shape == out.auxiliary["meta"].shape == (2, 2, h, w)
    assert out.auxiliary["base"].shape == (2, 4, h, w)
    assert [m.shape for m in out.maps["prior"]] == [(2, h, w)]
    assert {name: tuple(value.shape) for name, value in out.auxiliary_logits.items()} == {
        "meta": (2, 2, *size),
        "base": (2, 4, *size),
    }
    assert out.is_probability


def test_supports_are_not_masked_but_for_layer_4():
    """Outside of the object a support's picture changes its Gram matrix and its prototype, layer 4 only from there."""
    model = make_model().eval()
    _, supports, masks = make_episode((65, 65))
    masks[:] = 0
    masks[..., :8, :8] = 1
    other = supports.clone()
    other[..., 40:, 40:] += 1
    one, two = (model.encode_support(x.flatten(0, 1), masks.flatten(0, 1)) for x in (supports, other))
    assert not torch.equal(one.gram, two.gram)
    seen = one.layer4.unbind()[0].values  # the rows under the mask, and one row of zeros outside of it
    assert (seen[-1] == 0).all()
    assert len(seen) < 9 * 9


def test_the_shots_weights_weigh_prior_and_prototype():
    model = make_model(num_shots=3).eval()
    query, supports, masks = make_episode(shots=3)
    nn.init.normal_(model.ensemble.shot_weights[0].weight, std=100.0)
    with torch.no_grad():
        encoded = model.encode_query(query)
        kept = model.encode_support(supports.flatten(0, 1), masks.flatten(0, 1))
        out = model.match(encoded, kept, shots=3)
        distances = (encoded.gram[:, None] - kept.gram.unflatten(0, (2, 3))).flatten(2).norm(
            dim=2
        ) / encoded.gram.shape[1]
        weights = model.ensemble.weigh_shots(distances)
        priors = prior_masks(encoded.layer4, kept.layer4, shots=3)
    assert weights.sum(1).tolist() == pytest.approx([1, 1])
    assert weights.std(1).min() > 1e-3
    torch.testing.assert_close(out.maps["prior"][0], torch.einsum("bk,bkhw->bhw", weights, priors))
    # The order of the supports makes no difference.
    turned = model(query, supports.flip(1), masks.flip(1))
    torch.testing.assert_close(turned.scores, out.scores)


def test_with_another_number_of_supports_all_count_alike():
    query, supports, masks = make_episode(shots=2)
    model = make_model(num_shots=3).eval()
    same = model(query, supports[:, :1].expand_as(supports), masks[:, :1].expand_as(masks))
    torch.testing.assert_close(same.scores, model(query, supports[:, :1], masks[:, :1]).scores)


def test_what_is_frozen():
    """Nothing of the base learner moves in training; its dropout of whole channels is active, as in the release."""
    model = make_model().train()
    before = {key: value.clone() for key, value in model.trunk.state_dict().items()}
    episode = make_episode()
    one, two = (model(*episode).auxiliary["base"] for _ in range(2))
    assert not torch.equal(one, two)
    assert not one.requires_grad
    assert all(torch.equal(value, before[key]) for key, value in model.trunk.state_dict().items())
    training = {name for name, module in model.trunk.named_modules() if module.training}
    assert training == {"base_learner.classifier"} | {f"base_learner.classifier.{i}" for i in range(3)}
    model.eval()
    assert not any(module.training for module in model.modules())


def test_the_episodes_own_class_is_not_suppressed():
    model = make_model().train()
    for module in model.modules():
        module.train(module.training and not isinstance(module, nn.Dropout2d))
    nn.init.constant_(model.ensemble.base_merge.weight, 1.0)
    episode = make_episode()
    plain, own = model(*episode), model(*episode, torch.tensor([0, 2]))
    probabilities = plain.auxiliary["base"].softmax(1)
    lost = torch.stack([probabilities[0, 1], probabilities[1, 3]])
    torch.testing.assert_close(plain.scores[:, 0] - own.scores[:, 0], lost, rtol=0, atol=1e-6)
    assert torch.equal(plain.scores[:, 1], own.scores[:, 1])


def test_loss_of_the_config(compose_config):
    loss = instantiate(compose_config("train", "model=bam").loss)
    assert isinstance(loss, SegmentationLoss)
    episode = make_episode()
    out, target = make_model().eval()(*episode), episode[2][:, 0]
    terms = loss(out, target)
    assert set(terms) == {"loss", "final", "meta"}
    assert terms["final"].item() == segmentation_loss(out.logits, target).item()  # of probabilities, as if logits
    assert terms["loss"].item() == pytest.approx((terms["final"] + terms["meta"]).item())


def test_learning_rate_of_every_group():
    groups = make_model(num_shots=5).parameter_groups(5e-3, lr_factor=10)
    assert [group["name"] for group in groups] == [
        "down_query", "down_supp", "init_merge", "ASPP_meta", "res1_meta", "res2_meta", "cls_meta", "gram_merge",
        "cls_merge", "kshot_rw",
    ]  # fmt: skip
    assert {group["lr"] for group in groups} == {0.05}
    assert "kshot_rw" not in {group["name"] for group in make_model().parameter_groups(1.0)}


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"^model\.encoder=SequentialBackbone: expected base_learner$"):
        BAM(encoder=build_backbone("resnet_narrow"))
    with pytest.raises(ValueError, match=r"^model\.mid_dropout=1: expected a number in \[0, 1\)"):
        make_model(mid_dropout=1)
    learner = BaseLearner(backbone=build_backbone("resnet_narrow"), num_base=1)
    learner.backbone.tap([2, 3])
    with pytest.raises(ValueError, match=r"runs on masked features: SequentialBackbone of 2 levels cannot be cut"):
        BAM(encoder=learner)


def test_start_of_what_the_release_starts_otherwise_than_torch():
    model = BAM(encoder=BaseLearner(backbone=build_backbone("resnet_narrow"), num_base=1, feature_channels=8))
    assert model.ensemble.gram_merge.weight.flatten().tolist() == [1, 0]
    assert model.ensemble.base_merge.weight.flatten().tolist() == [1, 0]
    for branch, taps in zip(model.aspp.branches, (1, 1, 9, 9, 9), strict=True):
        assert branch[0].weight.std().item() == pytest.approx((2 / (256 * taps)) ** 0.5, rel=0.02)
    assert [branch[0].dilation for branch in model.aspp.branches[2:]] == [(6, 6), (12, 12), (18, 18)]
    assert [branch[0].padding for branch in model.aspp.branches[2:]] == [(6, 6), (12, 12), (18, 18)]
