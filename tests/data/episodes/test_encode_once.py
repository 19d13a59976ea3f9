"""The plan of an evaluation with reuse: by hand, and by playing plans through on random episodes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hdmnet.data.episodes.encode_once import FeatureBytes, FeatureCost, plan_batches
from hdmnet.data.episodes.manifest import EpisodeSpec, StoredManifest
from hdmnet.data.types import FeatureKey


def manifest(*episodes):
    """Episodes written as "query class supports", e.g. "q 1 ab"."""
    rows = [episode.split() for episode in episodes]
    return StoredManifest(
        {}, tuple(EpisodeSpec(i, query, int(value), tuple(ids)) for i, (query, value, ids) in enumerate(rows))
    )


def keys(words, class_value=1):
    """Supports by their letters; queries are written in capitals."""
    return tuple(FeatureKey(letter, 0 if letter.isupper() else class_value) for letter in words)


def plan(*manifests, batch_size=1, budget=100, cost=lambda key: 1, **ranks):
    return plan_batches(manifests, batch_size=batch_size, cost=cost, budget_bytes=budget, **ranks)


def play(batches, manifests, cost):
    """Run a plan without a model: checks that all is there when it is needed; returns episodes and most bytes held."""
    specs = [spec for one in manifests for spec in one]
    held, most, done = set(), 0, []
    for batch in batches:
        assert held.issuperset(batch.drop)
        held.difference_update(batch.drop)
        assert held.isdisjoint(batch.encode)
        held.update(batch.encode)
        most = max(most, sum(map(cost, held)))
        for equal in batch.episodes:
            made_of = {(specs[n].query_id, specs[n].class_value, specs[n].support_ids) for n in equal}
            assert len(made_of) == 1
            ((query, value, supports),) = made_of
            assert held.issuperset([FeatureKey(query), *(FeatureKey(one, value) for one in supports)])
            done += equal
    return done, most


FOUR = manifest("A 1 ab", "B 1 cd", "C 1 ac", "D 1 bd")


def test_what_is_needed_last_makes_room_first():
    batches = plan(FOUR, budget=4)
    # Before B, one of a and b has to go: b, which is not needed for C. What is finished goes anyway.
    assert [batch.encode for batch in batches] == [keys("Aab"), keys("Bcd"), keys("C"), keys("Db")]
    assert [set(batch.drop) for batch in batches] == [set(), set(keys("Ab")), set(keys("B")), set(keys("acC"))]


def test_with_room_for_all_each_picture_is_encoded_once_and_with_room_for_one_episode_again():
    assert [batch.encode for batch in plan(FOUR, budget=5)] == [keys("Aab"), keys("Bcd"), keys("C"), keys("D")]
    assert [batch.encode for batch in plan(FOUR, budget=3)] == [keys("Aab"), keys("Bcd"), keys("Ca"), keys("Dbd")]
    with pytest.raises(ValueError, match=r"^reuse_memory_gb=2e-09: the features of one episode take 3e-09 GB; raise"):
        plan(FOUR, budget=2)


def test_episodes_are_sorted_by_class_and_query_and_batches_cut_where_memory_ends():
    mixed = manifest("B 2 c", "A 2 d", "B 1 a", "A 1 b", "B 2 d")
    assert [batch.episodes for batch in plan(mixed, batch_size=2)] == [((3,), (2,)), ((1,), (0,)), ((4,),)]
    first, second, third = plan(mixed, batch_size=2)
    assert first.encode == keys("AbBa")
    assert second.encode == keys("dc", 2)  # the queries are still there, the pictures' other masks are not
    assert set(second.drop) == set(keys("ab"))
    assert third.encode == ()
    assert [len(batch.episodes) for batch in plan(mixed, batch_size=2, budget=3)] == [1, 1, 1, 2]


def test_equal_episodes_run_once_whatever_their_seed_but_order_of_supports_matters():
    one, two = manifest("A 1 ab", "A 1 ba", "A 1 ab"), manifest("A 1 ab", "A 2 ab")
    batches = plan(one, two, batch_size=9)
    assert [batch.episodes for batch in batches] == [((0, 2, 3), (1,), (4,))]


def test_one_shot_episodes_go_by_blocks_of_supports_where_that_encodes_less():
    pairs = manifest(*(f"{query} 1 {support}" for query in "ABC" for support in "abcd"))
    batches = plan(pairs, budget=3)
    # A query and two supports at a time: 2 blocks x (3 queries + 2 supports). Query by query it would be 12.
    assert sum(len(batch.encode) for batch in batches) == 10
    done, most = play(batches, [pairs], lambda key: 1)
    assert sorted(done) == list(range(12))
    assert most == 3


EPISODES = st.lists(
    st.tuples(st.sampled_from("ABCDEF"), st.integers(1, 3), st.text("abcdefgh", min_size=2, max_size=2)), min_size=1
)


@settings(max_examples=50, deadline=None)
@given(
    seeds=st.lists(EPISODES, min_size=1, max_size=3),
    shot=st.integers(1, 2),
    batch_size=st.integers(1, 5),
    budget=st.integers(9, 60),
    world_size=st.integers(1, 3),
)
def test_every_episode_runs_once_within_the_budget_over_all_processes(seeds, shot, batch_size, budget, world_size):
    manifests = [manifest(*(f"{q} {c} {s[:shot]}" for q, c, s in episodes)) for episodes in seeds]

    def cost(key):
        return 3 if key.class_value == 0 else 1 + ord(key.image_id) % 3

    done = []
    for rank in range(world_size):
        batches = plan(*manifests, batch_size=batch_size, budget=budget, cost=cost, rank=rank, world_size=world_size)
        part, most = play(batches, manifests, cost)
        assert most <= budget
        assert all(1 <= len(batch.episodes) <= batch_size for batch in batches)
        done += part
    assert sorted(done) == list(range(sum(map(len, manifests))))
    everything = plan(*manifests, batch_size=batch_size, cost=cost, budget=1000)
    encoded = [key for batch in everything for key in batch.encode]
    assert len(encoded) == len(set(encoded))


def test_shares_are_even_and_stretches_of_one_order():
    episodes = manifest(*(f"{query} 1 {support}" for query in "ABCDE" for support in "ab"))
    shares = [plan(episodes, rank=rank, world_size=3) for rank in range(3)]
    order = [[number for batch in share for (number,) in batch.episodes] for share in shares]
    assert order == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]


def test_a_supports_memory_grows_with_its_foreground():
    asked = []

    def share(key):
        asked.append(key)
        return {"a": 0.25, "b": 0.95}[key.image_id]

    cost = FeatureCost(FeatureBytes(query=500, empty_support=10, full_support=110), share)
    a, b, query = keys("abQ")
    assert [cost(query), cost(a), cost(b), cost(a)] == [500, 10 + 28, 110, 38]  # a tenth more than 25 %; 100 % at most
    assert asked == [a, b]


def test_episodes_of_several_classes_need_the_supports_of_all():
    one = EpisodeSpec(0, "A", 2, ("a", "b"), ((1, ("c", "a")),))
    other = EpisodeSpec(1, "A", 2, ("a", "b"), ((3, ("c", "a")),))
    again = EpisodeSpec(2, "A", 2, ("a", "b"), ((1, ("c", "a")),))
    batches = plan(StoredManifest({}, (one, other, again)), batch_size=2)
    assert [batch.episodes for batch in batches] == [((0, 2), (1,))]  # equal ones once, whatever their further class
    assert batches[0].encode == (*keys("A"), *keys("ca"), *keys("ab", 2), *keys("ca", 3))
