from __future__ import annotations

import pytest
import torch
from torch import nn

from hdmnet.models import masked_prior
from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.base_learner import BaseLearner
from hdmnet.models.masked_prior import pack_masked, prior_masks
from hdmnet.models.pfenet.enrichment import check_scales, scale_size
from hdmnet.models.pfenet.model import PFENet


def make_model(backbone="resnet_narrow", **changes):
    torch.manual_seed(0)
    return PFENet(encoder=build_backbone(backbone), channels=8, **changes)


def make_episode(size, shots=1):
    torch.manual_seed(shots)
    mask = (torch.rand(2, shots, *size) > 0.6).to(torch.uint8)
    return torch.randn(2, 3, *size), torch.randn(2, shots, 3, *size), mask


@pytest.mark.parametrize(
    ("scales", "size", "sizes"),
    [
        ((1.0, 0.5, 0.25, 0.125), (81, 41), [(81, 41), (40, 20), (20, 10), (10, 5)]),
        ((1.0, 0.5, 0.25, 0.125), (60, 5), [(60, 5), (30, 2), (15, 1), (7, 1)]),
        ((60, 30, 15, 8), (14, 9), [(60, 60), (30, 30), (15, 15), (8, 8)]),
    ],
)
def test_a_scale_is_a_fraction_or_a_side(scales, size, sizes):
    assert [scale_size(scale, size) for scale in check_scales(scales)] == sizes


@pytest.mark.parametrize("scales", [[60, 0.5], [], [0, 0.5], [15.5, 8], ["60", "30"], [-1.0]])
def test_scales_that_are_refused(scales):
    with pytest.raises(ValueError, match=r"model\.ppm_scales=.*expected sides .* or fractions"):
        check_scales(scales)


@pytest.mark.long
@pytest.mark.parametrize(("backbone", "size"), [("resnet_narrow", (33, 50)), ("vgg16", (72, 41))])
@pytest.mark.parametrize("scales", [(60, 30, 2), (1.0, 0.5)])
def test_sizes_of_what_it_answers(backbone, size, scales):
    """Any size; scales larger than the features; VGG-16, whose layer 2 is larger than layers 3 and 4."""
    h, w = (-(-s // (16 if backbone == "vgg16" else 8)) for s in size)
    model = make_model(backbone, ppm_scales=scales).eval()
    with torch.no_grad():
        out = model(*make_episode(size, shots=2))
    sides = [(60, 60), (30, 30), (2, 2)] if scales[0] == 60 else [(h, w), (h // 2, max(w // 2, 1))]
    assert [side.shape for side in out.auxiliary.values()] == [(2, 2, *side) for side in sides]
    assert out.scores.shape == (2, 2, h, w)
    assert [m.shape for m in out.maps["prior"]] == [(2, h, w)]
    assert all(value.shape == (2, 2, *size) for value in (out.logits, *out.auxiliary_logits.values()))


def test_prior_compares_with_all_support_positions():
    torch.manual_seed(0)
    query, features = torch.randn(2, 5, 4, 3), torch.randn(4, 5, 4, 3)
    masks = torch.rand(4, 1, 4, 3) * (torch.rand(4, 1, 4, 3) > 0.5)
    masks[1], masks[2] = 0, 1
    masked = features * masks
    ours = prior_masks(query, pack_masked(masked, masks), shots=2)
    cosine = torch.einsum("bci,bkcj->bkij", query.flatten(2), masked.flatten(2).unflatten(0, (2, 2)))
    lengths = (
        query.flatten(2).norm(dim=1)[:, None, :, None] * masked.flatten(2).norm(dim=1).unflatten(0, (2, 2))[:, :, None]
    )
    best = (cosine / (lengths + 1e-7)).amax(3)
    low, high = best.amin(2, keepdim=True), best.amax(2, keepdim=True)
    torch.testing.assert_close(ours.flatten(2), (best - low) / (high - low + 1e-7), rtol=0, atol=1e-5)
    assert not ours[0, 1].any()  # an empty mask


@pytest.mark.parametrize("trunk_bn", ["batch", "frozen"])
def test_running_statistics_of_the_trunk(trunk_bn):
    """They drift in training only, and only with `batch`: by one batch a query and one a shot."""
    model = make_model(trunk_bn=trunk_bn)
    norms = [m for m in model.trunk.modules() if isinstance(m, nn.BatchNorm2d)]
    for mode, passes in ((True, 4 if trunk_bn == "batch" else 0), (False, 0)):
        before = [int(norm.num_batches_tracked) for norm in norms]
        model.train(mode)(*make_episode((33, 33), shots=3))
        assert [int(norm.num_batches_tracked) - n for norm, n in zip(norms, before, strict=True)] == [passes] * len(
            norms
        )
    assert model.train().classify.training


def test_backbone_may_come_out_of_a_base_learner():
    backbone = build_backbone("resnet_narrow")
    model = PFENet(encoder=BaseLearner(backbone=backbone, num_base=3, feature_channels=8), channels=8)
    assert model.trunk.encoder is backbone
    assert not any(p.requires_grad for p in model.trunk.parameters())


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"model\.trunk_bn=sync: expected batch or frozen"):
        make_model(trunk_bn="sync")
    with pytest.raises(
        ValueError,
        match=r"the backbone's last layer runs on masked features: Conv2d of 0 levels cannot be cut",
    ):
        PFENet(encoder=nn.Conv2d(3, 3, 1))


def test_learning_rate_of_every_group():
    groups = make_model().parameter_groups(2.5e-3, lr_factor=10)
    assert [group["name"] for group in groups] == [
        "down_query", "down_supp", "init_merge", "alpha_conv", "beta_conv", "inner_cls", "res1", "res2", "cls",
    ]  # fmt: skip
    assert {group["lr"] for group in groups} == {0.025}
    assert "alpha_conv" not in {g["name"] for g in make_model(ppm_scales=[1.0]).parameter_groups(1.0)}


@pytest.mark.parametrize("budget", [2**27, 1])
def test_priors_of_all_supports_at_once_are_the_same(budget, monkeypatch):
    """What a GPU does; in training it keeps all positions."""
    torch.manual_seed(0)
    query, features = torch.randn(2, 5, 4, 6), torch.randn(6, 5, 4, 6)
    masks = torch.rand(6, 1, 4, 6) * (torch.rand(6, 1, 4, 6) > 0.5)
    masks[1], masks[4] = 0, 1
    monkeypatch.setattr(masked_prior, "PRODUCTS_GPU", budget)
    packed, whole = (pack_masked(features * masks, masks, whole=whole) for whole in (False, True))
    assert set(whole.counts) == {24}
    expected = prior_masks(query, packed, shots=3)
    for rows in (packed, whole):
        best = masked_prior._largest_cosines(query.flatten(2), rows.pad()[0], query.norm(dim=1).flatten(1), 3)
        torch.testing.assert_close(masked_prior.stretch(best).view(2, 3, 4, 6), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(prior_masks(query, whole, shots=3), expected, rtol=0, atol=1e-6)
