from __future__ import annotations

import torch

from hdmnet.models import packed
from hdmnet.models.packed import (
    PackedRows,
    find_foreground,
    find_foregrounds,
    measure_capacities,
    pad_foreground,
)


def test_foreground_is_found_at_the_maps_size_and_picked_in_order():
    masks = torch.zeros(3, 4, 4)
    masks[0, 0, 0] = masks[0, 2, 2] = masks[0, 3, 3] = 1  # nearest neighbour sees the upper left corner of each cell
    masks[2] = 1
    found = find_foreground(masks, (2, 2))
    assert found.counts == (2, 0, 4)
    assert found.index.tolist() == [0, 3, 8, 9, 10, 11]
    maps = torch.arange(24.0).view(3, 2, 2, 2)
    picked = found.gather(maps)
    assert picked.values.tolist() == [[0, 4], [3, 7], [16, 20], [17, 21], [18, 22], [19, 23]]
    assert found.gather(maps.contiguous(memory_format=torch.channels_last)).values.equal(picked.values)


def test_merge_unbind_and_cat():
    ragged = PackedRows(torch.arange(5.0)[:, None], (2, 0, 3, 0))
    assert ragged.merge(2).counts == (2, 3)
    items = ragged.unbind()
    assert [item.values.flatten().tolist() for item in items] == [[0, 1], [], [2, 3, 4], []]
    again = PackedRows.cat(items)
    assert again.counts == ragged.counts
    assert again.values.equal(ragged.values)


def test_pad():
    rows, valid = PackedRows(torch.arange(1.0, 5.0)[:, None], (1, 0, 3)).pad()
    assert rows[..., 0].tolist() == [[1, 0, 0], [0, 0, 0], [2, 3, 4]]
    assert valid.tolist() == [[True, False, False], [False] * 3, [True] * 3]
    rows, valid = PackedRows(torch.arange(4.0)[:, None], (2, 2)).pad()
    assert rows[..., 0].tolist() == [[0, 1], [2, 3]]
    assert valid.all()
    rows, valid = PackedRows(torch.empty(0, 2), (0, 0)).pad()
    assert rows.tolist() == [[[0, 0]], [[0, 0]]]
    assert valid.tolist() == [[False], [False]]


def some_masks():
    masks = torch.zeros(4, 8, 8)
    masks[0, :4], masks[1, 0, 0], masks[3] = 1, 1, 1
    return masks


def test_positions_for_maps_of_several_sizes_at_once():
    sizes = [(4, 4), (2, 2)]
    found = find_foregrounds(some_masks(), sizes, torch.device("cpu"))
    for size, one in zip(sizes, found, strict=True):
        alone = find_foreground(some_masks(), size)
        assert (one.index.tolist(), one.counts) == (alone.index.tolist(), alone.counts)


def test_as_many_positions_for_every_item_with_the_foreground_first():
    masks = some_masks()
    found = pad_foreground(masks, (4, 4), 8)
    assert found.valid.sum(1).tolist() == [8, 1, 0, 8]  # too few for the last
    assert found.index[0].tolist() == list(range(8))
    assert found.index[1].tolist() == [16, *range(17, 24)]
    assert all(len(set(row)) == 8 for row in found.index.tolist())
    maps = torch.arange(64.0).view(4, 1, 4, 4)
    assert found.gather(maps).values[..., 0].tolist() == found.index.tolist()
    whole = pad_foreground(masks, (4, 4), 16)
    rows, valid = whole.gather(maps).pad()
    assert rows.flatten().tolist() == list(range(64))
    assert valid.sum(1).tolist() == [8, 1, 0, 16]


def test_positions_of_neighbours_are_one_item():
    masks, maps = some_masks(), torch.arange(64.0).view(4, 1, 4, 4)
    merged = pad_foreground(masks, (4, 4), 16, shots=2).gather(maps).merge(2)
    assert merged.valid.sum(1).tolist() == [9, 16]
    assert merged.values[0, :9, 0].tolist() == [*range(8), 16]
    assert merged.values[1, :16, 0].tolist() == list(range(48, 64))


def test_capacities_hold_the_foreground(monkeypatch):
    masks, sizes = some_masks(), [(8, 8), (4, 4)]
    monkeypatch.setattr(packed, "ROUND", 3)
    assert measure_capacities(masks, sizes, 2) == ([64, 16], [66, 18])
    assert measure_capacities(masks[:3] == 1, sizes, 1) == ([33, 9], [33, 9])
    assert measure_capacities(masks[2:3].to(torch.uint8), sizes, 1) == ([3, 3], [3, 3])
    assert measure_capacities(masks, sizes, 2, coarse=True) == ([64, 16], [64, 16])
    assert measure_capacities(masks[:3], sizes, 1, coarse=True) == ([32, 8], [32, 8])
    assert measure_capacities(masks[1:3], sizes, 2, coarse=True) == ([32, 8], [16, 4])
