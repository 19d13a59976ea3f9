from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.backbones.prepare import prepare_trunk
from hdmnet.models.base_learner import BaseLearner
from hdmnet.models.cyctr import transformer
from hdmnet.models.cyctr.loss import CyCTRLoss
from hdmnet.models.cyctr.model import CyCTR
from hdmnet.models.cyctr.support import SupportTokens, draw, find_object
from hdmnet.models.cyctr.transformer import CycleAttention, CycleTransformer, cycle_consistent
from hdmnet.models.losses import dice_loss


def make_model(backbone="resnet_narrow", **changes):
    torch.manual_seed(0)
    return CyCTR(encoder=build_backbone(backbone), channels=32, **changes)


def make_episode(shots=1, size=(49, 66)):
    torch.manual_seed(shots)
    masks = torch.zeros(2, shots, *size, dtype=torch.uint8)
    masks[..., 10:30, 16:40] = 1
    masks[..., 38:, :] = 255
    return torch.randn(2, 3, *size), torch.randn(2, shots, 3, *size), masks


def make_tokens(positions=60, objects=20):
    torch.manual_seed(0)
    is_object = torch.rand(2, positions).argsort(1) < objects
    return SupportTokens(torch.randn(2, positions, 4), is_object, torch.rand(2, positions) < 0.3)


# ------------------------------------------------------------------------------------------------- supports' positions


@pytest.mark.parametrize(("objects", "count"), [(20, 15), (5, 15), (50, 15), (20, 100)])
def test_drawn_positions_with_their_own_flags(objects, count):
    """As many of the object as of the rest; what one kind lacks, the other gives."""
    tokens = make_tokens(objects=objects)
    taken = draw(tokens, count, own_flags=True, fixed=False)
    assert taken.is_object.sum(1).tolist() == [min(objects, max(count, 2 * count - (60 - objects)))] * 2
    assert taken.values.shape[1] == min(2 * count, 60)
    for k in (0, 1):
        place = (taken.values[k][:, None] == tokens.values[k]).all(2).long().argmax(1)
        assert len(set(place.tolist())) == len(place)
        assert torch.equal(taken.values[k], tokens.values[k][place])
        assert torch.equal(taken.is_object[k], tokens.is_object[k][place])
        assert torch.equal(taken.invalid[k], tokens.invalid[k][place])


def test_draws_of_evaluation_depend_on_nothing_and_change_nothing():
    tokens = make_tokens()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = draw(tokens, 10, own_flags=True, fixed=True)
    assert torch.equal(torch.rand(3), expected)
    alone = SupportTokens(*(value[1:] for value in vars(tokens).values()))
    assert torch.equal(draw(alone, 10, own_flags=True, fixed=True).values[0], first.values[1])
    trained = [draw(tokens, 10, own_flags=True, fixed=False).values for _ in range(2)]
    assert not torch.equal(*trained)


def test_without_an_object_or_with_nothing_else():
    masks = torch.stack([torch.zeros(40, 56), torch.ones(40, 56), torch.full((40, 56), 255)]).byte()
    masks[0, 3, 3] = 1  # lost between the positions
    empty, full, ignored = find_object(masks, (5, 7))
    assert empty.nonzero().tolist() == [[1, 2], [1, 3], [2, 2], [2, 3]]
    assert (~full).nonzero().tolist() == [[0, 0], [0, 6], [4, 0], [4, 6]]
    assert torch.equal(ignored, empty)


def test_every_layer_of_a_training_has_positions_of_its_own(monkeypatch):
    counts = []

    def remember(tokens, count, **options):
        counts.append((count, options["fixed"]))
        return draw(tokens, count, **options)

    monkeypatch.setattr(transformer, "draw", remember)
    model = CycleTransformer(
        16, num_layers=2, num_heads=2, num_points=3, num_taken=10, own_flags=False, dropout=0.0
    ).eval()
    tokens = SupportTokens(torch.randn(1, 300, 16), torch.rand(1, 300) < 0.4, torch.zeros(1, 300, dtype=torch.bool))
    query, invalid = torch.randn(1, 16, 4, 5), torch.zeros(1, 4, 5, dtype=torch.bool)
    model(query, invalid, tokens, shots=3)
    assert counts == [(30, True)]
    counts.clear()
    torch.manual_seed(0)
    for _ in range(40):
        model.train()(query, invalid, tokens, shots=3)
    assert len(set(counts)) > 20
    assert all(0.6 * 30 - 1 < count <= 1.4 * 30 and not fixed for count, fixed in counts)
    counts.clear()
    for _ in range(40):
        model(query, invalid, tokens, shots=1)
    assert max(counts)[0] > 25
    assert all(6 <= count <= 40 for count, _ in counts)


