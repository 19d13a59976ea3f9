from __future__ import annotations

import math
from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from hdmnet.models.losses import SegmentationLoss
from hdmnet.runtime.warnings import silence_known_warnings
from hdmnet.tasks.few_shot import FewShotTask
from hdmnet.tasks.schedule import poly_schedule
from tests.helpers.toy_method import Painter, make_batch

# 2x2 pictures. IoU of "one": (1 + 1) / (2 + 3); of "two": 1 / 1, its ignored pixel counts nowhere.
MASKS = [[[1, 1], [0, 0]], [[0, 1], [0, 0]], [[1, 255], [0, 0]]]
PREDICTIONS = [[[1, 0], [0, 0]], [[1, 1], [1, 0]], [[1, 1], [0, 0]]]
CLASSES = [0, 0, 1]


def loader(batches):
    return torch.utils.data.DataLoader(batches, batch_size=None)


def trainer(**arguments):
    silence_known_warnings()
    silent = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return L.Trainer(accelerator="cpu", logger=False, **silent, **arguments)


@pytest.mark.parametrize("sizes", [[3], [1, 1, 1], [2, 1]])
def test_figures_are_pooled_per_class_whatever_the_batch_size(sizes):
    task = FewShotTask(model=Painter(), class_names=["one", "two", "never"])
    items = list(zip(MASKS, PREDICTIONS, CLASSES, strict=True))
    batches = []
    for size in sizes:
        part, items = items[:size], items[size:]
        batches.append(make_batch(*map(list, zip(*part, strict=True))))
    trainer().test(task, loader(batches), verbose=False)
    (final,), (meta,) = task.test_results["final"], task.test_results["meta"]
    assert final["iou_per_class"].tolist()[:2] == [2 / 5, 1.0]
    assert math.isnan(final["iou_per_class"][2])
    assert float(final["miou"]) == pytest.approx(0.7)
    assert final["counts"].tolist() == [2, 1, 0]
    # Foreground 3 / 6; background: 7 true ones, 5 of them found and 1 missed pixel called background.
    assert float(final["fb_iou"]) == pytest.approx((3 / 6 + 5 / 8) / 2)
    assert meta["iou_per_class"].tolist()[:2] == [3 / 8, 1 / 3]  # everything foreground


def test_seeds_are_kept_apart_and_may_be_fewer_than_prepared():
    task = FewShotTask(model=Painter(), class_names=["one", "two"], num_test_seeds=2)
    batch = make_batch(MASKS, PREDICTIONS, CLASSES, seeds=[0, 1, 1])
    trainer().test(task, loader([batch]), verbose=False)
    assert [float(one["miou"]) for one in task.test_results["final"]] == [1 / 2, pytest.approx((1 / 3 + 1) / 2)]
    task.num_test_seeds = 1
    trainer().test(task, loader([make_batch(MASKS[:1], PREDICTIONS[:1], [0])]), verbose=False)
    assert [float(one["miou"]) for one in task.test_results["final"]] == [1 / 2]  # nothing left of the test before


def test_predictions_are_compared_at_the_querys_original_size():
    """Logits are resized with aligned corners, then decided: (-1, 1) on 2 pixels is (-1, -.5, 0, .5, 1) on 5."""
    original = torch.zeros(2, 5, dtype=torch.uint8)
    original[:, 3:] = 1
    batch = make_batch([[[0, 1], [0, 1]]], [[[0, 1], [0, 1]]], [0], originals=[original])
    task = FewShotTask(model=Painter(), class_names=["one"])
    trainer().test(task, loader([batch]), verbose=False)
    (final,) = task.test_results["final"]
    assert float(final["miou"]) == 1.0
    assert int(final["union"]) == 4


def test_training_tells_the_model_the_class_and_evaluation_does_not():
    model = Painter()
    task = FewShotTask(
        model=model,
        class_names=["one", "two"],
        loss=SegmentationLoss(),
        optimizer=torch.optim.SGD,
        groups={"lr": 0.1},
    )
    fit = trainer(max_steps=1, num_sanity_val_steps=0)
    batch = make_batch(MASKS, PREDICTIONS, CLASSES)
    fit.fit(task, loader([batch]), loader([batch]))
    assert model.calls == [CLASSES, None]


def test_base_classes_are_told_to_the_model_in_validation_and_named_there():
    model = Painter()
    task = FewShotTask(model=model, class_names=["novel"], val_class_names=["one", "two"], validates_base=True)
    batch = make_batch(MASKS, PREDICTIONS, CLASSES)
    outputs = task.validation_step(batch, 0)
    assert (model.calls, outputs["class_names"]) == ([CLASSES], ("one", "two"))
    values = trainer().validate(task, loader([batch]), verbose=False)[0]
    assert values["val/miou"] == pytest.approx(0.7)
    trainer().test(task, loader([make_batch(MASKS[:1], PREDICTIONS[:1], [0])]), verbose=False)
    assert model.calls[-1] is None


def test_a_base_class_without_episodes_is_named(caplog):
    task = FewShotTask(model=Painter(), class_names=["novel"], val_class_names=["one", "two"], validates_base=True)
    trainer().validate(task, loader([make_batch(MASKS[:1], PREDICTIONS[:1], [0])]), verbose=False)
    assert "validation has no episode to count of two" in caplog.text


