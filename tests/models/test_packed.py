from __future__ import annotations

import torch

from hdmnet.models.packed import PackedRows, find_foreground


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
    rows, valid = PackedRows(torch.empty(0, 2), (0, 0)).pad()
    assert rows.tolist() == [[[0, 0]], [[0, 0]]]
    assert valid.tolist() == [[False], [False]]
