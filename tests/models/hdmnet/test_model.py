from __future__ import annotations

import pytest
import torch
from torch import nn

from hdmnet.models.mid_level import masked_average
from tests.helpers.tiny_hdmnet import make_episode, make_model


@pytest.mark.long
@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
@pytest.mark.parametrize(("shots", "size"), [(1, (49, 65)), (5, (64, 33))])
def test_shapes_of_the_output(num_stages, shots, size):
    model = make_model(num_stages=num_stages, num_shots=shots)
    with torch.no_grad():
        out = model(*make_episode(shots, size))
    assert out.logits.shape == out.logits_of("meta").shape == (2, 2, *size)
    assert out.logits_of("base").shape == (2, 5, *size)
    h, w = -(-size[0] // 8), -(-size[1] // 8)
    sizes = []
    for _ in range(num_stages):
        sizes.append((2, h, w))
        h, w = -(-h // 2), -(-w // 2)
    assert [m.shape for m in out.maps["correlation"]] == sizes
    assert torch.stack(out.maps["prior"], dim=1).shape == (2, 2, *sizes[0][1:])
    assert out.is_probability


def test_only_the_foreground_of_the_support_is_seen():
    model = make_model()
    query, support, mask = make_episode()
    changed = torch.where(mask[:, :, None] == 1, support, torch.randn_like(support))
    with torch.no_grad():
        assert torch.equal(model(query, support, mask).logits, model(query, changed, mask).logits)


def test_without_ensemble_the_meta_prediction_is_final():
    model = make_model(ensemble=False)
    with torch.no_grad():
        out = model(*make_episode())
    assert set(out.auxiliary) == {"base"}
    assert model.reported == ("final",)
    assert not out.is_probability
    assert [g["name"] for g in model.parameter_groups(lr=1.0)] == [
        "transformer", "down_support", "down_query", "support_merge", "query_merge",
    ]  # fmt: skip


def test_parameter_groups_hold_every_learnable_parameter_once():
    model = make_model(num_shots=5)
    groups = model.parameter_groups(lr=1e-3, head_lr_factor=10)
    ids = [id(p) for group in groups for p in group["params"]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in model.parameters() if p.requires_grad}
    assert {g["name"]: g["lr"] for g in groups}["shot_weights"] == pytest.approx(1e-2)
    official = make_model(num_shots=5, shot_weighting="official").parameter_groups(lr=1e-3)
    assert "shot_weights" not in {g["name"] for g in official}  # as in the release


def test_norm_switches():
    def decoder_norm(norm):
        model = make_model(norm=norm).train()
        return model.meta_learner.decoder.blocks[0][1]

    assert not decoder_norm("fixed").training
    assert decoder_norm("bn").training
    assert isinstance(decoder_norm("syncbn"), nn.SyncBatchNorm)
    with pytest.raises(ValueError, match=r"model.norm=batch: expected fixed or bn or syncbn"):
        make_model(norm="batch")


def test_prior_norm_switch_stretches_the_priors():
    plain, stretched = make_model(), make_model(prior_norm=True)
    episode = make_episode()
    with torch.no_grad():
        a, b = torch.stack(plain(*episode).maps["prior"], dim=1), torch.stack(stretched(*episode).maps["prior"], dim=1)
    low, high = a.amin((2, 3), keepdim=True), a.amax((2, 3), keepdim=True)
    torch.testing.assert_close(b, (a - low) / (high - low), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("key", "hint"), [("temprature", "did you mean 'temperature'"), ("channels", "expected num_heads")]
)
def test_an_unknown_key_of_matching_is_refused(key, hint):
    with pytest.raises(ValueError, match=rf"^key of model\.matching={key}: .*{hint}"):
        make_model(matching={key: 1})


def test_matching_switches_reach_every_stage():
    model = make_model(matching={"merge_kernel": 1, "temperature": 0.5, "num_heads": 4})
    for layer in model.meta_learner.matching:
        assert (layer.merge[0].kernel_size, layer.temperature, layer.num_heads) == ((1, 1), 0.5, 4)


def test_message_is_scaled_to_the_training_shots():
    """Five times the same support say what it says once; a model of the release does not rescale."""
    query, support, mask = make_episode(1)
    five = support.expand(-1, 5, -1, -1, -1), mask.expand(-1, 5, -1, -1)
    for num_shots, same in ((1, True), (None, False)):
        model = make_model(matching={"num_shots": num_shots}, ensemble=False)
        with torch.no_grad():
            once, often = model(query, support, mask).scores, model(query, *five).scores
        assert torch.allclose(once, often, rtol=1e-3, atol=1e-3) == same


def test_masked_average_is_soft():
    features = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])
    mask = torch.tensor([[[[1.0, 0.5], [0.0, 0.0]]]])
    assert masked_average(features, mask).item() == pytest.approx(2.5 / (1.5 + 5e-4))
    assert masked_average(features, torch.zeros_like(mask)).item() == 0
