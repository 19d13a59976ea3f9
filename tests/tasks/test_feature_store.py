"""Evaluation with reuse gives what evaluation without gives."""

from __future__ import annotations

from functools import partial
from itertools import chain
from types import SimpleNamespace

import lightning as L
import pytest
import torch
import torch.nn.functional as F

from hdmnet.data.episodes.encode_once import FeatureBytes
from hdmnet.data.episodes.rules import EvaluationRules
from hdmnet.data.types import EvaluationBatch
from hdmnet.metrics import FewShotIoU
from hdmnet.models.method import EncodesApart, FewShotMethod, Segmentation
from hdmnet.runtime.warnings import silence_known_warnings
from hdmnet.tasks.feature_store import (
    FeatureStore,
    add_to_metrics,
    count_predictions,
    measure_features,
    resize,
)
from hdmnet.tasks.few_shot import FewShotTask
from tests.helpers.datasets import MemoryDataset, few_shot, on_rank
from tests.helpers.encode_once import ColourMatcher


class TinyDataset(MemoryDataset):
    """Pictures whose size can be told without reading them, as of files."""

    def image_size(self, image_id):
        return self.read_mask(image_id).shape


def evaluate(model, memory=None, *, stage="test", **changes):
    """Figures of all predictions and seeds, and the task; `memory` in GB, None: without reuse."""
    module = few_shot(TinyDataset(), setup=None, **{"num_test_episodes": 20, "reuse_memory_gb": memory, **changes})
    module.measure_features = partial(measure_features, model, module.image_size)
    task = FewShotTask(model=model, class_names=module.novel_names, num_test_seeds=module.num_test_seeds)
    silence_known_warnings()
    silent = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = L.Trainer(accelerator="cpu", logger=False, use_distributed_sampler=False, **silent)
    if stage == "validate":
        return trainer.validate(task, datamodule=module, verbose=False)[0], task
    trainer.test(task, datamodule=module, verbose=False)
    return task.test_results, task


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        for first, second in zip(one[name], other[name], strict=True):
            for key in ("intersection", "union", "counts", "iou_per_class"):
                torch.testing.assert_close(first[key], second[key], rtol=0, atol=0, equal_nan=True)


@pytest.mark.long
@pytest.mark.parametrize(
    "changes",
    [
        {"shot": 1},
        {"shot": 3, "batch_size": 7},
        {"shot": 9, "allow_repeats": True, "num_test_episodes": 5},
        {"support_mask": "ones"},
        {"rules": EvaluationRules(queries="official")},
        {"rules": EvaluationRules(queries="classes", supports="repeated", resize="pad", score_at="network")},
        {"eval_batch_size": 1, "num_test_seeds": 1},
    ],
)
def test_counts_are_the_same_to_the_pixel(changes):
    threshold = 2.0 if changes.get("support_mask") == "ones" else 0.6  # pictures differ more from each other as a whole
    plain, _ = evaluate(ColourMatcher(threshold), **changes)
    assert all(0 < float(seed["miou"]) < 1 for seed in plain["final"])
    model = ColourMatcher(threshold)
    reused, task = evaluate(model, 1.0, **changes)
    assert_same(plain, reused)
    assert task.features.num_bytes == 0  # nothing is held between two evaluations
    tight, task = evaluate(ColourMatcher(threshold), _one_episode(changes.get("shot", 2)), **changes)
    assert_same(plain, tight)
    assert task.features.num_encoded >= sum(number for _, number in model.encoded[3:])
    assert task.features.peak_bytes <= round(1e9 * _one_episode(changes.get("shot", 2)))


def _one_episode(shot):
    """GB of one episode's features: a query of 3 x 32 x 40 float32, and three float64 a support."""
    return (3 * 32 * 40 * 4 + shot * 3 * 8) / 1e9


def test_each_picture_is_encoded_once_over_all_seeds_in_batches():
    model = ColourMatcher()
    _, task = evaluate(model, 1.0, shot=1)
    manifests = few_shot(TinyDataset(), setup="test", num_test_episodes=20, shot=1).test_manifests
    specs = [spec for manifest in manifests for spec in manifest]
    queries = {spec.query_id for spec in specs}
    supports = {(one, spec.class_value) for spec in specs for one in spec.support_ids}
    assert task.features.num_encoded == len(queries) + len(supports)
    calls = model.encoded[3:]  # the measurement's come first
    assert sum(number for kind, number in calls if kind == "query") == len(queries)
    assert max(number for _, number in calls) > 1
    _, tight = evaluate(ColourMatcher(), _one_episode(1), shot=1)
    assert tight.features.num_encoded > task.features.num_encoded  # some again


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker")  # on purpose, on few cores too
def test_workers_change_nothing_and_validation_reuses_too():
    plain, _ = evaluate(ColourMatcher(), stage="validate")
    model = ColourMatcher()
    reused, task = evaluate(model, 1.0, stage="validate", num_workers=2)
    assert reused == plain
    assert task.features.num_encoded == sum(number for _, number in model.encoded[3:])
    assert 0 < plain["val/miou"] < 1


def test_processes_share_the_episodes_out():
    def loader(rank, world_size):
        module = few_shot(TinyDataset(), setup="test", reuse_memory_gb=1.0, eval_batch_size=3)
        module.measure_features = lambda: FeatureBytes(1, 1, 1)
        return on_rank(module, rank, world_size).test_dataloader()

    seen = []
    for rank in range(2):
        batches = list(loader(rank, 2))
        assert all(isinstance(batch, EvaluationBatch) for batch in batches)
        seen.append([pair for b in batches for pair in zip(b.seed_index.tolist(), b.index.tolist(), strict=True)])
    assert sorted(seen[0] + seen[1]) == [(seed, index) for seed in range(3) for index in range(5)]
    assert abs(len(seen[0]) - len(seen[1])) <= 1


