from __future__ import annotations

import torch

from hdmnet.models.hdmnet.features import QueryFeatures, SupportFeatures
from hdmnet.models.packed import PackedRows
from tests.helpers.tiny_hdmnet import make_episode, make_model


def encode(shots=2, batch=3, **changes):
    model = make_model(num_shots=shots, **changes)
    query, support, mask = make_episode(shots, batch=batch)
    with torch.no_grad():
        whole = model(query, support, mask).logits
        queries = model.encode_query(query)
        supports = model.encode_support(support.flatten(0, 1), mask.flatten(0, 1))
    return model, queries, supports, whole


def rows(layer4):
    return layer4.values if isinstance(layer4, PackedRows) else layer4


def test_any_episode_can_be_put_together_from_encoded_pictures():
    model, queries, supports, whole = encode()
    query_items, support_items = queries.unbind(), supports.unbind()
    assert (len(query_items), len(support_items)) == (3, 6)
    order = [2, 0]
    with torch.no_grad():
        out = model.match(
            QueryFeatures.stack([query_items[i] for i in order]),
            SupportFeatures.stack([support_items[2 * i + k] for i in order for k in (0, 1)]),
            shots=2,
        )
    torch.testing.assert_close(out.logits, whole[order], rtol=1e-4, atol=1e-5)


def test_stack_is_the_inverse_of_unbind():
    for features in encode()[1:3]:
        again = type(features).stack(features.unbind())
        assert again.num_bytes == features.num_bytes
        assert rows(again.layer4).equal(rows(features.layer4))


def test_one_item_holds_no_memory_of_the_others():
    _, queries, supports, _ = encode(batch=4)
    for features in (queries, supports):
        items = features.unbind()
        assert sum(item.num_bytes for item in items) == features.num_bytes
        layer4 = rows(items[0].layer4)
        assert layer4.untyped_storage().nbytes() == layer4.numel() * 4


def test_without_an_ensemble_no_gram_matrix_is_made():
    _, queries, supports, _ = encode(ensemble=False)
    assert queries.gram is None
    assert supports.gram is None
    assert supports.unbind()[0].gram is None
