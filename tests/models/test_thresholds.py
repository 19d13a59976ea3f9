from __future__ import annotations

import pytest
import torch

from hdmnet.models.thresholds import choose_thresholds


def maps_of(share, low, high):
    return torch.where(share > 0, high, low).float()


def choose(maps, share, shots, **options):
    return choose_thresholds(maps, share, shots=shots, **({"default": 0.5, "default_weight": 1e-6} | options))


@pytest.fixture
def share():
    share = torch.zeros(2, 4, 4)
    share[0, :2, :2], share[1, 1:3, 2:] = 1, 1
    return share


def test_it_lies_between_object_and_background(share):
    # All thresholds between the two give an IoU of 1: their mean.
    found = choose(maps_of(share, 0.4, 0.8), share, shots=1)
    torch.testing.assert_close(found, torch.tensor([0.59, 0.59]), rtol=0, atol=0.011)
    apart = choose(torch.stack([maps_of(share[0], 0.1, 0.3), maps_of(share[1], 0.7, 0.9)]), share, shots=1)
    torch.testing.assert_close(apart, torch.tensor([0.19, 0.79]), rtol=0, atol=0.02)


def test_several_supports_choose_one_together(share):
    maps = torch.stack([maps_of(share[0], 0.2, 0.6), maps_of(share[1], 0.5, 0.9)])
    found = choose(maps, share, shots=2)
    assert found.shape == (1,)
    assert 0.5 <= float(found) <= 0.6


def test_the_default_counts_as_so_many_supports(share):
    maps = maps_of(share, 0.4, 0.8)
    alone = choose(maps, share, shots=2)
    both = choose(maps, share, shots=2, default=0.9, default_weight=3.0)
    torch.testing.assert_close(both, (2 * alone + 3 * 0.9) / 5)


def test_supports_that_tell_nothing_leave_it_in_the_middle():
    empty = torch.zeros(1, 3, 3)
    torch.testing.assert_close(choose(torch.rand(1, 3, 3), empty, shots=1), torch.tensor([0.5]))
