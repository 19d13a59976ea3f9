from __future__ import annotations

import pytest

from hdmnet.data.episodes.samplers import EpochSampler, EvalSampler


def test_epoch_sampler_counts_on_over_the_epochs():
    sampler = EpochSampler(5)
    assert list(sampler) == list(sampler) == [0, 1, 2, 3, 4]
    sampler.set_epoch(3)
    assert list(sampler) == [15, 16, 17, 18, 19]


def test_epoch_sampler_gives_ranks_equal_shares_and_drops_the_tail():
    shares = []
    for rank in range(3):
        sampler = EpochSampler(8, rank=rank, world_size=3)
        sampler.set_epoch(2)
        assert len(sampler) == 2
        shares.append(list(sampler))
    assert shares == [[16, 19], [17, 20], [18, 21]]


def test_eval_sampler_repeats_nothing():
    shares = [EvalSampler(5, rank=rank, world_size=2) for rank in range(2)]
    assert [list(share) for share in shares] == [[0, 2, 4], [1, 3]]
    assert [len(share) for share in shares] == [3, 2]


def test_wrong_ranks_and_empty_shares_are_refused():
    with pytest.raises(ValueError, match="rank is 2 of 2"):
        EvalSampler(5, rank=2, world_size=2)
    with pytest.raises(ValueError, match="1 samples an epoch for 2 processes"):
        EpochSampler(1, rank=0, world_size=2)


def test_a_resumed_epoch_goes_on_where_it_was_and_the_next_one_is_whole():
    sampler = EpochSampler(8, start=(2, 5))
    assert list(sampler) == list(sampler) == [21, 22, 23]
    assert len(sampler) == 8  # Lightning counts the whole epoch
    sampler.set_epoch(2)
    assert list(sampler) == [21, 22, 23]
    sampler.set_epoch(3)
    assert list(sampler) == list(range(24, 32))


def test_ranks_share_the_rest_of_a_resumed_epoch():
    shares = [list(EpochSampler(9, rank=rank, world_size=3, start=(0, 4))) for rank in range(3)]
    assert shares == [[4], [5], [6]]
    assert [len(EpochSampler(9, rank=rank, world_size=3, start=(0, 4))) for rank in range(3)] == [3, 3, 3]