# ------------------------------------------------------------------------------------------------- attention


def test_cycle_consistency_head_by_head():
    torch.manual_seed(0)
    q, k, is_object = torch.randn(2, 3, 12, 4), torch.randn(2, 3, 9, 4), torch.rand(2, 9) < 0.5
    found = cycle_consistent(q, k, is_object)
    scores = q @ k.transpose(2, 3)
    for b in range(2):
        for n in range(3):
            for j in range(9):
                back = scores[b, n, scores[b, n, :, j].argmax()].argmax()
                assert found[b, n, j] == (is_object[b, j] == is_object[b, back])
    assert found.any()
    assert not found.all()


def test_invalid_positions_have_no_part_unless_all_are():
    torch.manual_seed(0)
    attention, x, tokens = (
        CycleAttention(8, num_heads=2, dropout=0.0).eval(),
        torch.randn(1, 5, 8),
        torch.randn(1, 6, 8),
    )
    one_class = torch.ones(1, 6, dtype=torch.bool)  # all cycles are consistent

    def attend(values, invalid):
        return attention(x, SupportTokens(values, one_class, torch.tensor([invalid])))

    some = attend(tokens, [False, True, False, False, True, True])
    other = torch.where(torch.tensor([0, 1, 0, 0, 1, 1])[:, None] == 1, torch.randn(6, 8), tokens)
    torch.testing.assert_close(attend(other, [False, True, False, False, True, True]), some, rtol=0, atol=1e-6)
    torch.testing.assert_close(attend(tokens, [True] * 6), attend(tokens, [False] * 6), rtol=0, atol=1e-3)


def test_dropout_of_positions_and_of_exclusions_is_of_training_only(monkeypatch):
    """Inconsistent positions stay where their exclusion is dropped."""
    monkeypatch.setattr(transformer, "cycle_consistent", lambda q, k, o: torch.zeros(*k.shape[:3], dtype=torch.bool))
    biases = []
    real = F.scaled_dot_product_attention

    def remember(*parts, attn_mask, dropout_p):
        biases.append((attn_mask, dropout_p))
        return real(*parts, attn_mask=attn_mask)

    monkeypatch.setattr(transformer.F, "scaled_dot_product_attention", remember)
    attention = CycleAttention(8, num_heads=2, dropout=0.25)
    tokens = SupportTokens(*(torch.zeros(1, 500, 8), *torch.zeros(2, 1, 500, dtype=torch.bool)))
    tokens.invalid[:, :100] = True
    for mode in (True, False):
        attention.train(mode)(torch.zeros(1, 3, 8), tokens)
    (trained, p), (evaluated, none) = biases
    assert (p, none) == (0.25, 0.0)
    assert (evaluated == transformer.EXCLUDED).all()
    assert (trained[..., :100] == transformer.EXCLUDED).all()
    assert 0.15 < (trained[..., 100:] == 0).float().mean() < 0.35


# ------------------------------------------------------------------------------------------------- the whole


def test_paddings():
    model, (query, supports, masks) = make_model().eval(), make_episode(shots=2)
    with torch.no_grad():
        plain = model(query, supports, masks).logits
        padding = torch.zeros(2, 49, 66, dtype=torch.uint8)
        same = model(query, supports, masks, query_padding=padding, support_padding=torch.where(masks == 255, 255, 0))
        assert torch.equal(same.logits, plain)
        padding[:, 35:] = 255
        assert not torch.equal(model(query, supports, masks, query_padding=padding).logits, plain)
        nothing = torch.zeros_like(masks)
        assert not torch.equal(model(query, supports, masks, support_padding=nothing).logits, plain)


