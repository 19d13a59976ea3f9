from __future__ import annotations

import pytest
import torch

from hdmnet.models.ensemble import Ensemble, base_foreground, gram_distance, gram_matrix
from tests.helpers import official_recipe as recipe


def test_gram_matrix_and_distance_equal_the_release(golden):
    query, support, _ = recipe.similarity_inputs()
    query, support = torch.from_numpy(query), torch.from_numpy(support)
    recorded = golden("unit_small.npz")
    torch.testing.assert_close(gram_matrix(query), torch.from_numpy(recorded["gram_q"]), rtol=0, atol=1e-6)
    distance = gram_distance(gram_matrix(query.relu()), gram_matrix(support.relu())[:, None])[:, 0]
    torch.testing.assert_close(distance, torch.from_numpy(recorded["est_relu_q_s"]), rtol=0, atol=1e-6)


def test_gram_matrix_by_hand():
    features = torch.tensor([[[[3.0, 4.0]], [[4.0, 3.0]], [[0.0, 0.0]]]])
    expected = torch.tensor([[[1, 0.96, 0], [0.96, 1, 0], [0, 0, 0]]])
    torch.testing.assert_close(gram_matrix(features), expected, rtol=0, atol=1e-6)


def test_distance_is_zero_for_the_same_picture_and_one_a_shot():
    x = torch.rand(2, 4, 5, 5)
    other = torch.rand(2, 4, 5, 5)
    distances = gram_distance(gram_matrix(x), torch.stack([gram_matrix(x), gram_matrix(other)], dim=1))
    assert distances.shape == (2, 2)
    torch.testing.assert_close(distances[:, 0], torch.zeros(2), rtol=0, atol=1e-6)
    expected = (gram_matrix(x) - gram_matrix(other)).flatten(1).norm(dim=1) / 4
    torch.testing.assert_close(distances[:, 1], expected)


def test_base_foreground_leaves_background_and_own_class_out():
    probabilities = torch.tensor([0.4, 0.1, 0.2, 0.3])
    logits = probabilities.log().view(1, 4, 1, 1).repeat(2, 1, 1, 1)
    assert base_foreground(logits).flatten().tolist() == pytest.approx([0.6, 0.6])
    own = base_foreground(logits, torch.tensor([0, 2]))
    assert own.flatten().tolist() == pytest.approx([0.5, 0.3])


def test_starts_as_the_meta_prediction():
    ensemble = Ensemble()
    meta, base = torch.randn(2, 2, 3, 3), torch.randn(2, 5, 3, 3)
    fused = ensemble(meta, base, torch.rand(2, 1))
    torch.testing.assert_close(fused, meta.softmax(1))


def test_fusion_by_hand():
    ensemble = Ensemble()
    ensemble.gram_merge.weight.data = torch.tensor([0.9, 0.5]).view(1, 2, 1, 1)
    ensemble.base_merge.weight.data = torch.tensor([0.8, 0.6]).view(1, 2, 1, 1)
    meta = torch.tensor([0.7, 0.3]).log().view(1, 2, 1, 1)
    base = torch.tensor([0.5, 0.4, 0.1]).log().view(1, 3, 1, 1)
    fused = ensemble(meta, base, torch.tensor([[0.2]]))
    background = 0.8 * (0.9 * 0.7 + 0.5 * 0.2) + 0.6 * 0.5
    assert fused.flatten().tolist() == pytest.approx([background, 0.9 * 0.3 + 0.5 * 0.2])


def shot_weights(ensemble, ascending):
    first, _, second = ensemble.shot_weights
    hidden = (ascending @ first.weight.flatten(1).T + first.bias).relu()
    return (hidden @ second.weight.flatten(1).T + second.bias).softmax(1)


def test_shot_weights_meet_their_own_distances_or_the_releases():
    torch.manual_seed(0)
    distances = torch.tensor([[0.5, 0.1, 0.9], [0.2, 0.3, 0.1]])
    ascending = torch.tensor([[0.1, 0.5, 0.9], [0.1, 0.2, 0.3]])
    official, intended = Ensemble(num_shots=3, shot_weighting="official"), Ensemble(num_shots=3)
    intended.load_state_dict(official.state_dict())
    weights = shot_weights(official, ascending)
    torch.testing.assert_close(intended.pool_distances(distances), (weights * ascending).sum(1))
    torch.testing.assert_close(official.pool_distances(distances), (weights * distances).sum(1))
    # Done right, the order in which the supports come cannot matter.
    shuffled = distances[:, [2, 0, 1]]
    torch.testing.assert_close(intended.pool_distances(shuffled), intended.pool_distances(distances))


def test_another_number_of_shots_is_averaged():
    distances = torch.tensor([[0.5, 0.1]])
    assert Ensemble(num_shots=3).pool_distances(distances).item() == pytest.approx(0.3)
    assert Ensemble().pool_distances(distances).item() == pytest.approx(0.3)
    assert Ensemble(num_shots=3).pool_distances(distances[:, :1]).item() == pytest.approx(0.5)


def test_unknown_shot_weighting():
    with pytest.raises(ValueError, match=r"model.shot_weighting=sorted: expected intended or official"):
        Ensemble(shot_weighting="sorted")
