from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hdmnet.models.cluster_matching.clusters import cluster, cluster_means
from hdmnet.models.cluster_matching.model import ClusterMatching
from hdmnet.models.cluster_matching.position import position_directions, take_away
from tests.helpers.coloured import Colours, episode, iou


@pytest.mark.parametrize("of", [0, 1])
@pytest.mark.parametrize("shots", [1, 3])
def test_it_finds_what_is_marked_and_nothing_else(of, shots):
    given, truth = episode(shots, of)
    out = ClusterMatching(encoder=Colours(), num_clusters=3, position_rank=0).eval()(*given)
    assert iou(out.prediction[0], truth) > 0.7
    assert iou(out.prediction[0], episode(shots, 1 - of)[1]) == 0


def test_clusters_that_nothing_is_matched_back_to_are_left_out():
    given, truth = episode()
    strict = ClusterMatching(encoder=Colours(), num_clusters=3, position_rank=0, backward_share=0.9).eval()
    prior = strict(*given).maps["prior"][0][0]
    share = F.avg_pool2d(truth[None].float(), 4)[0]
    assert not prior[share == 0].any()
    assert (prior[share == 1] > 0.5).all()


def three_groups():
    torch.manual_seed(0)
    centres = F.normalize(torch.randn(3, 16), dim=1)
    group = torch.arange(60) % 3
    return F.normalize(centres[group] + 0.05 * torch.randn(60, 16), dim=1), group


def test_clusters_are_the_groups_that_there_are():
    rows, group = three_groups()
    labels = cluster(rows, fewest=3)
    assert 3 <= len(labels.unique()) <= 6
    for number in labels.unique():
        assert len(group[labels == number].unique()) == 1


@pytest.mark.parametrize("fewest", [2, 5, 20, 60, 100])
def test_there_are_never_fewer_clusters_than_asked_for(fewest):
    rows, group = three_groups()
    labels = cluster(rows, fewest)
    number = int(labels.max()) + 1
    assert labels.unique().tolist() == list(range(number))
    assert number >= min(fewest, len(rows))
    for one in range(number):
        assert len(group[labels == one].unique()) == 1 or number < 3


def test_first_neighbours_by_hand():
    # 0 and 1 are nearest to each other, 2 to 1; 3 and 4 to each other.
    angles = torch.tensor([0.0, 0.1, 0.25, 2.0, 2.1])
    labels = cluster(torch.stack([angles.cos(), angles.sin()], dim=1), fewest=2)
    assert labels.tolist() == [0, 0, 0, 1, 1]
    torch.testing.assert_close(cluster_means(angles[:, None], labels)[:, 0], torch.tensor([0.35 / 3, 2.05]))


def test_what_tells_of_the_place_is_found_on_noise_and_taken_away():
    torch.manual_seed(0)
    along = F.normalize(torch.randn(1, 16), dim=1)
    ramp = torch.linspace(-3, 3, 8).repeat(6, 1)

    def encode(images):
        content = F.avg_pool2d(images, 4).repeat(1, 6, 1, 1)[:, :16]
        return [content + along.T[None, :, :, None] * ramp]

    (found,) = position_directions(encode, (24, 32), 1, torch.device("cpu"))
    assert found.shape == (16, 1)
    assert abs(float(found[:, 0] @ along[0])) > 0.95
    pictures = torch.randn(2, 3, 24, 32)
    (kept,) = take_away(encode(pictures), [found])
    left = torch.einsum("bchw,c->bhw", kept, along[0])
    assert left.abs().max() < 0.4 * 3
    assert [d.shape for d in position_directions(encode, (24, 32), 0, torch.device("cpu"))] == [(16, 0)]
    assert position_directions(encode, (24, 32), 9, torch.device("cpu"))[0].shape == (16, 4)  # a fourth at most


def test_the_directions_follow_size_and_weights():
    method = ClusterMatching(encoder=Colours(), num_clusters=3).eval()
    picture = torch.randn(1, 3, 24, 32)
    method.encode_query(picture)
    before = method._directions[0]
    method.encode_query(picture)
    assert method._directions[0] is before
    method.encode_query(picture[..., :28])
    assert method._directions[0] is not before
    latest = method._directions[0]
    with torch.no_grad():
        method.trunk.backbone.gain.mul_(2)
    method.encode_query(picture[..., :28])
    assert method._directions[0] is not latest
    assert not any("direction" in key for key in method.state_dict())


def test_large_pictures_are_clustered_and_matched_by_cells(monkeypatch):
    given, truth = episode(3)
    method = ClusterMatching(encoder=Colours(), num_clusters=3, position_rank=0).eval()
    assert len(method.encode_query(given[0]).labels.unique()) >= 3
    monkeypatch.setattr("hdmnet.models.similarity.MOST_CELLS", 50)  # 12x16 positions: cells of 2x2
    labels = method.encode_query(given[0]).labels
    assert labels.shape == (1, 12, 16)
    assert torch.equal(labels[:, ::2, ::2], labels[:, 1::2, 1::2])
    assert iou(method(*given).prediction[0], truth) > 0.7