def test_flags_of_drawn_positions_are_a_switch():
    episode = make_episode()
    logits = [make_model(flags=flags).eval()(*episode).logits for flags in ("release", "own")]
    assert not torch.equal(*logits)


def test_an_answer_in_evaluation_holds_nothing_of_training():
    model, episode = make_model(), make_episode(shots=2)
    trained, evaluated = model.train()(*episode), model.eval()(*episode)
    assert evaluated.score_supports is evaluated.support_masks is None
    target = episode[2][:, 0]
    assert set(CyCTRLoss()(evaluated, target)) == {"loss", "final"}
    terms = CyCTRLoss(support=0.5)(trained, target)
    assert terms["loss"].item() == pytest.approx((terms["final"] + 0.5 * terms["support"]).item())
    scores = [trained.score_supports(mask) for mask in (target, 1 - target.clamp(max=1))]  # without dropout
    assert scores[0].shape == (4, 2, 7, 9)
    assert not torch.equal(*scores)


def test_dice_of_all_that_is_right_and_of_all_that_is_wrong():
    mask = torch.zeros(2, 6, 6, dtype=torch.uint8)
    mask[:, :3] = 1
    sure = torch.stack([mask == 0, mask == 1], 1) * 80.0 - 40
    assert dice_loss(sure, mask).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(-sure, mask).item() == pytest.approx(2)
    assert dice_loss(sure, torch.full_like(mask, 255)).item() == 2  # nothing to find, and something called


@pytest.mark.parametrize("backbone", ["vgg16", "mobilenet_v2"])
def test_trunks_whose_levels_differ_in_size(backbone):
    model, episode = make_model(backbone).eval(), make_episode(size=(72, 41))
    with torch.no_grad():
        out = model(*episode)
    assert out.logits.shape == (2, 2, 72, 41)
    assert out.maps["prior"][0].shape == out.scores.shape[:1] + out.scores.shape[2:]


def test_trunk_out_of_a_base_learner_stays_as_it_is():
    backbone = build_backbone("resnet_narrow")
    model = CyCTR(encoder=BaseLearner(backbone=backbone, num_base=3, feature_channels=8), channels=32)
    assert model.trunk.backbone is backbone
    before = {key: value.clone() for key, value in model.trunk.state_dict().items()}
    output = model.train()(*make_episode())
    CyCTRLoss()(output, make_episode()[2][:, 0])["loss"].backward()
    assert all(torch.equal(value, before[key]) for key, value in model.trunk.state_dict().items())
    assert not any(p.requires_grad for p in model.trunk.parameters())


def test_rates_of_the_groups():
    model = make_model()
    groups = model.parameter_groups(2.5e-3, lr_factor=15, transformer_lr=1e-4)
    assert [(g["name"], g["lr"], g.get("weight_decay")) for g in groups] == [
        ("head", 0.0375, None), ("transformer", 1e-4, None), ("transformer_bias", 1e-4, 0.0),
    ]  # fmt: skip
    biases = {id(p) for name, p in model.transformer.named_parameters() if name.endswith("bias")}
    assert {id(p) for p in groups[2]["params"]} == biases


def test_offsets_begin_around_the_position():
    attention = make_model().transformer.layers[0].self_attention
    offsets = attention.offsets.bias.view(8, 9, 2)
    assert torch.equal(offsets.abs().amax(2), torch.arange(1.0, 10).expand(8, 9))
    torch.testing.assert_close(offsets[1, 4], torch.tensor([5.0, 5.0]))
    assert not attention.offsets.weight.any()
    assert not attention.weights.weight.any()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"flags": "official"}, r"model\.flags=official: expected release or own"),
        ({"num_heads": 7}, r"model\.channels=32: expected a multiple of 4 · model\.num_heads=28"),
        ({"num_taken": 0}, r"model\.num_taken=0: expected an integer"),
        ({"dropout": 1.0}, r"model\.dropout=1\.0: expected a number in \[0, 1\)"),
    ],
)
def test_what_is_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        make_model(**changes)


def test_a_trunk_of_two_levels_is_refused():
    with pytest.raises(ValueError, match="the backbone has 2 levels; expected three"):
        CyCTR(encoder=prepare_trunk(build_backbone("resnet_narrow"), layers=[3, 4]))
