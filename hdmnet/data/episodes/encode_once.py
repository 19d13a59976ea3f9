"""The order in which an evaluation runs its episodes, so that pictures are encoded once and their features reused.

The metrics are sums over episodes, so any order gives the same result, and the test protocol uses the same few pictures
over and over: as query, as support of a class, and in 1-shot also as the very same pair. What is encoded when, and what
makes room for it, is planned before anything runs, from the manifests alone: so the loader's workers decode ahead, and
as the whole future is known, the features that are needed last make room first (Belady's rule).

Episodes of a class stand together, as only they share supports, and among them those of a query; a query that holds
several classes is kept from one to the next where there is room. Where there is too little room for a class's supports,
1-shot episodes may instead be walked support block by support block, if that encodes less.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from hdmnet.data.types import FeatureKey
from hdmnet.runtime.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hdmnet.data.episodes.manifest import EpisodeSpec, Manifest

MARGIN = 1.1


class FeatureBytes(NamedTuple):
    """Memory, in bytes, of the features of a picture: as query, and as support without or all foreground."""

    query: int
    empty_support: int
    full_support: int


class FeatureCost:
    """Estimates the memory of a picture's features, from sizes measured on the model.

    What is kept of a support may grow with its foreground, of which the network samples a grid: the share of its
    picture that `foreground_share` tells of its key is taken with a tenth more, which in the sum over some supports is
    more than what sampling can add.
    """

    def __init__(self, sizes: FeatureBytes, foreground_share: Callable[[FeatureKey], float]) -> None:
        self._sizes = sizes
        self._foreground_share = foreground_share
        self._supports: dict[FeatureKey, int] = {}

    def __call__(self, key: FeatureKey) -> int:
        """Bytes of a query's or support's features."""
        if not key.class_value:
            return self._sizes.query
        if key not in self._supports:
            _, empty, full = self._sizes
            share = min(MARGIN * self._foreground_share(key), 1.0)
            self._supports[key] = empty + math.ceil(share * (full - empty))
        return self._supports[key]


Cost = Callable[[FeatureKey], int]


@dataclass(frozen=True)
class PlannedBatch:
    """One batch of a plan.

    Attributes:
        episodes: Global numbers (all of the first manifest, then those of the second, and so on) of its episodes; each
            entry holds equal ones, of which one has to be run.
        encode: What has to be encoded for it, each once.
        drop: Features to forget before anything is encoded.
    """

    episodes: tuple[tuple[int, ...], ...]
    encode: tuple[FeatureKey, ...]
    drop: tuple[FeatureKey, ...]


class _Need(NamedTuple):
    """Equal episodes by their global numbers, and what they need: the query first, then each support once."""

    episodes: tuple[int, ...]
    keys: tuple[FeatureKey, ...]


def plan_batches(
    manifests: Sequence[Manifest],
    *,
    batch_size: int,
    cost: Cost,
    budget_bytes: int,
    rank: int = 0,
    world_size: int = 1,
) -> list[PlannedBatch]:
    """Plan this process's share of an evaluation: every episode once, over all processes.

    Episodes are equal, and run once, if they have the same query, and classes and supports in the same order.

    Args:
        manifests: One a seed.
        batch_size: Most episodes to run in a batch; fewer where their features would not fit the budget.
        cost: Bytes of the features of a key.
        budget_bytes: Memory for features that are kept, of this process.
        rank: This process. A share is a stretch of the common order, so at most one query lies in two shares.
        world_size: Number of processes.

    Returns:
        The batches, in the order in which they must run.

    Raises:
        ValueError: If the features of a single episode do not fit the budget.
    """
    needs = _order(manifests)
    share = needs[rank * len(needs) // world_size : (rank + 1) * len(needs) // world_size]
    plan = _schedule(_cut(share, batch_size, cost, budget_bytes), cost, budget_bytes)
    if _num_encoded(plan) == len({key for need in share for key in need.keys}):
        return plan
    blocks = _by_support_blocks(share, batch_size, cost, budget_bytes)
    if blocks is None:
        return plan
    return min(plan, _schedule(_cut(blocks, batch_size, cost, budget_bytes), cost, budget_bytes), key=_num_encoded)


def _num_encoded(plan: list[PlannedBatch]) -> int:
    return sum(len(batch.encode) for batch in plan)


def _order(manifests: Sequence[Manifest]) -> list[_Need]:
    """All episodes, sorted by class, then query, then supports, then further classes."""
    equal: dict[tuple[int, str, tuple[str, ...], Any], tuple[EpisodeSpec, list[int]]] = {}
    for number, spec in enumerate(itertools.chain.from_iterable(manifests)):
        key = spec.class_value, spec.query_id, spec.support_ids, spec.others
        equal.setdefault(key, (spec, []))[1].append(number)
    return [_Need(tuple(numbers), tuple(needed_keys(spec))) for _, (spec, numbers) in sorted(equal.items())]


def needed_keys(spec: EpisodeSpec) -> list[FeatureKey]:
    """What an episode needs: the query first, then each support of each class once."""
    supports = dict.fromkeys(FeatureKey(one, value) for value, ids in spec.ways for one in ids)
    return [FeatureKey(spec.query_id), *supports]


def _by_support_blocks(needs: list[_Need], batch_size: int, cost: Cost, budget_bytes: int) -> list[_Need] | None:
    """The same 1-shot episodes so that few supports are in use at a time; None for more shots.

    Those of several classes so that equal supports stand together: in a generalised test all have them, seed by seed.
    """
    if any(need.keys[1].class_value != need.keys[-1].class_value for need in needs):
        return sorted(needs, key=lambda need: need.keys[1:])
    if any(len(need.keys) != 2 for need in needs):
        return None
    room = budget_bytes - batch_size * max(cost(need.keys[0]) for need in needs)  # left beside a batch's queries
    block: dict[FeatureKey, int] = {}
    number, held = 0, 0
    for need in needs:
        support = need.keys[1]
        if support not in block:
            held += cost(support)
            if held > room:
                number, held = number + 1, cost(support)
            block[support] = number
    return sorted(needs, key=lambda need: block[need.keys[1]])  # stable: the episodes of a query stay together


def _total(cost: Cost, keys: Iterable[FeatureKey]) -> int:
    return sum(map(cost, keys))


def _cut(needs: list[_Need], batch_size: int, cost: Cost, budget_bytes: int) -> list[list[_Need]]:
    """Cut a row of episodes to batches whose features fit the budget."""
    batches: list[list[_Need]] = []
    held: set[FeatureKey] = set()
    for need in needs:
        if _total(cost, need.keys) > budget_bytes:
            raise DatasetError(
                f"reuse_memory_gb={budget_bytes / 1e9:g}: the features of one episode take "
                f"{_total(cost, need.keys) / 1e9:.3g} GB; raise it, or set reuse=false"
            )
        grown = held.union(need.keys)
        if not batches or len(batches[-1]) == batch_size or _total(cost, grown) > budget_bytes:
            batches.append([])
            grown = set(need.keys)
        batches[-1].append(need)
        held = grown
    return batches


def _schedule(batches: list[list[_Need]], cost: Cost, budget_bytes: int) -> list[PlannedBatch]:
    """Decide what each batch encodes and drops."""
    wanted = [list(dict.fromkeys(key for need in batch for key in need.keys)) for batch in batches]
    uses: dict[FeatureKey, list[int]] = {}  # batches that need a key, the next one last
    for number in reversed(range(len(wanted))):
        for key in wanted[number]:
            uses.setdefault(key, []).append(number)
    held: set[FeatureKey] = set()
    idle: list[tuple[int, FeatureKey]] = []  # heap of (-next use, key); entries of the past are skipped
    finished: list[FeatureKey] = []
    used_bytes, plan = 0, []
    for number, keys in enumerate(wanted):
        drop, finished = finished, []
        new = [key for key in keys if key not in held]
        for key in keys:
            uses[key].pop()
        used_bytes += _total(cost, new) - _total(cost, drop)
        held.difference_update(drop)
        while used_bytes > budget_bytes:
            negative, key = heapq.heappop(idle)
            if uses[key] and uses[key][-1] == -negative:  # else an entry of an earlier use: it is needed now
                held.remove(key)
                drop.append(key)
                used_bytes -= _total(cost, [key])
        held.update(new)
        for key in keys:
            if uses[key]:
                heapq.heappush(idle, (-uses[key][-1], key))
            else:
                finished.append(key)
        plan.append(PlannedBatch(tuple(need.episodes for need in batches[number]), tuple(new), tuple(drop)))
    return plan