def test_a_single_prediction_is_pooled_and_logged_once():
    task = FewShotTask(model=Painter(alone=True), class_names=["one", "two"])
    values = trainer().validate(task, loader([make_batch(MASKS, PREDICTIONS, CLASSES)]), verbose=False)[0]
    assert set(values) == {"val/miou", "val/fb_iou"}
    trainer().test(task, loader([make_batch(MASKS, PREDICTIONS, CLASSES)]), verbose=False)
    assert set(task.test_results) == {"final"}


def test_a_method_may_decide_by_a_rule_of_its_own():
    class Voter(Painter):
        def forward(self, *episode):
            output = super().forward(*episode)
            output.decided = 1 - output.prediction  # the opposite of what its scores say
            return output

    originals = [
        torch.tensor(mask, dtype=torch.uint8).repeat_interleave(3, 0).repeat_interleave(3, 1) for mask in MASKS
    ]
    for truth in (None, originals):
        task = FewShotTask(model=Voter(alone=True), class_names=["one", "two"])
        batch = make_batch(MASKS, PREDICTIONS, CLASSES, originals=truth)
        trainer().test(task, loader([batch]), verbose=False)
        # What was called background is foreground now, so "one" keeps 1 of 2 + 1 pixels and 0 of 1 + 1.
        assert task.test_results["final"][0]["iou_per_class"].tolist() == [1 / 6, 0.0]


class Rates(Callback):
    """The learning rate of each group at every step."""

    def __init__(self):
        self.rates = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append([group["lr"] for group in optimizer.param_groups])


def test_the_optimiser_has_the_models_groups_and_poly_decay():
    rates = Rates()
    task = FewShotTask(
        model=Painter(),
        class_names=["one", "two"],
        loss=SegmentationLoss(),
        optimizer=partial(torch.optim.AdamW, weight_decay=0.3),
        schedule=partial(poly_schedule, power=0.9),
        groups={"lr": 0.01, "head_lr_factor": 10.0},
    )
    batch = make_batch(MASKS, PREDICTIONS, CLASSES)
    fit = trainer(max_steps=4, callbacks=[rates], num_sanity_val_steps=0)
    fit.fit(task, loader([batch, batch]), loader([batch]))
    expected = [0.01 * (1 - step / 4) ** 0.9 for step in range(1, 5)]
    torch.testing.assert_close(rates.rates, [[rate, 10 * rate] for rate in expected])
    (optimizer,) = fit.optimizers
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    assert all(group["weight_decay"] == 0.3 for group in optimizer.param_groups)


def test_validation_figures_reach_the_checkpoints_choice_and_no_episode_is_0():
    task = FewShotTask(model=Painter(), class_names=["one", "two"])
    validate = trainer()
    values = validate.validate(task, loader([make_batch(MASKS, PREDICTIONS, CLASSES)]), verbose=False)[0]
    assert values == {
        "val/miou": pytest.approx(0.7),
        "val/fb_iou": pytest.approx((3 / 6 + 5 / 8) / 2),
        "val/miou_meta": pytest.approx((3 / 8 + 1 / 3) / 2),
        "val/fb_iou_meta": pytest.approx(4 / 11 / 2),
    }
    nothing = make_batch([[[255, 255], [255, 255]]], [[[0, 0], [0, 0]]], [0])
    assert trainer().validate(task, loader([nothing]), verbose=False)[0]["val/miou"] == 0.0


def test_the_checkpoint_tells_how_to_build_the_model_again():
    checkpoint = {}
    task = FewShotTask(model=Painter(), class_names=["one"], checkpoint_extra={"config": {"fold": 2}})
    task.on_save_checkpoint(checkpoint)
    assert checkpoint == {"hdmnet": {"config": {"fold": 2}}}


def test_a_class_without_a_validation_episode_is_told_once(caplog):
    task = FewShotTask(model=Painter(), class_names=["one", "two", "three"])
    validate = trainer()
    batches = [make_batch(MASKS, PREDICTIONS, CLASSES)]
    for _ in range(2):
        validate.validate(task, loader(batches), verbose=False)
    assert caplog.messages == ["validation has no episode to count of three: val/miou is the mean of the others"]
    caplog.clear()
    nothing = make_batch([[[255, 255], [255, 255]]], [[[0, 0], [0, 0]]], [0])
    trainer().validate(FewShotTask(model=Painter(), class_names=["one"]), loader([nothing]), verbose=False)
    assert caplog.messages == ["validation has no episode to count of one: val/miou is 0"]


def test_classes_of_the_validation_are_told_by_their_own_names_and_not_again_where_known(caplog):
    names = ["one", "two", "three", "four"]
    batches = [make_batch(MASKS, PREDICTIONS, CLASSES)]
    task = FewShotTask(model=Painter(), class_names=["other"], val_class_names=names, too_few=["three"])
    trainer().validate(task, loader(batches), verbose=False)
    assert caplog.messages == ["validation has no episode to count of four: val/miou is the mean of the others"]
    task = FewShotTask(model=Painter(), class_names=["other"], val_class_names=names)
    assert task.validation_step(batches[0], 0)["class_names"] == tuple(names)
