from __future__ import annotations

import lightning as L
import pytest
import torch
import torch.nn.functional as F

from hdmnet.data.types import SegmentationSample
from hdmnet.runtime.warnings import silence_known_warnings
from hdmnet.tasks.base_learner import BaseLearnerTask, BaseOptimiserSettings
from tests.helpers.toy_method import TinyLearner


class Oracle(TinyLearner):
    """Predicts the picture's first channel."""

    def forward(self, image):
        return F.one_hot(image[:, 0].long(), 3).permute(0, 3, 1, 2).float()


def sample(mask, image=None):
    mask = torch.tensor(mask, dtype=torch.uint8)
    if image is None:
        image = torch.randn(len(mask), 3, *mask.shape[1:], generator=torch.Generator().manual_seed(0))
    return SegmentationSample(image, mask, ["x"] * len(mask))


BATCH = sample([[[0, 1], [2, 255]], [[1, 1], [0, 2]]])


def loader(*batches):
    return torch.utils.data.DataLoader(list(batches), batch_size=None)


def fit(task, *, steps=2):
    silence_known_warnings()
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(task, loader(BATCH, BATCH), loader(BATCH))
    return trainer


def test_the_loss_is_cross_entropy_without_ignored_pixels(monkeypatch):
    task = BaseLearnerTask(model=TinyLearner(), optimiser=BaseOptimiserSettings())
    monkeypatch.setattr(task, "log", lambda *_, **__: None)
    loss = task.training_step(BATCH, 0).detach()
    logits = task.model(BATCH.image).permute(0, 2, 3, 1).reshape(-1, 3)
    truth = BATCH.mask.reshape(-1).long()
    chosen = logits.log_softmax(1)[truth != 255].gather(1, truth[truth != 255, None])
    assert float(loss) == pytest.approx(-float(chosen.detach().mean()), rel=1e-5)


def test_validation_is_the_base_classes_miou_without_background():
    predictions = torch.tensor([[[0, 1], [1, 1]], [[1, 0], [0, 2]]])
    batch = sample([[[0, 1], [2, 255]], [[1, 1], [0, 2]]], predictions[:, None].expand(-1, 3, -1, -1).float())
    task = BaseLearnerTask(model=Oracle(), optimiser=BaseOptimiserSettings())
    silence_known_warnings()
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    (values,) = trainer.validate(task, loader(batch), verbose=False)
    assert values["base/miou"] == pytest.approx((2 / 4 + 1 / 2) / 2)


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_the_optimisers_groups(name, kind):
    settings = BaseOptimiserSettings(optimizer=name, lr=0.1, weight_decay=0.2, momentum=0.7, head_lr_factor=10.0)
    task = BaseLearnerTask(model=TinyLearner(), optimiser=settings)
    (optimizer,) = fit(task, steps=2).optimizers
    assert isinstance(optimizer, kind)
    rates = {group["name"]: group["initial_lr"] for group in optimizer.param_groups}
    assert rates == {"head": 1.0, "backbone": 0.1}
    assert all(group["weight_decay"] == 0.2 for group in optimizer.param_groups)
    assert all(group["lr"] == 0 for group in optimizer.param_groups)  # poly decay has come to its end
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(task.model.parameters()))
    if name == "sgd":
        assert optimizer.defaults["momentum"] == 0.7


@pytest.mark.parametrize(
    ("freeze", "statistics", "weights"), [("none", True, True), ("norm", False, True), ("all", False, False)]
)
def test_what_is_frozen_stays(freeze, statistics, weights):
    """Also after a validation, from which Lightning comes back in training mode."""
    model = TinyLearner()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    settings = BaseOptimiserSettings(optimizer="adamw", lr=0.1, freeze_backbone=freeze)
    fit(BaseLearnerTask(model=model, optimiser=settings), steps=5)
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert ("backbone.1.running_mean" in moved) == statistics
    assert ("backbone.0.weight" in moved) == weights
    assert "classifier.weight" in moved


def test_a_backbone_that_is_frozen_itself_has_no_group():
    model = TinyLearner()
    model.backbone.requires_grad_(False)
    (optimizer,) = fit(BaseLearnerTask(model=model, optimiser=BaseOptimiserSettings()), steps=1).optimizers
    assert [group["name"] for group in optimizer.param_groups] == ["head"]


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match=r"optim\.base\.optimizer='adam': expected 'sgd' or 'adamw'"):
        BaseOptimiserSettings(optimizer="adam")
    with pytest.raises(ValueError, match=r"freeze_backbone='bn': expected 'none', 'norm' or 'all'"):
        BaseOptimiserSettings(freeze_backbone="bn")


def test_base_classes_without_a_validation_pixel_are_told_once(caplog):
    class Three(Oracle):
        num_base = 3

        def forward(self, image):
            return F.one_hot(image[:, 0].long(), 4).permute(0, 3, 1, 2).float()

    mask = torch.tensor([[[0, 1], [2, 255]]])
    batch = sample(mask.tolist(), image=mask.clamp(max=2)[:, None].expand(-1, 3, -1, -1).float())
    task = BaseLearnerTask(model=Three(), optimiser=BaseOptimiserSettings())
    silence_known_warnings()
    validate = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    for _ in range(2):
        validate.validate(task, loader(batch), verbose=False)
    told = "stage 1: no validation pixel is, or is taken for, base class 3: base/miou is the mean of the others"
    assert caplog.messages == [told]
