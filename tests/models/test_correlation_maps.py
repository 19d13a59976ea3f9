from __future__ import annotations

import pytest
import torch

from hdmnet.models.correlation_maps import self_maps, support_maps
from hdmnet.models.similarity import SupportUnits, unit_levels

WIDTHS = [4, 6]


@pytest.fixture
def given():
    torch.manual_seed(0)
    query = unit_levels([torch.randn(2, width, 5, 7) for width in WIDTHS])
    supports = unit_levels([torch.randn(4, width, 5, 7) for width in WIDTHS])
    share = torch.zeros(4, 5, 7)
    share[:, 1:3, 2:5] = 1
    share[3, 0, 0] = 0.4
    return query, SupportUnits(supports, share)


def turned(units, seed=0):
    """The units in other coordinates: each level multiplied with an orthogonal matrix."""
    torch.manual_seed(seed)
    turns = [torch.linalg.qr(torch.randn(width, width)).Q for width in WIDTHS]
    levels = zip(turns, units.split(WIDTHS, 1), strict=True)
    return torch.cat([torch.einsum("dc,bchw->bdhw", turn, level) for turn, level in levels], dim=1)


def test_nothing_of_the_features_but_their_correlations_gets_in(given):
    query, support = given
    maps = support_maps(query, support, WIDTHS, shots=2)
    assert maps.shape == (2, 13, 5, 7)
    other = support_maps(turned(query), SupportUnits(turned(support.units), support.foreground), WIDTHS, shots=2)
    torch.testing.assert_close(other, maps, rtol=1e-4, atol=1e-4)
    probability = torch.rand(2, 5, 7)
    own = self_maps(query, probability, WIDTHS)
    assert own.shape == (2, 7, 5, 7)
    assert torch.equal(own[:, 0], probability)
    torch.testing.assert_close(self_maps(turned(query), probability, WIDTHS), own, rtol=1e-4, atol=1e-4)


def test_a_support_given_twice_counts_as_one(given):
    query, support = given
    once = SupportUnits(support.units[::2], support.foreground[::2])
    twice = SupportUnits(once.units.repeat_interleave(2, 0), once.foreground.repeat_interleave(2, 0))
    torch.testing.assert_close(
        support_maps(query, twice, WIDTHS, shots=2), support_maps(query, once, WIDTHS, shots=1), rtol=1e-4, atol=1e-4
    )


def test_the_order_of_the_supports_does_not_matter_and_other_episodes_neither(given):
    query, support = given
    maps = support_maps(query, support, WIDTHS, shots=2)
    order = [1, 0, 3, 2]
    swapped = SupportUnits(support.units[order], support.foreground[order])
    torch.testing.assert_close(support_maps(query, swapped, WIDTHS, shots=2), maps)
    alone = SupportUnits(support.units[2:], support.foreground[2:])
    torch.testing.assert_close(support_maps(query[1:], alone, WIDTHS, shots=2), maps[1:])


def test_a_query_that_is_its_own_support_matches_its_object_best(given):
    _, support = given
    own = SupportUnits(support.units[:1], support.foreground[:1])
    maps = support_maps(support.units[:1], own, WIDTHS, shots=1)[0]
    levels = len(WIDTHS)
    inside = own.foreground[0] == 1
    for one in maps:
        assert one[inside].mean() > one[~inside].mean()
    for stretched in (0, 2, 3, 5, 6):
        part = maps[stretched * levels : (stretched + 1) * levels]
        assert part.amin((1, 2)).tolist() == pytest.approx([0] * len(part))
        assert part.amax((1, 2)).tolist() == pytest.approx([1] * len(part), abs=1e-4)


def test_only_positions_that_the_first_head_is_sure_of_count(given):
    query, _ = given
    probability = torch.full((2, 5, 7), 0.4)
    unsure = self_maps(query, probability, WIDTHS)
    assert not unsure[:, 1:].any()  # neither fore- nor background
    probability[0, 2, 3], probability[0, 4, 4], probability[0, 0, 0] = 0.9, 0.65, 0.1
    maps = self_maps(query, probability, WIDTHS)[0, 1:3]
    for level, one in zip(query[0].split(WIDTHS), maps, strict=True):
        cosine = torch.einsum("chw,c->hw", level, level[:, 2, 3])  # 0.65 is too far from the largest
        torch.testing.assert_close(one, (cosine - cosine.min()) / (cosine.max() - cosine.min()), rtol=1e-4, atol=1e-4)
