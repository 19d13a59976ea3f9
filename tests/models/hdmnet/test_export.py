"""The exportable twin computes what the model computes; exporters run on it in tests/apps/test_export.py."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.base_learner import BaseLearner, PyramidPooling
from hdmnet.models.hdmnet.baseline import build_baseline
from hdmnet.models.hdmnet.export import ExportableHDMNet, SupportAsInput, SupportFitted, _nearest, _pool_pyramid
from tests.helpers.tiny_hdmnet import make_episode, make_model

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
CLOSE = {"rtol": 0, "atol": 1e-5}
VARIANTS = (
    {"num_stages": 4, "prior_norm": True},
    {"ensemble": False, "norm": "syncbn"},
    {"matching": {"score": "dot", "normalise": "support"}},
    {"matching": {"score": "dot", "normalise": "query"}},
    {"matching": {"score": "cosine", "normalise": "none"}},
    {"backbone": "vgg16"},
    {"backbone": "mobilenet_v2", "shot_weighting": "official"},
)


def compare(one, other):
    torch.testing.assert_close(one.logits, other.logits, **CLOSE)
    assert set(one.auxiliary) == set(other.auxiliary)
    if "meta" in one.auxiliary:
        torch.testing.assert_close(one.logits_of("meta"), other.logits_of("meta"), **CLOSE)
    torch.testing.assert_close(one.logits_of("base"), other.logits_of("base"), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.stack(one.maps["prior"]), torch.stack(other.maps["prior"]), **CLOSE)
    for a, b in zip(one.maps["correlation"], other.maps["correlation"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.long
@torch.no_grad()
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_the_exportable_model_computes_the_same_function(changes):
    model = make_model(num_shots=2, **changes)
    query, support, mask = make_episode(2, (65, 73))
    mask[0, 0], mask[1, 1] = 1, 255  # all foreground; none
    compare(ExportableHDMNet(model)(query, support, mask), model(query, support, mask))


@torch.no_grad()
@pytest.mark.parametrize("size", [(57, 57), (90, 131)])
def test_query_and_supports_may_differ_in_size_and_k_from_the_training(size):
    model = make_model(num_shots=1)
    _, support, mask = make_episode(3, (80, 65))
    query = make_episode(1, size)[0]
    compare(ExportableHDMNet(model)(query, support, mask), model(query, support, mask))


def colours(*shape):
    """Pictures from 0 to 255, and the same normalised."""
    pictures = torch.randint(256, (*shape[:-2], 3, *shape[-2:])).float()
    shift, scale = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return pictures, (pictures / 255 - shift) / scale


@pytest.mark.long
@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"ensemble": False, "prior_norm": True}], ids=str)
def test_fitted_supports_of_several_classes_serve_any_number_of_queries(changes):
    model = make_model(num_shots=2, **changes)
    (queries, query_input), (_, support_input) = colours(3, 65, 73), colours(2, 2, 65, 73)
    mask = make_episode(2, (65, 73), batch=2)[2]
    mask[0, 1, 20:] = 0  # supports of unequal foregrounds
    fitted = [model.encode_support(*pair) for pair in zip(support_input, mask, strict=True)]
    logits, probability = SupportFitted(model, MEAN, STD, fitted)(queries)
    for i in range(2):
        supports = support_input[i].expand(3, -1, -1, -1, -1), mask[i].expand(3, -1, -1, -1)
        expected = model(query_input, *supports).logits
        torch.testing.assert_close(logits[:, i], expected, **CLOSE)
        total = expected.clamp(min=1e-6).sum(1) if model.ensemble is not None else None
        share = expected.softmax(1)[:, 1] if total is None else expected[:, 1].clamp(min=1e-6) / total
        torch.testing.assert_close(probability[:, i], share, **CLOSE)


@torch.no_grad()
def test_supports_as_inputs_are_normalised_like_queries():
    model = make_model()
    (query, query_input), (support, support_input) = colours(2, 65, 73), colours(2, 1, 80, 65)
    mask = make_episode(1, (80, 65))[2]
    logits, probability = SupportAsInput(model, MEAN, STD)(query, support, mask)
    assert probability.shape == (2, 1, 65, 73)
    torch.testing.assert_close(logits[:, 0], model(query_input, support_input, mask).logits, **CLOSE)


@torch.no_grad()
def test_the_model_is_left_as_it_is():
    model = make_model().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    twin = SupportAsInput(model, MEAN, STD)
    assert model.training
    assert any(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.long
@pytest.mark.parametrize(
    ("backbone", "stages", "side"), [("resnet_narrow", 3, 57), ("resnet_narrow", 4, 65), ("vgg16", 3, 113)]
)
def test_smallest_side_leaves_every_map_and_its_reduction_two_cells(backbone, stages, side):
    model = make_model(backbone, num_stages=stages)
    assert ExportableHDMNet(model).smallest_side == side
    with torch.no_grad():
        episode = make_episode(1, (side, side))
        maps = model(*episode).maps["correlation"]
    assert min(maps[-1].shape[1:]) >= 2
    assert min(maps[0].shape[1:]) // 4 >= 2


def test_the_baseline_is_refused():
    learner = BaseLearner(backbone=build_backbone("resnet_narrow"), num_base=4, feature_channels=16)
    with pytest.raises(ValueError, match=r"model=baseline cannot be exported; expected model=hdmnet"):
        SupportAsInput(build_baseline(learner), MEAN, STD)


def test_nearest_neighbour_takes_torch_places():
    for source in range(1, 240):
        for target in {1, 2, 7, source // 16 + 1, source // 8 + 1}:
            expected = F.interpolate(torch.arange(float(source))[None, None], target, mode="nearest")[0, 0]
            assert _nearest(source, target).tolist() == expected.tolist(), (source, target)


@torch.no_grad()
@pytest.mark.parametrize("size", [(5, 9), (33, 20)])
def test_pooling_by_matrices_is_adaptive_pooling(size):
    pooling = PyramidPooling(8).eval()
    x = torch.randn(2, 8, *size)
    for branch in pooling.branches:  # as folded: no normalisation
        branch[2] = torch.nn.Identity()
    torch.testing.assert_close(_pool_pyramid(pooling, x), pooling(x))
