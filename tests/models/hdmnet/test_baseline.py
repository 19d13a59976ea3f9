from __future__ import annotations

import pytest
import torch

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.base_learner import BaseLearner
from hdmnet.models.hdmnet.baseline import build_baseline
from hdmnet.models.hdmnet.model import build_hdmnet


def make_model(build=build_baseline, **changes):
    torch.manual_seed(0)
    learner = BaseLearner(backbone=build_backbone("resnet_narrow"), num_base=4, feature_channels=16)
    return build(learner, **changes).eval()


def make_episode(shots=1, size=(49, 65), batch=2):
    torch.manual_seed(shots)
    mask = (torch.rand(batch, shots, *size) > 0.6).to(torch.uint8)
    return torch.randn(batch, 3, *size), torch.randn(batch, shots, 3, *size), mask


@pytest.mark.parametrize("ensemble", [False, True])
@pytest.mark.parametrize("shots", [1, 3])
def test_output(shots, ensemble):
    model = make_model(num_shots=shots, ensemble=ensemble)
    with torch.no_grad():
        out = model(*make_episode(shots))
    assert out.logits.shape == (2, 2, 49, 65)
    assert [m.shape for m in out.maps["correlation"]] == [(2, 7, 9)]
    assert out.is_probability == ensemble
    assert ("meta" in out.auxiliary) == ensemble == ("meta" in model.reported)


def test_it_has_what_section_4_3_says():
    meta = make_model().meta_learner
    # Three self-attentions; of the three cross-attentions the last is the matching, which is plain attention.
    assert (len(meta.pyramid.self_layers), len(meta.pyramid.cross_layers), len(meta.matching)) == (3, 2, 1)
    assert (meta.matching[0].score, meta.matching[0].normalise) == ("dot", "support")
    hdmnet = make_model(build_hdmnet)
    outside = ("down_query", "down_support", "query_merge", "support_merge", "trunk", "ensemble")
    shapes = [
        {n: p.shape for n, p in m.named_parameters() if any(o in n for o in outside)}
        for m in (make_model(ensemble=True), hdmnet)
    ]
    assert shapes[0] == shapes[1]


def test_rounds_can_be_changed():
    episode = make_episode()
    with torch.no_grad():
        outputs = [make_model(num_rounds=n)(*episode).logits for n in (1, 2, 3)]
    assert not torch.allclose(outputs[0], outputs[1])
    assert not torch.allclose(outputs[1], outputs[2])
    with pytest.raises(ValueError, match=r"model.num_rounds=0: expected an integer of 1 to 100"):
        make_model(num_rounds=0)


def test_five_times_the_same_support_say_what_it_says_once():
    model = make_model()
    query, support, mask = make_episode(1)
    with torch.no_grad():
        once = model(query, support, mask).scores
        often = model(query, support.expand(-1, 5, -1, -1, -1), mask.expand(-1, 5, -1, -1)).scores
    torch.testing.assert_close(often, once, rtol=1e-3, atol=1e-4)


def test_supports_of_another_size_are_refused():
    model = make_model()
    query, support, mask = make_episode()
    with pytest.raises(ValueError, match="model=baseline: supports must have the query's size, 7x9 as features"):
        model(query, support[..., :33, :], mask[..., :33, :])
