from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hdmnet.models import similarity
from hdmnet.models.similarity import SupportUnits

WIDTHS = [3, 5]


@pytest.fixture
def levels():
    torch.manual_seed(0)
    return [torch.randn(2, width, 4, 6) for width in WIDTHS]


def test_each_levels_vectors_have_length_1(levels):
    units = similarity.unit_levels([level.to(torch.bfloat16) for level in levels])
    assert (units.shape, units.dtype) == ((2, 8, 4, 6), torch.float32)
    for part, level in zip(units.split(WIDTHS, 1), levels, strict=True):
        torch.testing.assert_close(part.norm(dim=1), torch.ones(2, 4, 6))
        torch.testing.assert_close(part, level / level.norm(dim=1, keepdim=True), rtol=0.02, atol=0.02)


def test_the_share_of_a_position_that_is_foreground():
    masks = torch.zeros(1, 4, 8, dtype=torch.uint8)
    masks[0, :2, :2] = 1
    masks[0, 0, 4:] = 1
    masks[0, 3] = 255  # background
    assert similarity.foreground_share(masks, (2, 4))[0].tolist() == [[1, 0, 0.5, 0.5], [0, 0, 0, 0]]


def test_prototypes_are_the_means_of_foreground_and_of_all_else(levels):
    units = similarity.unit_levels(levels)
    share = torch.zeros(2, 4, 6)
    share[0, 1, 2:4] = 1
    share[0, 0, 0] = 0.5
    foreground, background = similarity.prototypes(SupportUnits(units, share))
    expected = (units[0, :, 1, 2] + units[0, :, 1, 3] + units[0, :, 0, 0] / 2) / 2.5
    torch.testing.assert_close(foreground[0], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(background[0], (units[0].sum((1, 2)) - 2.5 * expected) / 21.5, rtol=1e-5, atol=1e-5)
    assert not foreground[1].any()  # an empty mask has none


def test_cosines_by_level_do_not_depend_on_lengths(levels):
    vectors = torch.randn(2, 8)
    found = similarity.level_cosines(similarity.unit_levels(levels), vectors, WIDTHS)
    for number, (level, vector) in enumerate(zip(levels, vectors.split(WIDTHS, 1), strict=True)):
        expected = F.cosine_similarity(level, vector[..., None, None], dim=1)
        torch.testing.assert_close(found[:, number], expected)


def test_best_matches_are_the_mean_of_the_three_largest_cosines(levels):
    units = similarity.unit_levels(levels)
    rows = units[1].flatten(1).T
    found = similarity.best_matches(units[0], rows, WIDTHS)
    for number, (q, r) in enumerate(zip(units[0].split(WIDTHS), rows.split(WIDTHS, 1), strict=True)):
        cosines = torch.einsum("chw,mc->hwm", q, r)
        torch.testing.assert_close(found[number], cosines.sort(descending=True).values[..., :3].mean(-1))
    torch.testing.assert_close(
        similarity.best_matches(units[0], rows[:1], WIDTHS), similarity.level_cosines(units[:1], rows[:1], WIDTHS)[0]
    )
    assert not similarity.best_matches(units[0], rows[:0], WIDTHS).any()


def test_rows_are_the_positions_that_are_mostly_foreground(levels):
    units = similarity.unit_levels(levels)[0]
    share = torch.zeros(4, 6)
    assert len(similarity.choose_rows(units, share)) == 0
    share[2, 3] = 0.3  # a small object: where there is most of it
    share[1, 1] = 0.2
    torch.testing.assert_close(similarity.choose_rows(units, share), units[None, :, 2, 3])
    share[0, :2] = 0.9
    torch.testing.assert_close(similarity.choose_rows(units, share), units[:, 0, :2].T)
    many = similarity.choose_rows(torch.arange(900.0).view(1, 30, 30), torch.ones(30, 30))[:, 0]
    assert len(many) == similarity.MOST_ROWS
    assert (many[0], many[-1]) == (0, 899)
    assert (many.diff() > 0).all()


def test_a_map_spreads_among_positions_that_are_alike():
    # Two kinds of positions, at right angles.
    units = torch.zeros(1, 2, 4, 4)
    units[0, 0, :2], units[0, 1, 2:] = 1, 1
    maps = torch.zeros(1, 4, 4)
    maps[0, 0, 0] = 8
    once = similarity.spread_among_alike(maps, units, [2], steps=1, scale=50.0)
    expected = torch.tensor([1.0, 1, 0, 0])[:, None].expand(4, 4)  # the mean over its own kind
    torch.testing.assert_close(once[0], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(similarity.spread_among_alike(maps, units, [2], steps=0, scale=50.0), maps)
    # With scale 1 the other kind counts 1/e as much, by hand.
    half = similarity.spread_among_alike(maps, units, [2], steps=1, scale=1.0)
    torch.testing.assert_close(half[0, 3, 3], torch.tensor(8 * 1 / (8 * 2.718281828 + 8)))


def test_large_pictures_spread_by_cells(monkeypatch, levels):
    units = similarity.unit_levels(levels)
    maps = torch.rand(2, 4, 6)
    monkeypatch.setattr(similarity, "MOST_CELLS", 6)
    assert similarity.cell_side((4, 6)) == 2
    found = similarity.spread_among_alike(maps, units, WIDTHS, steps=2, scale=5.0)
    assert found.shape == maps.shape
    cells = [F.normalize(F.avg_pool2d(u, 2).flatten(2), dim=1) for u in units.split(WIDTHS, 1)]
    alike = sum(u.flatten(2).transpose(1, 2) @ c for u, c in zip(units.split(WIDTHS, 1), cells, strict=True)) / 2
    weights = (5 * alike).softmax(2)
    expected = maps
    for _ in range(2):
        expected = (weights @ F.avg_pool2d(expected[:, None], 2).flatten(1)[..., None]).view(2, 4, 6)
    torch.testing.assert_close(found, expected)


def test_likeness_is_the_largest_mean_cosine_of_the_last_levels():
    """Two episodes of two shots; the foreground of both supports is position 0."""
    torch.manual_seed(0)
    widths = [2, 3, 4, 5]
    query, supports = (torch.randn(count, sum(widths), 2, 2).split(widths, 1) for count in (2, 4))
    share = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).expand(4, 2, 2)
    support = SupportUnits(similarity.unit_levels(supports), share)
    found = similarity.likeness(similarity.unit_levels(query), support, widths, shots=2)
    for item in range(2):
        means = [
            F.normalize(level[2 * item : 2 * item + 2, :, 0, 0], dim=1).mean(0) for level in supports[1:]
        ]  # the first level is left out
        cosines = [
            F.cosine_similarity(level[item], mean[:, None, None], dim=0)
            for level, mean in zip(query[1:], means, strict=True)
        ]
        assert found[item] == pytest.approx(float(torch.stack(cosines).mean(0).max()), abs=1e-4)