class Plain(FewShotMethod):
    """A method that does not encode apart."""

    reported = ("final", "meta")

    def __init__(self):
        super().__init__()
        self.inner = ColourMatcher()

    def forward(self, *inputs):
        return self.inner(*inputs)


def test_a_method_that_does_not_encode_apart_keeps_pictures_and_agrees():
    assert not isinstance(Plain(), EncodesApart)
    kept, task = evaluate(Plain(), 1.0)
    assert_same(kept, evaluate(ColourMatcher(), 1.0)[0])
    assert task.features.num_encoded < 20 * 2 * 2  # each picture once


def test_measuring_leaves_the_mode_alone_and_tells_a_supports_range():
    model = ColourMatcher().train()
    found = measure_features(model, (8, 6))
    assert found == FeatureBytes(query=3 * 8 * 6 * 4, empty_support=24, full_support=24)
    assert model.training


@pytest.mark.long
@pytest.mark.parametrize("ensemble", [True, False])
def test_the_real_model_agrees_within_a_few_pixels(compose_config, ensemble):
    from hdmnet.run import build

    cfg = compose_config("train", f"model.ensemble={str(ensemble).lower()}", "backbone.weights=null")
    torch.manual_seed(0)
    model = build.build_untrained(cfg, 6, num_shots=2).eval()
    assert isinstance(model, EncodesApart)
    sizes = measure_features(model, (32, 40))
    assert 0 < sizes.empty_support < sizes.full_support
    plain, _ = evaluate(model)
    reused, task = evaluate(model, 1.0)
    for one, other in zip(chain(*plain.values()), chain(*reused.values()), strict=True):
        for key in ("intersection", "union"):
            assert (one[key] - other[key]).abs().max() <= 5, key
    gigabytes = 4e-9 * (sizes.query + 2 * sizes.full_support)
    tight, task = evaluate(model, gigabytes)
    assert task.features.peak_bytes <= round(1e9 * gigabytes)
    assert all(
        (one["union"] - two["union"]).abs().max() <= 5 for one, two in zip(plain["final"], tight["final"], strict=True)
    )


def test_pooling_by_hand_with_equal_episodes_of_two_seeds():
    """Item 0 stands for three episodes, two of them of seed 1; items 0 and 1 share a mask, item 2 has another size."""
    logits = torch.zeros(3, 2, 2, 2)
    logits[0, 1] = 1.0  # all foreground
    logits[2, 1, 0] = 1.0  # the upper half
    masks = [torch.tensor([[1, 0], [0, 255]], dtype=torch.uint8), torch.ones(3, 2, dtype=torch.uint8)]
    metrics = [FewShotIoU(2), FewShotIoU(2)]
    add_to_metrics(
        count_predictions(Segmentation(logits, (2, 2)), "final", masks, mask_index=[0, 0, 1]),
        class_index=torch.tensor([0, 0, 1]),
        metrics=metrics,
        item=[0, 0, 0, 1, 2],
        seed_index=[0, 1, 1, 0, 1],
    )
    first, second = (metric.compute() for metric in metrics)
    assert first["intersection"].tolist() == [1, 0]
    assert first["union"].tolist() == [3 + 1, 0]
    assert first["counts"].tolist() == [2, 0]
    # Resized with aligned corners, the logit of foreground is 1, 0.5, 0 in the three rows: two of them are above 0.
    assert second["intersection"].tolist() == [2, 4]
    assert second["union"].tolist() == [6, 6]
    assert second["counts"].tolist() == [2, 1]


def test_the_store_forgets_what_it_is_told():
    batch = SimpleNamespace(drop=[], new_queries=["q"], query_images=torch.ones(1, 3, 2, 2), new_supports=["s"])
    batch.support_images, batch.support_masks = torch.ones(1, 3, 2, 2), torch.ones(1, 2, 2)
    batch.queries, batch.supports = ["q", "q"], [["s"], ["s"]]
    store, model = FeatureStore(), ColourMatcher()
    assert store.segment(model, batch).logits.shape == (2, 2, 2, 2)
    assert (store.num_bytes, store.peak_bytes, store.num_encoded) == (48 + 24, 72, 2)
    again = SimpleNamespace(**{**vars(batch), "drop": ["q", "s"]})
    store.segment(model, again)
    assert (store.num_bytes, store.peak_bytes, store.num_encoded) == (72, 72, 4)


def test_resizing_is_the_releases():
    logits = torch.randn(2, 2, 5, 7, generator=torch.Generator().manual_seed(0))
    assert resize(logits, torch.Size((5, 7))) is logits
    expected = torch.cat([F.interpolate(one[None], (9, 4), mode="bilinear", align_corners=True) for one in logits])
    assert torch.equal(resize(logits, torch.Size((9, 4))), expected)


def test_base_classes_are_told_to_a_model_that_asks():
    class Asking(ColourMatcher):
        def match(self, query, support, *, shots, class_index=None):
            self.told = class_index
            return super().match(query, support, shots=shots)

    batch = SimpleNamespace(drop=[], new_queries=["q"], query_images=torch.ones(1, 3, 2, 2), new_supports=["s"])
    batch.support_images, batch.support_masks = torch.ones(1, 3, 2, 2), torch.ones(1, 2, 2)
    batch.queries, batch.supports = ["q", "q"], [["s"], ["s"]]
    classes, model = torch.tensor([3, 1]), Asking()
    FeatureStore().segment(model, batch, classes)
    assert model.told is classes
    FeatureStore().segment(model, batch)
    assert model.told is None
    FeatureStore().segment(ColourMatcher(), batch, classes)  # others are not
